"""check and prepare data sets"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from ttt_moshi.cli.arguments import Parser, named, seed
from ttt_moshi.cli.data_annotate import run_annotate
from ttt_moshi.cli.data_choices import (
    add_ray,
    channels_chosen,
    cluster_chosen,
    disk_path,
    remote_cache_options,
    shard_chosen,
    use_remote_cache,
)
from ttt_moshi.cli.data_report import open_tokenizer, run_report
from ttt_moshi.cli.data_shown import clock, counted, encoding, progress, shown
from ttt_moshi.config import ModelPaths
from ttt_moshi.errors import UserError
from ttt_moshi.extras import need

if TYPE_CHECKING:
    from ttt_moshi.data import Codec, Corpus
    from ttt_moshi.data.check import Finding, Report
    from ttt_moshi.data.cluster import Cluster
    from ttt_moshi.data.prepare import Outcome

BASE_MODEL = ModelPaths().hf_repo_id
MOST_PASSAGES = 10_000
"""that `data plant` looks for places for in a recording: beyond what a day of audio could hold"""
BASE_MODEL_TOLD = "the base model, or its folder (default: %(default)s)"

USAGE = """usage: ttt-moshi data COMMAND [options]

commands:
  annotate    write transcripts for recordings that have none
  check       say what is wrong with a data set, file by file
  prepare     turn a folder of recordings into a data set
  report      write a page about a data set, with parts of it to listen to
  encode      make the codes of a data set, one shard of it at a time
  plant       let passages return in a data set, so that there is something to remember
  where       say what a step of a run heard
  make-bench  make mini benchmarks in the layouts of the official ones

`ttt-moshi data COMMAND --help` explains one command."""


def main(argv: list[str]) -> int:
    """Runs a command; exit status 0 all is well, 1 something is wrong with some files."""
    if not argv or argv[0] in ("-h", "--help"):
        print(USAGE)
        return 0 if argv else 2
    commands = {
        "annotate": run_annotate,
        "check": run_check,
        "prepare": run_prepare,
        "report": run_report,
        "encode": run_encode,
        "plant": run_plant,
        "where": run_where,
        "make-bench": run_make_bench,
    }
    if argv[0] not in commands:
        raise UserError(f"unknown command `data {argv[0]}`; there are {', '.join(commands)}")
    return commands[argv[0]](argv[1:])


def run_check(argv: list[str]) -> int:
    parser = Parser(prog="ttt-moshi data check", description="Say what is wrong with a data set, file by file.")
    parser.add_argument(
        "path",
        type=named,
        help="jsonl file or folder of them, on a disk or at a URL; several separated by commas are checked together",
    )
    parser.add_argument("--json", action="store_true", help="print the findings as JSON")
    parser.add_argument("--tokenizer", type=Path, help="SentencePiece model whose unknown words and bytes are counted")
    parser.add_argument(
        "--no_whitespace_before_word", action="store_true", help="as `data.no_whitespace_before_word` in training"
    )
    remote_cache_options(parser)
    args = parser.parse_args(argv)
    use_remote_cache(args)
    tokenizer = None if args.tokenizer is None else open_tokenizer(args.tokenizer)
    from ttt_moshi.data.check import check_data  # PyTorch is imported only now: --help must not wait for it
    from ttt_moshi.data.interleaver import TextStyle

    style = TextStyle(no_whitespace_before_word=args.no_whitespace_before_word)
    with progress("checking") as on_file:
        report = check_data(args.path, on_file, tokenizer=tokenizer, style=style)
    if args.json:
        print(json.dumps(_report_dict(report), indent=1, ensure_ascii=False))
    else:
        _print_report(report)
    return 1 if report.problems else 0


def run_prepare(argv: list[str]) -> int:
    parser = Parser(
        prog="ttt-moshi data prepare",
        description="Turn a folder of recordings (wav, flac, mp3, m4a, opus, webm, sph, ...; any rate) with "
        "transcripts beside them (json, TextGrid, eaf, ctm, rttm, vtt, srt, txt) into a data set. The folder itself is "
        "not changed. An interrupted call is continued by the same command.",
    )
    parser.add_argument("source", type=named, help="folder of recordings, or its URL, searched with its subfolders")
    parser.add_argument("--out", type=named, required=True, help="folder to make, or its URL")
    parser.add_argument(
        "--moshi_speaker", choices=("A", "B"), default="A", help="who becomes Moshi: A the left channel, B the right"
    )
    parser.add_argument("--moshi_label", help="Moshi's name in transcripts that have it, such as Agent")
    parser.add_argument(
        "--channels", help="which channels are Moshi's and the user's, from 1: `3,1`, or `2` for no user"
    )
    parser.add_argument("--pair", help="names of calls in two files, Moshi's first: 'call_*_{agent,customer}.wav'")
    parser.add_argument("--mono_mix", action="store_true", help="take mono recordings of two speakers too")
    parser.add_argument(
        "--separate", action="store_true", help="make two channels of mono calls, by a diarizer's NAME.rttm beside them"
    )
    parser.add_argument(
        "--max_repaired", type=float, default=0.1,
        help="share of a transcript's words that may lack a usable time, 0 to 1 (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--normalise", type=float, metavar="LUFS",
        help="bring each channel to this loudness (ITU-R BS.1770), such as -23; by default levels stay as they are",
    )  # fmt: skip
    parser.add_argument(
        "--align",
        choices=("pocketsphinx",),
        help="find English words without times by their sound, not by their letters",
    )
    parser.add_argument(
        "--eval_fraction", type=float, default=0.0, help="share of the recordings kept apart for evaluation, 0 to 1"
    )
    parser.add_argument(
        "--transcript_column",
        help="SOURCE is a Hugging Face data set (Parquet files, or saved): its column of texts or words, `-` for none",
    )
    parser.add_argument("--audio_column", help="its column of recordings (default: the only one that holds audio)")
    parser.add_argument("--hf_split", help="which part of it (default: the only one)")
    parser.add_argument("--jobs", type=int, default=1, help="recordings prepared at once (default: %(default)s)")
    add_ray(parser)
    parser.add_argument("--overwrite", action="store_true", help="replace a data set that this command made before")
    remote_cache_options(parser)
    args = parser.parse_args(argv)
    use_remote_cache(args)
    if not 0 <= args.eval_fraction < 1:
        raise UserError(f"`--eval_fraction` must be at least 0 and below 1, got {args.eval_fraction}")
    if not 0 <= args.max_repaired <= 1:
        raise UserError(f"`--max_repaired` must be from 0 to 1, got {args.max_repaired}")
    if args.normalise is not None and not -60 <= args.normalise <= -10:
        raise UserError(f"`--normalise` is a loudness from -60 to -10 LUFS, got {args.normalise}")
    if args.jobs < 1:
        raise UserError(f"`--jobs` must be at least 1, got {args.jobs}")
    channels = None if args.channels is None else channels_chosen(args.channels)
    if channels is not None and (args.moshi_speaker == "B" or args.pair is not None):
        raise UserError("`--channels` says who is Moshi: leave `--moshi_speaker` and `--pair` out")
    for option, value in {"--audio_column": args.audio_column, "--hf_split": args.hf_split}.items():
        if value is not None and args.transcript_column is None:
            raise UserError(f"`{option}` is of a Hugging Face data set: `--transcript_column` names its transcripts")
    if args.transcript_column is not None and (args.pair or args.separate):
        raise UserError("`--pair` and `--separate` go by files beside one another: leave `--transcript_column` out")
    from ttt_moshi.data.on_cluster import prepare_over
    from ttt_moshi.data.prepare import prepare
    from ttt_moshi.data.prepare_one import Choices
    from ttt_moshi.data.remote import located, located_out
    from ttt_moshi.data.rows import Rows
    from ttt_moshi.data.separate import require_model

    if args.separate and (args.moshi_label is None or args.mono_mix or args.pair or channels):
        raise UserError(
            "`--separate` needs `--moshi_label`, which of the diarizer's speakers is Moshi, and goes with none of "
            "`--mono_mix`, `--pair` and `--channels`"
        )
    if args.align is not None:
        need(args.align, f"`--align {args.align}`")
    if args.separate:
        require_model()
    choices = Choices(
        moshi_speaker=args.moshi_speaker,
        moshi_label=args.moshi_label,
        channels=channels,
        mono_mix=args.mono_mix,
        max_repaired=args.max_repaired,
        normalise=args.normalise,
        separate=args.separate,
        align=args.align,
    )
    source: Path | Rows = located(args.source)
    if args.transcript_column is not None:
        source = Rows(located(args.source), args.transcript_column, args.audio_column, args.hf_split)
    with cluster_chosen(args, "jobs") as cluster, progress("preparing") as on_file:
        result = prepare(
            source,
            located_out(args.out),
            choices,
            pair=args.pair,
            eval_fraction=args.eval_fraction,
            overwrite=args.overwrite,
            jobs=args.jobs,
            run=None if cluster is None else partial(prepare_over, cluster),
            on_file=on_file,
        )
    for outcome in result.outcomes:
        print(shown(_outcome_line(outcome)))
    if result.passed_over:
        kinds = ", ".join(f"{count} {suffix}" for suffix, count in result.passed_over.items())
        print(shown(f"passed over, neither audio nor the transcript of one: {kinds}"))
    used = [outcome for outcome in result.outcomes if outcome.path]
    seconds, words = sum(o.seconds for o in used), sum(o.words for o in used)
    print(f"\n{counted(len(used), 'recording')}, {clock(seconds)}, {counted(words, 'word')} of the agent")
    print(f"  {_rule(args.moshi_speaker, channels, args.pair)}")
    for name, count in result.lists.items():
        print(f"  {args.out.rstrip('/')}/{name}: {counted(count, 'recording')}")
    again = sum(outcome.passing for outcome in result.outcomes)
    if again:
        print(
            f"  {counted(again, 'recording')} left out for what may pass (memory, a disk or a store that did not "
            "answer): the same command with `--overwrite` tries all of them anew"
        )
    return 0 if len(used) == len(result.outcomes) else 1


def _rule(moshi_speaker: str, channels: tuple[int, ...] | None, pair: str | None) -> str:
    """Which channel is whom."""
    if pair is not None:
        return "of a pair the first file is Moshi, the second the user"
    if channels is not None:
        user = f"channel {channels[1]} the user" if len(channels) == 2 else "the user is silent"
        return f"channel {channels[0]} is Moshi, {user}"
    side = "right" if moshi_speaker == "B" else "left"
    return f"the {side} channel is Moshi, the other one the user; of mono recordings all is Moshi"


def run_encode(argv: list[str]) -> int:
    parser = Parser(
        prog="ttt-moshi data encode",
        description="Make the Mimi codes of a data set before training, so that no training waits for them: on one "
        "machine, or one shard on each of several. What is there is not made again.",
    )
    parser.add_argument("path", type=named, help="jsonl file or folder of them; several separated by commas")
    parser.add_argument("--hf_repo_id", default=BASE_MODEL, help=BASE_MODEL_TOLD)
    parser.add_argument("--cache_dir", type=Path, help="folder of the codes, as `data.code_cache_dir` in training")
    parser.add_argument("--shard", default="1/1", help="which part, such as 2/8; parts are alike long")
    parser.add_argument("--device", default="auto", help="cpu, cuda, cuda:N or auto (default: %(default)s)")
    parser.add_argument(
        "--out", type=named, help="folder, or its URL, for a data set of codes alone, which needs no audio any more"
    )
    parser.add_argument(
        "--no_whitespace_before_word", action="store_true",
        help="as `data.no_whitespace_before_word` in training: how the text in OUT is written",
    )  # fmt: skip
    parser.add_argument(
        "--tar",
        action="store_true",
        help="in OUT one tar file for each shard, as webdataset reads, not a file a recording",
    )
    add_ray(parser)
    remote_cache_options(parser)
    args = parser.parse_args(argv)
    use_remote_cache(args)
    number, shards = shard_chosen(args.shard)
    if args.tar and args.out is None:
        raise UserError("`--tar` says how `--out` is written: name a folder")
    from ttt_moshi.data.addresses import readable
    from ttt_moshi.data.pretokenize import LIST, pretokenize, require_same_shards
    from ttt_moshi.data.remote import is_there, located_out
    from ttt_moshi.data.sources import require_apart

    out = None if args.out is None else located_out(args.out)
    if out is not None and is_there(out):
        raise UserError(f"`--out {args.out}` is a file; name a folder")
    if out is not None:  # before hours of work
        require_apart(args.path, out, LIST)
        require_same_shards(out, shards)

    with cluster_chosen(args, "shard") as cluster:
        told = None if cluster is None else _encode_over(cluster, args)
    corpus = _corpus(
        args.path, args.hf_repo_id, args.cache_dir, args.device, args.no_whitespace_before_word, (number - 1, shards)
    )
    there = corpus.frames_in_cache()
    with encoding() as (on_recording, summary):
        if out is None:
            corpus.encode_all(on_recording=on_recording)
            written = None
        else:
            written = pretokenize(corpus, out, on_recording, tar=args.tar)
    print(f"shard {number} of {shards}: {told or summary(there)}")
    if written is not None:
        print(f"{readable(str(written))}: {counted(len(corpus.recordings), 'recording')}, codes alone")
    return 0


def _encode_over(cluster: Cluster, args: argparse.Namespace) -> str | None:
    """By every machine of a cluster, so that this one finds it done; what came of it, for people."""
    from ttt_moshi.data import names_audio
    from ttt_moshi.data.on_cluster import encode_over

    if not names_audio(args.path):
        return None
    device = cluster.device(args.device)
    opened = partial(_open_codec, args.hf_repo_id, device)
    with encoding() as (on_recording, summary):
        there = encode_over(cluster, args.path, opened, args.cache_dir, device=device, on_recording=on_recording)
        return summary(there)


def _open_codec(hf_repo_id: str, device: str) -> Codec:
    """That of a base model."""
    from ttt_moshi.data import Codec
    from ttt_moshi.moshi import resolve_model
    from ttt_moshi.moshi.paths import audio_codec

    info = resolve_model(ModelPaths(hf_repo_id=hf_repo_id))
    return Codec(audio_codec(info, device), info.mimi_config)


def _corpus(
    path: str,
    hf_repo_id: str,
    cache_dir: Path | None,
    device: str,
    unspaced: bool = False,
    shard: tuple[int, int] = (0, 1),
) -> Corpus:
    """A data set, or a shard of it, to be read as by a base model."""
    from ttt_moshi.data import Alphabet, Codec, Corpus, names_audio
    from ttt_moshi.data.interleaver import TextStyle
    from ttt_moshi.moshi import resolve_model, writing_delay
    from ttt_moshi.moshi.device import choose_device
    from ttt_moshi.moshi.loading import geometry
    from ttt_moshi.moshi.paths import audio_codec, text_tokenizer

    chosen = choose_device(device)
    audio = names_audio(path, shard)  # first: the model may be a download
    info = resolve_model(ModelPaths(hf_repo_id=hf_repo_id))
    shape = geometry(info.lm_config)
    alphabet = Alphabet.of_model(shape)
    codec = Codec(audio_codec(info, chosen), info.mimi_config) if audio else None
    tokenizer = text_tokenizer(info) if audio else None
    style = TextStyle.of_model(shape, unspaced, writing_delay(info.raw_config))
    return Corpus(path, codec, tokenizer, 1.0, cache_dir, alphabet=alphabet, style=style, shard=shard)


def run_plant(argv: list[str]) -> int:
    parser = Parser(
        prog="ttt-moshi data plant",
        description="Copy a data set as pre-tokenized recordings in which passages return, so that there is something "
        "to remember: repeats say a passage of the recording once more, facts come from another recording and are said "
        "twice. OUT/planted.json says what returns when.",
    )
    parser.add_argument("path", type=named, help="jsonl file or folder of them; several separated by commas")
    parser.add_argument("--out", type=disk_path, required=True, help="folder to make")
    parser.add_argument("--repeats", type=int, default=2, help="in each recording (default: %(default)s)")
    parser.add_argument("--facts", type=int, default=2, help="in each recording (default: %(default)s)")
    parser.add_argument("--passage", default="2:6", help="its seconds, from least to greatest (default: %(default)s)")
    parser.add_argument(
        "--distance", default="60:600",
        help="seconds from a passage to its return, beyond the window that is trained (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument("--seed", type=seed, default=0, help="seed of every random choice (default: %(default)s)")
    parser.add_argument("--hf_repo_id", default=BASE_MODEL, help=BASE_MODEL_TOLD)
    parser.add_argument("--cache_dir", type=Path, help="folder of the codes, as `data.code_cache_dir` in training")
    parser.add_argument("--device", default="auto", help="cpu, cuda, cuda:N or auto (default: %(default)s)")
    parser.add_argument(
        "--no_whitespace_before_word", action="store_true", help="as `data.no_whitespace_before_word` in training"
    )
    remote_cache_options(parser)
    args = parser.parse_args(argv)
    use_remote_cache(args)
    if min(args.repeats, args.facts) < 0 or args.repeats + args.facts == 0:
        raise UserError(f"nothing to plant: `--repeats {args.repeats}` and `--facts {args.facts}`")
    for name in ("repeats", "facts"):
        if getattr(args, name) > MOST_PASSAGES:
            raise UserError(f"`--{name}` counts passages in each recording, at most {MOST_PASSAGES:,}")
    passage, distance = _frames("--passage", args.passage), _frames("--distance", args.distance)
    from ttt_moshi.data.plant import Plan, plant
    from ttt_moshi.data.pretokenize import LIST
    from ttt_moshi.data.sources import require_apart
    from ttt_moshi.frames import frames_to_seconds

    require_apart(args.path, args.out, LIST)
    corpus = _corpus(args.path, args.hf_repo_id, args.cache_dir, args.device, args.no_whitespace_before_word)
    with progress("planting") as on_recording:
        found = plant(corpus, args.out, Plan(args.repeats, args.facts, passage, distance), args.seed, on_recording)
    counts = {kind: sum(one.kind == kind for one in found.planted) for kind in ("repeat", "fact")}
    before, after = frames_to_seconds(found.frames_before), frames_to_seconds(found.frames)
    print(
        f"{args.out / 'data.jsonl'}: {counted(found.recordings, 'recording')}, {clock(after)} (before: "
        f"{clock(before)}), with {counted(counts['repeat'], 'repeat')} and {counted(counts['fact'], 'fact')}"
    )
    missing = found.recordings * (args.repeats + args.facts) - len(found.planted)
    if missing:
        print(f"{counted(missing, 'passage')} found no place: recordings too short, or without pauses where to cut")
    return 0


def _frames(flag: str, text: str) -> tuple[int, int]:
    """`2:6` seconds as frames."""
    from ttt_moshi.frames import seconds_to_frames

    try:
        low, high = (float(part) for part in text.split(":"))
    except ValueError:
        low = high = 0.0
    if not 0 < low <= high <= 86_400:
        raise UserError(f"`{flag}` is seconds from least to greatest, such as 2:6; got {text!r}")
    return seconds_to_frames(low), seconds_to_frames(high)


def run_where(argv: list[str]) -> int:
    parser = Parser(
        prog="ttt-moshi data where",
        description="Say which seconds of which recordings a step of a run heard, and Moshi's words in them. Needs the "
        "run's folder and the recordings, neither its model nor a checkpoint.",
    )
    parser.add_argument("run_dir", type=Path, help="folder of the run")
    parser.add_argument("--step", type=int, required=True, help="the step, from 1, as in the metrics")
    args = parser.parse_args(argv)
    from ttt_moshi.data.sources import spoken_text
    from ttt_moshi.training.step import digest
    from ttt_moshi.training.where import clips_of_run, recorded_digest

    clips = clips_of_run(args.run_dir, args.step)
    recorded = recorded_digest(args.run_dir, args.step)
    if recorded is not None and recorded != digest([clip.id for clip in clips]):
        raise UserError(
            f"the recordings are not those that step {args.step} of {args.run_dir} heard: files or lists have changed"
        )
    for clip in clips:
        text = "pre-tokenized" if clip.recording.encoded else spoken_text(clip.recording, clip.start, clip.end)
        print(f"{clip.text()}: {'no transcript' if text is None else text or 'silent'}")
    if recorded is None:
        print(f"the run has no metrics of step {args.step}, so nothing proves that these are its recordings")
    return 0


def run_make_bench(argv: list[str]) -> int:
    parser = Parser(
        prog="ttt-moshi data make-bench",
        description="Make mini benchmarks from generated speech, in the layouts of sLM21 (sWUGGY, sBLIMP), spoken and "
        "topic StoryCloze, SALMon, Libri-Light and LibriSpeech-Long, with spoken needles and repeats at set distances.",
    )
    parser.add_argument("out", type=disk_path, help="folder to make")
    sizes = ("tiny", "mini")
    parser.add_argument("--size", choices=sizes, default="mini", help="how much to make (default: %(default)s)")
    parser.add_argument("--seed", type=seed, default=0, help="seed of every random choice (default: %(default)s)")
    parser.add_argument(
        "--train_data",
        type=Path,
        help="jsonl file of training dialogues, whose words count as known (default: those of `ttt-moshi demo`)",
    )
    args = parser.parse_args(argv)
    if args.out.exists() and not args.out.is_dir():
        raise UserError(f"{args.out} is a file: name a folder to make")
    from ttt_moshi.synthetic.benchmarks import make_bench

    with progress("making") as on_part:
        items = make_bench(args.out, args.train_data, args.seed, args.size, on_part)
    for name, count in items.items():
        print(f"{count:7,}  {args.out / name}")
    return 0


def _outcome_line(outcome: Outcome) -> str:
    if outcome.left_out:
        return f"left out  {outcome.source}: {outcome.left_out}"
    words = {
        "given": f"{counted(outcome.words, 'word')} of the agent",
        "approximate": f"{counted(outcome.words, 'word')} of the agent at approximate times",
        "none": "no words",
    }[outcome.word_times]
    return f"ok        {outcome.source}: {outcome.seconds:.2f} s, {words}; {'; '.join(outcome.done)}"


def _print_report(report: Report) -> None:
    where = ""
    for finding in sorted(report.findings, key=lambda finding: finding.where):
        if finding.where != where:
            where = finding.where
            print(shown(where))
        print(shown(f"  {_mark(finding)}  {finding.message}"))
    if report.findings:
        print()
    summary = f"{counted(report.recordings, 'recording')}, {clock(report.seconds)}, "
    summary += f"{_words(report)}: "
    notes = len(report.findings) - len(report.problems)
    problems = counted(len(report.problems), "problem") if report.problems else "no problems"
    print(f"{summary}{problems}, {counted(notes, 'note')}")


def _words(report: Report) -> str:
    """How many there are, as far as they are counted."""
    if report.pretokenized == report.recordings:
        return "words not counted in codes"
    without = f" (without {counted(report.pretokenized, 'recording')} of codes)" if report.pretokenized else ""
    return f"{counted(report.words, 'word')} of the agent{without}"


def _mark(finding: Finding) -> str:
    return {"problem": "PROBLEM", "note": "note   "}[finding.level]


def _report_dict(report: Report) -> dict[str, object]:
    return {
        "recordings": report.recordings,
        "seconds": report.seconds,
        "words": report.words,
        "pretokenized": report.pretokenized,
        "problems": len(report.problems),
        "findings": [asdict(finding) for finding in report.findings],
    }
