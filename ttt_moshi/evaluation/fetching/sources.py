"""Which data sets can be fetched: those that anybody may load from where their publishers put them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class DataSet:
    """A data set.

    Args:
        tasks: of `ttt-moshi eval` that read it.
        licence: as its publisher names it.
        folder: below --out, where its files belong; "" for --out itself.
        repository: on the Hugging Face hub, else None.
        patterns: of the repository's files; all of them where it is empty.
        url, md5: where it is one archive, and its published digest.
    """

    tasks: str
    licence: str
    size: str
    folder: str = ""
    repository: str | None = None
    patterns: tuple[str, ...] = ()
    url: str | None = None
    md5: str | None = None


DATA_SETS: dict[str, DataSet] = {
    "voicebench": DataSet(
        "spoken_choices, judged_answers", "Apache-2.0", "some GB", "voicebench", "hlt-lab/voicebench", ("*.parquet",)
    ),
    "big_bench_audio": DataSet(
        "judged_answers",
        "MIT",
        "some 100 MB",
        "big_bench_audio",
        "ArtificialAnalysis/big_bench_audio",
        ("metadata.jsonl", "data/*.mp3"),
    ),
    "uro_bench": DataSet("judged_answers", "MIT", "some GB", "", "Honggao/URO-Bench", ("URO-Bench-data.zip",)),
    "open_audio_bench": DataSet(
        "llama_questions, web_questions, trivia_qa",
        "none named on its page",
        "some GB",
        "",
        "baichuan-inc/OpenAudioBench",
        tuple(f"eval_datas/{name}/*" for name in ("llama_questions", "web_questions", "trivia_qa")),
    ),
    "librispeech_long": DataSet(
        "continuation",
        "CC BY 4.0",
        "3 GB",
        "librispeech-long",
        url="https://storage.googleapis.com/librispeech_long/v0_1.tar.gz",
    ),
    "librilight_small": DataSet(
        "position, context, repeat, inner",
        "public domain recordings (LibriVox)",
        "35 GB",
        "librilight",
        url="https://dl.fbaipublicfiles.com/librilight/data/small.tar",
        md5="c49207eb86a8e8ac895561c37232041e",
    ),
}
