"""check and prepare data sets"""

from __future__ import annotations

from pathlib import Path

from ttt_moshi.cli.arguments import Parser, seed
from ttt_moshi.cli.data_annotate import run_annotate
from ttt_moshi.cli.data_check import run_check
from ttt_moshi.cli.data_choices import disk_path
from ttt_moshi.cli.data_encode import run_encode
from ttt_moshi.cli.data_plant import run_plant
from ttt_moshi.cli.data_prepare import run_prepare
from ttt_moshi.cli.data_report import run_report
from ttt_moshi.cli.data_shown import progress
from ttt_moshi.errors import UserError

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
