"""The table of bad values: what a person may type or have on the disk, and what the answer must name."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.application.harness import Place

Prepare = Callable[[Place], None]


@dataclass(frozen=True)
class Case:
    """One command line, in which {run}, {last}, ... are filled in, and a word that its one line must hold."""

    words: str
    names: str
    prepare: Prepare | None = None
    status: int = 2

    @property
    def id(self) -> str:
        """Short name."""
        what = f" ({self.prepare.__name__.removeprefix('_')})" if self.prepare else ""
        return self.words + what


def fill(place: Place, text: str) -> str:
    """The text with the places of this case in it."""
    folder, run = place.folder, place.run
    return text.format(
        folder=folder,
        run=run,
        last=run / "checkpoints/checkpoint_000006",
        checkpoints=run / "checkpoints",
        base=folder / "material/base",
        data=folder / "material/train/data.jsonl",
        wav=one_wav(folder),
        eval=folder / "material/eval/data.jsonl",
        nowhere=folder / "nowhere",
        empty=folder / "empty",
        text=folder / "text.txt",
        binary=folder / "binary.bin",
        yaml=folder / "given.yaml",
        new=folder / "new",
    )


def one_wav(folder: Path) -> Path:
    """A recording of the case."""
    return folder / "material/eval/data_stereo/dialogue_0000.wav"


def furnish(place: Place) -> None:
    """Makes what the table speaks of, beside the run."""
    (place.folder / "empty").mkdir()
    (place.folder / "text.txt").write_text("this is neither audio nor JSON\n")
    (place.folder / "binary.bin").write_bytes(bytes(range(256)) * 16)


def written(name: str, content: str | bytes) -> Prepare:
    """A preparation that writes a file below the case's folder."""

    def prepare(place: Place) -> None:
        path = place.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())

    prepare.__name__ = f"{name}: {content[:40]!r}"
    return prepare


def yaml(content: str | bytes) -> Prepare:
    """A preparation that writes the configuration file."""
    return written("given.yaml", content)


# Training from its own options: every wrong value is refused before anything is read.
TRAIN = (
    "train --run_dir {new} --moshi_paths.hf_repo_id {base} --data.train_data {data} --duration_sec 1.2 --max_steps 1 "
)
ON = TRAIN + "--ttt.enable true --ttt.layers 1 "


def _options() -> list[Case]:
    wrong = {
        "optim.lr": ("-1", "0", "nan", "inf", "abc", "1e300"),
        "seed": ("-1", "1.5", "1" + 40 * "0"),
        "max_steps": ("0", "-3", "1e400", 400 * "9"),
        "batch_size": ("0", "-1", "two", "99999999999"),
        "num_microbatches": ("0",),
        "duration_sec": ("0", "nan", "inf", "-4", "1e9"),
        "max_norm": ("0", "nan"),
        "first_codebook_weight_multiplier": ("-1", "nan"),
        "text_padding_weight": ("-0.5", "inf"),
        "optim.weight_decay": ("-1", "nan"),
        "optim.pct_start": ("1.5", "nan"),
        "optim.ttt_lr": ("-1", "nan"),
        "optim.gate_lr": ("-1",),
        "optim.fast_weight_lr": ("inf",),
        "ckpt_freq": ("-1",),
        "eval_freq": ("-2",),
        "log_freq": ("0",),
        "num_ckpt_keep": ("0",),
        "param_dtype": ("float16",),
        "lora.rank": ("0", "-4"),
        "lora.scaling": ("nan",),
        "ttt.base_lr": ("0", "nan", "inf"),
        "ttt.mini_batch_size": ("0",),
        "ttt.inner": ("conv",),
        "ttt.preset": ("loud",),
        "ttt.layers": ("99", "a,b", "-1"),
        "ttt.half_life_frames": ("0.1", "nan"),
        "ttt.initial_gating_alpha": ("nan",),
        "train.clip_schedule": ("10", "5:1,0:2", "0:nan", "0:1e300", "0:1e17"),
        "train.context_frames": ("1", 21 * "9"),
        "train.backprop_clips": ("0",),
        "train.watch_freq": ("-1",),
        "checkpoint.resume_step": ("-7",),
        "checkpoint.every_minutes": ("-1", "nan"),
        "checkpoint.keep_every": ("-5",),
        "checkpoint.keep_best": ("-1",),
        "paper_metrics.freq": ("-1",),
        "paper_metrics.max_items": ("0", "-3"),
        "paper_metrics.max_frames": ("0",),
        "eval.gates": ("-1", "true"),
        "eval.gates_sec": ("0.5", "nan"),
        "checkpoint.resume": ("maybe",),
        "do_eval": ("perhaps",),
        "run_dir": ("''",),
    }
    return [Case(f"{ON}--{key} {value}", key) for key, values in wrong.items() for value in values]


def _configurations() -> list[Case]:
    start = ON + "--config {yaml}"
    return [
        Case("train --config {nowhere}", "{nowhere}"),
        Case("train --config {empty}", "{empty}"),
        Case("train --config {binary}", "{binary}"),
        Case("train --config", "--config"),
        Case("train", "run_dir"),
        Case(start, "{yaml}", yaml("")),
        Case(start, "{yaml}", yaml("- a\n- b\n")),
        Case(start, "{yaml}", yaml("run_dir: [")),
        Case(start, "{yaml}", yaml("run_dir: 'caf\u00e9'\n".encode("latin-1"))),
        Case(start, "{yaml}", yaml("lora:\n  rnk: 4\n")),
        Case(start, "lora.rnk", yaml("lora:\n  rnk: 4\n")),
        Case(start, "lora", yaml("lora: 3\n")),
        Case(start, "optim.lr", yaml("optim:\n  lr: [1]\n")),
        Case(start, "1", yaml("1: 2\n")),
        Case(start, "{yaml}", yaml("run_dir: a\nrun_dir: b\n")),
        Case(start, "{yaml}", yaml("a: &a [*a]\n")),
        Case(start, "{yaml}", yaml("x: !!python/object/apply:os.system ['true']\n")),
        Case(start, "max_steps", yaml("max_steps:\n")),
        Case(start, "optim.lr", yaml("optim:\n  lr:\n")),
        Case(start, "do_ckpt", yaml("do_ckpt: null\n")),
        Case(start, "{yaml}", yaml(f"seed: {400 * '9'}\n")),
        Case(start, "{yaml}", yaml("seed: " + 2000 * "[" + 2000 * "]")),
        Case(start, "run_dir", yaml('run_dir: "a\\0b"\n')),
        Case(ON + "--optim.lrr 1", "--optim.lr"),
        Case(ON + "--nonsense", "--nonsense"),
        Case(ON + "stray", "stray"),
        Case(ON + "--optim.lr", "optim.lr"),
    ]


def _run_folders() -> list[Case]:
    def into(folder: str) -> str:
        return ON.replace("{new}", folder)

    return [
        Case(into("{run}"), "{run}"),
        Case(into("{text}"), "{text}"),
        Case(into("{text}/below"), "{text}"),
        Case(into("{folder}/material"), "{folder}/material"),
        Case(into("/proc/nowhere"), "/proc/nowhere"),
        Case(into("{nowhere}") + "--checkpoint.resume true", "{nowhere}"),
        Case(into("{empty}") + "--checkpoint.resume true", "{empty}"),
        Case(into("{run}") + "--checkpoint.resume true --checkpoint.resume_step 99", "99"),
        Case(into("{run}") + "--checkpoint.resume true --overwrite_run_dir true", "overwrite_run_dir"),
        Case(into("{run}") + "--checkpoint.resume true --checkpoint.init_state_dir {last}", "init_state_dir"),
        Case(ON + "--checkpoint.init_state_dir {nowhere}", "{nowhere}"),
        Case(ON + "--checkpoint.init_state_dir {empty}", "{empty}"),
        Case(ON + "--checkpoint.init_state_dir {text}", "{text}"),
        Case(ON + "--checkpoint.mirror nonsense://bucket/x", "nonsense"),
        Case(ON + "--checkpoint.mirror {text}", "{text}"),
        Case(ON + "--checkpoint.mirror {new}", "checkpoint.mirror"),
        Case(ON + "--checkpoint.mirror {new}/checkpoints", "checkpoint.mirror"),
        Case(ON + "--checkpoint.mirror file://{folder}", "checkpoint.mirror"),
        Case(ON + "--checkpoint.resume_step 4", "checkpoint.resume_step"),
        Case(ON + "--checkpoint.resume auto --checkpoint.resume_step 4", "checkpoint.resume_step"),
        Case(ON + "--checkpoint.accept_changes '[data]'", "checkpoint.accept_changes"),
        Case(ON + "--full_finetuning true", "save_adapters"),
        Case(ON + "--full_finetuning true --lora.enable true", "lora.enable"),
    ]


def _inputs() -> list[Case]:
    def data(path: str) -> str:
        return ON.replace("{data}", path)

    def base(path: str) -> str:
        return ON.replace("{base}", path)

    line = '{"path": "a.wav", "duration": 3.0}\n'
    listed = data("{folder}/list.jsonl")
    return [
        *(
            Case(data(path), path)
            for path in ("{nowhere}", "{empty}", "{binary}", "{text}", "{data}:-1", "{data}:nan", "{data}:0")
        ),
        Case(data("{data},{nowhere}"), "{nowhere}"),
        # What can be known without a model comes before its download.
        Case(data("{nowhere}").replace("{base}", "nobody/absent"), "{nowhere}"),
        Case(listed.replace("{base}", "nobody/absent"), "a.wav", written("list.jsonl", line)),
        Case(ON.replace("{base}", "nobody/absent"), "nobody/absent"),
        Case("data encode {nowhere} --hf_repo_id nobody/absent", "{nowhere}"),
        Case(listed, "list.jsonl", written("list.jsonl", "")),
        Case(listed, "list.jsonl", written("list.jsonl", "\n\n")),
        Case(listed, "a.wav", written("list.jsonl", line)),
        Case(listed, "list.jsonl", written("list.jsonl", '{"duration": 3.0}\n')),
        Case(listed, "list.jsonl", written("list.jsonl", '{"path": "text.txt", "duration": -3.0}\n')),
        Case(listed, "list.jsonl", written("list.jsonl", '{"path": "text.txt", "duration": NaN}\n')),
        Case(listed, "list.jsonl", written("list.jsonl", '{"path": 7, "duration": 3.0}\n')),
        Case(listed, "list.jsonl", written("list.jsonl", '["path"]\n')),
        Case(
            listed, "list.jsonl", written("list.jsonl", '{"path": "caf\u00e9.wav", "duration": 1}\n'.encode("latin-1"))
        ),
        Case(listed, "text.txt", written("list.jsonl", '{"path": "text.txt", "duration": 3.0}\n')),
        Case(ON + "--do_eval true", "data.eval_data"),
        Case(ON + "--do_eval true --data.eval_data {nowhere}", "{nowhere}"),
        Case(ON + "--do_eval true --data.eval_data {text}", "{text}"),
        Case(ON + "--eval.gates 2", "data.eval_data"),
        Case(ON + "--eval.gates 2 --data.eval_data {nowhere}", "{nowhere}"),
        Case(ON + "--data.code_cache_dir {text}", "{text}"),
        Case(ON + "--data.remote_cache_gb 0", "remote_cache_gb"),
        Case(ON + "--data.remote_cache_dir {text}", "{text}"),
        Case(ON + "--data.train_data memory://nowhere/data.jsonl", "memory://nowhere/data.jsonl"),
        Case(ON + "--data.train_data simplecache::memory://nowhere", "simplecache::memory://nowhere"),
        Case(ON + "--paper_metrics.enable true", "paper_metrics.data_root"),
        Case(ON + "--paper_metrics.enable true --paper_metrics.data_root {nowhere}", "{nowhere}"),
        Case(ON + "--paper_metrics.enable true --paper_metrics.data_root {text}", "{text}"),
        Case(ON + "--paper_metrics.enable true --paper_metrics.data_root {empty} --paper_metrics.tasks swugy", "swugy"),
        *(Case(base(path), path) for path in ("{nowhere}", "{empty}", "{text}")),
        Case(ON, "model.safetensors", _weights_cut),
        Case(ON, "model.safetensors", written("material/base/model.safetensors", b"")),
        Case(ON, "config.json", written("material/base/config.json", "{")),
        Case(ON, "config.json", written("material/base/config.json", "[]")),
        Case(ON, "{base}", written("material/base/config.json", "{}")),
        Case(ON, "config.json", written("material/base/config.json", b"\xff\xfe")),
        Case(ON, "tokenizer", _tokenizer_cut),
        Case(ON, "tokenizer", _tokenizer_of_more),
        Case(ON, "tokenizer", _tokenizer_of_fewer),
        Case(ON + "--moshi_paths.tokenizer_path {nowhere}", "{nowhere}"),
        Case(ON + "--moshi_paths.config_path {binary}", "{binary}"),
        Case(ON + "--moshi_paths.moshi_path {text}", "{text}"),
        Case(ON + "--moshi_paths.mimi_path {empty}", "{empty}"),
        Case(ON, "moshi_paths.mimi_path", _codec_of_another),
        Case(ON, "dialogue_0001.json", written("material/train/data_stereo/dialogue_0001.json", "{")),
        Case(ON, "dialogue_0001.json", written("material/train/data_stereo/dialogue_0001.json", b"\xff\x00")),
        Case(ON, "dialogue_0001.json", written("material/train/data_stereo/dialogue_0001.json", '{"alignments": 4}')),
    ]


def _evaluation() -> list[Case]:
    last = "eval --checkpoint_dir {last} --out {new} --data {eval} "
    values = {
        "--eval_type": ("all",),
        "--batch_size": ("0", "-1", "1.5", "nan"),
        "--dtype": ("float16",),
        "--split": ("train",),
        "--max_items": ("0",),
        "--max_frames": ("0", "-1"),
        "--chunk_frames": ("0",),
        "--text": ("loud",),
        "--user": ("noise",),
        "--ttt": ("of", "reset:0", "reset:", "reset:-1"),
        "--seed": ("x", "1" + 40 * "0", "-1"),
        "--sampled_texts": ("0",),
        "--reference": ("nobody",),
        "--tasks": ("swugy",),
        "--config": ("{nowhere}", "{binary}", "{empty}"),
        "--hf_repo_id": ("{nowhere}", "{empty}", "{text}"),
        "--device": ("mps", "gpu", "''", "cuda:9", "cpu:4x"),
        "--sink": ("-1", "x", "1000000"),
        "--minutes": ("0", "-1", "nan", "inf"),
        "--slots": ("0", "-1", "x"),
        "--answers": ("0", "1.5"),
        "--answer_seconds": ("0", "-1", "nan", "inf"),
        "--judge": ("''",),
        "--server": ("localhost:8998", "''"),
    }
    return [
        *(
            Case(f"{last}{option} {value}", option if value in ("''", "nan") else value)
            for option, some in values.items()
            for value in some
        ),
        *(
            Case(f"eval --checkpoint_dir {path}", path)
            for path in ("{nowhere}", "{empty}", "{text}", "{checkpoints}", "{run}/args.yaml")
        ),
        Case(last + "--tasks ''", "no task"),
        # An empty path is no folder, and not the working folder.
        *(
            Case(f"{last}{option} ''", option)
            for option in ("--out", "--data", "--data_root", "--cache_dir", "--config")
        ),
        *(
            Case(words, "path is empty")
            for words in (
                "eval ls ''",
                "eval report ''",
                "eval versa {empty} --out ''",
                "generate --checkpoint_dir {last} --input {wav} --out ''",
                "generate --checkpoint_dir '' --input {wav} --out {new}.wav",
                "status ''",
                "verify --checkpoint_dir ''",
                "ckpt ls ''",
                "demo --out ''",
                "data check ''",
                "data prepare '' --out {new}",
                "data prepare {folder}/material/train/data_stereo --out ''",
                "data report {data} --out ''",
                "data plant {data} --out '' --hf_repo_id {base}",
                "data make-bench ''",
            )
        ),
        # What no chosen task knows would be recorded and change nothing.
        *(
            Case(last + words, words.split()[0])
            for words in (
                "--minutes 5",
                "--slots 2",
                "--answers 3",
                "--answer_seconds 5",
                "--judge cat",
                "--server http://localhost:8998",
                "--split dev",
                "--sampled_texts 3",
                "--judge cat --tasks spoken_choices --data_root {empty}",
            )
        ),
        Case(last + "--tasks judged_answers --data_root {empty} --judge {nowhere}", "{nowhere}"),
        Case(last + "--tasks judged_answers --data_root {empty} --judge {text}", "{text}"),
        Case(last + "--tasks judged_answers --data_root {empty} --judge 'a \"'", "--judge"),
        Case(last + "--tasks overlap --data_root {empty} --judge {nowhere}.jsonl", "{nowhere}.jsonl"),
        Case(last + "--tasks overlap --data_root {empty}", "v1_5"),
        Case(last + "--tasks examiner --data_root {empty}", "task.json"),
        Case(last + "--tasks examiner --data_root {empty} --sink 4 --server http://localhost:8998", "--sink"),
        Case("eval fetch", "name one data set"),
        Case("eval fetch nowhere --out {new}", "nowhere"),
        Case("eval fetch voicebench", "--out"),
        Case("eval fetch voicebench --out {text}", "{text}"),
        Case("eval fetch voicebench --url http://x/y.zip --out {new}", "name one data set"),
        Case("eval fetch voicebench --sha256 00 --out {new}", "--sha256"),
        Case("eval fetch voicebench --into x --out {new}", "--into"),
        Case("eval fetch librispeech_long --revision main --out {new}", "--revision"),
        Case("eval fetch --url {nowhere} --out {new}", "{nowhere}"),
        Case("eval fetch --url file://{nowhere}.zip --out {new}", "{nowhere}.zip"),
        Case("eval fetch --url file://{text} --sha256 zz --out {new}", "zz"),
        Case("eval fetch --url file://{text} --into ../x --out {new}", "../x"),
        Case("eval fetch --url file://{text} --into /tmp/x --out {new}", "/tmp/x"),
        Case("eval", "checkpoint_dir"),
        Case("eval --checkpoint_dir ''", "checkpoint_dir"),
        Case("eval --checkpoint_dir base --out {new}", "hf_repo_id"),
        Case("eval --checkpoint_dir {last} --out {text}", "{text}"),
        Case("eval --checkpoint_dir {last} --out {new} --data {nowhere}", "{nowhere}"),
        Case("eval --checkpoint_dir {last} --out {new} --data {text}", "{text}"),
        Case(last + "--eval_type paper_metrics --data_root {nowhere}", "{nowhere}"),
        Case(last + "--eval_type paper_metrics --data_root {text}", "{text}"),
        Case(last + "--cache_dir {text} --eval_type paper_metrics --data_root {empty}", "{text}"),
        Case("eval --checkpoint_dir {last} --out {new}", "shard", _bit_flipped),
        *(
            Case(f"eval {words}", names)
            for words, names in (
                ("compare", "compare"),
                ("compare {nowhere} {empty}", "{nowhere}"),
                ("compare {text} {text}", "{text}"),
                ("ls {nowhere}", "{nowhere}"),
                ("ls {text}", "{text}"),
                ("report {nowhere}", "{nowhere}"),
                ("report {empty}", "{empty}"),
                ("versa {nowhere}", "{nowhere}"),
                ("lss", "lss"),
            )
        ),
    ]


def _talking() -> list[Case]:
    talk = "generate --checkpoint_dir {last} --input {wav} --out {new}.wav "
    serve = "serve --checkpoint_dir {last} --static none "
    return [
        Case("generate", "--checkpoint_dir"),
        *(
            Case(f"{talk}{option} {value}", option if value == "''" else value)
            for option, some in {
                "--temp": ("0", "-1", "nan", "inf", "hot"),
                "--top_k": ("0", "-5", "1.5"),
                "--temp_text": ("nan",),
                "--top_k_text": ("0",),
                "--dtype": ("int8",),
                "--device": ("mps", "gpu", "''", "cuda:9"),
                "--seed": ("x", "1" + 40 * "0"),
                "--resume_session": ("{nowhere}", "{empty}", "{text}", "{last}"),
                "--hf_repo_id": ("{nowhere}", "{text}"),
                "--pad_bias": ("nan", "x", "1000000"),
                "--sink": ("-1", "x", "1000000"),
                "--extra_seconds": ("-1", "nan", "inf"),
                "--channel": ("middle",),
                "--slots": ("0", "x"),
                "--prompt_voice": ("{nowhere}", "{text}", "{empty}", "{binary}"),
                "--prompt_text": ("''",),
                "--cfg": ("0", "nan", "2"),
                "--condition": ("description", "=good", "description=good"),
            }.items()
            for value in some
        ),
        Case(talk.replace("--input {wav}", "--say ''"), "--say"),
        Case(talk + "--say hello", "--say"),
        Case(talk + "--greedy --temp 0.7", "--temp"),
        Case(talk + "--greedy --top_k_text 7", "--top_k_text"),
        *(Case(talk.replace("{wav}", path), path) for path in ("{nowhere}", "{empty}", "{text}", "{binary}")),
        *(
            Case(talk.replace("{new}.wav", path), names)
            for path, names in (
                ("{nowhere}/t.wav", "{nowhere}"),
                ("{new}.mp3", "{new}.mp3"),
                ("{text}/t.wav", "{text}"),
                ("{wav}", "{wav}"),
            )
        ),
        *(Case(f"{talk}--save_session {path}/s", path) for path in ("{nowhere}", "{text}")),
        *(Case(talk.replace("{last}", path), path) for path in ("{nowhere}", "{empty}", "{text}")),
        Case(talk, "shard", _bit_flipped),
        *(
            Case(f"{serve}{option} {value}", option)
            for option, some in {
                "--port": ("-1", "70000", "http"),
                "--ssl": ("{nowhere}", "{empty}"),
                "--device": ("''",),
                "--slots": ("0", "-1", "x"),
                "--queue": ("-1", "x"),
                "--max_lag": ("-1", "nan", "x"),
                "--idle_seconds": ("0", "-1", "nan"),
                "--save_seconds": ("0", "-1", "nan"),
                "--sessions": ("{text}", "''"),
                "--token": ("''",),
                "--origin": ("''",),
                "--host": ("''", "0.0.0.0"),
                "--seed": ("x", "-1"),
                "--cfg": ("nan", "2"),
                "--condition": ("description", "description=good"),
                "--temp": ("0",),
                "--pad_bias": ("x",),
                "--sink": ("-1",),
                "--prompt_text": ("''",),
                "--prompt_voice": ("{nowhere}",),
                "--dtype": ("int8",),
            }.items()
            for value in some
        ),
        Case("serve --checkpoint_dir {last} --static {nowhere}", "{nowhere}"),
        Case("serve --checkpoint_dir {last} --static none --ssl {folder}/keys", "cert.pem", _keys_that_are_none),
        Case("serve --checkpoint_dir {nowhere} --static none", "{nowhere}"),
        *(
            Case(f"serve bench --checkpoint_dir {{last}} {option} {value}", option)
            for option, some in {
                "--seconds": ("0", "nan", "-1"),
                "--max_slots": ("0", "x"),
                "--device": ("gpu",),
                "--cfg": ("0", "2"),
                "--dtype": ("int8",),
            }.items()
            for value in some
        ),
        *(Case(f"sessions {command}", "{text}") for command in ("ls --sessions {text}", "rm x --sessions {text}")),
        Case("sessions show nobody --sessions {empty}", "nobody"),
        Case("sessions fork nobody other --sessions {empty}", "nobody"),
        Case("sessions rm ../text --sessions {empty}", "../text"),
    ]


def _checkpoints() -> list[Case]:
    paths = ("{nowhere}", "{text}", "{empty}")
    return [
        *(
            Case(f"ckpt {command} {path}", path)
            for command in ("ls", "show", "verify", "pin", "repair", "prune --last 1")
            for path in paths
        ),
        *(Case(f"status {path}", path) for path in ("{nowhere}", "{text}")),
        *(Case(f"verify --checkpoint_dir {path}", path) for path in paths),
        Case("verify --scale huge", "huge"),
        Case("verify stray", "stray"),
        Case("status --ful", "--full"),
        Case("ckpt diff {last}", "second"),
        Case("ckpt diff {last} {nowhere}", "{nowhere}"),
        Case("ckpt export {last} {run}", "{run}"),
        Case("ckpt export {last} {text}/x", "{text}"),
        Case("ckpt export {nowhere} {new}", "{nowhere}"),
        *(Case("ckpt export {last} {new} --shard-gb " + value, "--shard-gb") for value in ("0", "-1", "nan", "big")),
        *(Case("ckpt prune {run} --last " + value, "--last") for value in ("0", "-1", "1.5", "x")),
        Case("ckpt prune {run}", "--last"),
        Case("ckpt prune {run} --last 1 --every 0", "--every"),
        Case("ckpt prune {run} --last 1 --best -1", "--best"),
        Case("ckpt prune {run} --last 1 --best 1 --metric eval.semantc", "eval.semantc"),
        Case("ckpt prune {last} --last 1", "{checkpoints}"),
        Case("ckpt pin {run}", "{run}"),
        Case("ckpt bench {nowhere}", "{nowhere}"),
        *(
            Case(f"ckpt bench {{empty}} {option} {value}", option)
            for option, value in (("--gigabytes", "0"), ("--gigabytes", "nan"), ("--rounds", "0"), ("--many", "-1"))
        ),
        Case("ckpt lss", "ls"),
        Case("ckpt ls {run} --jsn", "--json"),
    ]


def _data() -> list[Case]:
    return [
        *(Case(f"data check {path}", path) for path in ("{nowhere}", "{empty}")),
        *(Case(f"data report {path} --out {{new}}.html", path) for path in ("{nowhere}", "{empty}")),
        Case("data report {data} --out {new}.html --clips 0", "--clips"),
        Case("data report {data} --out {new}.html --tokenizer {text}", "--tokenizer"),
        Case("data check {data} --tokenizer {nowhere}", "--tokenizer"),
        *(
            Case("data prepare {folder}/material/train/data_stereo --out {new} --separate " + options, "--separate")
            for options in ("", "--moshi_label A --mono_mix", "--moshi_label A --channels 1")
        ),
        *(Case(f"data annotate {path}", path) for path in ("{nowhere}", "{text}", "{empty}")),
        *(
            Case(f"data annotate {{folder}}/material/train/data_stereo --engine pocketsphinx {option} {value}", option)
            for option, some in {
                "--shard": ("0/2", "x"),
                "--channels": ("0", "1,1", "x"),
                "--model": ("small",),
                "--device": ("cuda", "mps"),
                "--language": ("de",),
                "--engine": ("siri",),
                "--ray": ("127.0.0.1:1", "--shard 1/2"),
            }.items()
            for value in some
        ),
        *(Case(f"data prepare {path} --out {{new}}", path) for path in ("{nowhere}", "{text}", "{empty}")),
        Case("data prepare {folder}/material/train/data_stereo", "--out"),
        Case("data prepare {folder}/material/train/data_stereo --out {new} --hf_split train", "--hf_split"),
        Case("data prepare {folder}/material/train/data_stereo --out {new} --audio_column audio", "--audio_column"),
        Case("data prepare {folder}/material --out {new} --transcript_column text --separate", "--separate"),
        Case("data prepare {folder}/material/train/data_stereo --out {text}", "{text}"),
        Case("data prepare {folder}/material/train/data_stereo --out {run}", "{run}"),
        Case("data prepare {folder}/material/train/data_stereo --out {run} --overwrite", "{run}"),
        *(
            Case(
                "data prepare {folder}/material/train/data_stereo --out {new} --eval_fraction " + value, "eval_fraction"
            )
            for value in ("1", "-0.1", "nan", "half")
        ),
        *(
            Case(f"data prepare {{folder}}/material/train/data_stereo --out {{new}} {option} {value}", option)
            for option, some in {
                "--moshi_speaker": ("C",),
                "--channels": ("0,1", "1,1", "left,right", "''", "1,2,3"),
                "--pair": ("''", "call.wav", "'{{agent,customer}}'", "'/etc/*_{{a,b}}.wav'", "'*_{{a,b,c}}.wav'"),
                "--max_repaired": ("-1", "2", "nan", "x"),
                "--normalise": ("nan", "5", "loud", "-200"),
                "--align": ("sphinx",),
                "--jobs": ("0", "-1", "x"),
                "--ray": ("calls", "127.0.0.1:1", "--jobs 2"),
            }.items()
            for value in some
        ),
        *(
            Case(f"data plant {{data}} --out {{new}} --hf_repo_id {{base}} {option} {value}", option)
            for option, some in {
                "--repeats": ("-1", "x"),
                "--facts": ("-1", "x"),
                "--passage": ("0:1", "3:2", "x", "nan:2", "1"),
                "--distance": ("0:1", "3:2", "x", "inf:2"),
                "--seed": ("-1", "x"),
                "--device": ("mps",),
            }.items()
            for value in some
        ),
        Case("data plant {data} --out {text} --hf_repo_id {base}", "{text}"),
        Case("data plant {data} --out {run} --hf_repo_id {base}", "{run}"),
        Case("data plant {data} --out {new} --hf_repo_id {nowhere}", "{nowhere}"),
        *(
            Case(f"data encode {{data}} --hf_repo_id {{base}} --shard {value}", "--shard")
            for value in ("0/2", "3/2", "x", "1/0")
        ),
        *(Case(f"data encode {{data}} --hf_repo_id {{base}} --ray {value}", "--ray") for value in ("x", "--shard 1/2")),
        Case("data encode {data} --hf_repo_id {nowhere}", "{nowhere}"),
        *(Case(f"data check {{data}} --remote_cache_gb {value}", "remote_cache_gb") for value in ("0", "nan", "x")),
        Case("data check s4://nowhere/data.jsonl", "s4"),
        Case("data prepare memory://nowhere --out {new} --ray", "memory://nowhere"),
        Case("data check memory://nowhere --remote_cache_dir {text}", "{text}"),
        *(Case(f"data where {{run}} --step {value}", "step") for value in ("-1", "x", "99999")),
        *(Case(f"data where {path} --step 1", path) for path in ("{nowhere}", "{text}", "{empty}")),
        *(
            Case(f"data make-bench {words}", names)
            for words, names in (
                ("{text}", "{text} is a file: name a folder"),
                ("{new} --size huge", "huge"),
                ("{new} --seed x", "--seed"),
                ("{new} --train_data {nowhere}", "{nowhere}"),
                ("{new} --train_data {binary}", "{binary}"),
            )
        ),
        Case("data chek x", "chek"),
        Case("demo --out {text}", "{text}"),
        Case("demo --fast", "--fast"),
        Case("trian", "train"),
    ]


def _weights_cut(place: Place) -> None:
    path = place.folder / "material/base/model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def _tokenizer_file(place: Place) -> Path:
    (path,) = (place.folder / "material/base").glob("*.model")
    return path


def _tokenizer_cut(place: Place) -> None:
    path = _tokenizer_file(place)
    path.write_bytes(path.read_bytes()[:200])


def _tokenizer_of(place: Place, difference: int) -> None:
    import sentencepiece

    path = _tokenizer_file(place)
    pieces = sentencepiece.SentencePieceProcessor(str(path)).vocab_size() + difference
    words = place.folder / "words.txt"
    words.write_text("\n".join(f"word{i} {'abcdefghijklmnopqrstuvwxyz'[i % 26 :]} house{i * 7}" for i in range(2000)))
    sentencepiece.SentencePieceTrainer.train(
        input=str(words),
        model_prefix=str(path.with_suffix("")),
        vocab_size=pieces,
        minloglevel=2,
        hard_vocab_limit=False,
        num_threads=1,
    )
    words.unlink()
    path.with_suffix(".vocab").unlink()


def _tokenizer_of_more(place: Place) -> None:
    _tokenizer_of(place, +20)


def _tokenizer_of_fewer(place: Place) -> None:
    _tokenizer_of(place, -20)


def _codec_of_another(place: Place) -> None:
    """The model has more audio codes than the codec."""
    path = place.folder / "material/base/config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "card": 256}))


def _bit_flipped(place: Place) -> None:
    path = place.run / "checkpoints/checkpoint_000006/resume/shard_00000_of_00001.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def _keys_that_are_none(place: Place) -> None:
    for name in ("cert.pem", "key.pem"):
        written(f"keys/{name}", "no key")(place)


CASES: dict[str, list[Case]] = {
    "training: options": _options(),
    "training: configuration files": _configurations(),
    "training: run folders": _run_folders(),
    "training: data and base model": _inputs(),
    "evaluation": _evaluation(),
    "talking": _talking(),
    "checkpoints": _checkpoints(),
    "data and others": _data(),
}
