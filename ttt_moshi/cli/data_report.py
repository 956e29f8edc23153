"""`ttt-moshi data report`: a page about a data set"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ttt_moshi.cli.arguments import Parser, named
from ttt_moshi.cli.data_choices import remote_cache_options, use_remote_cache
from ttt_moshi.cli.data_shown import counted, progress
from ttt_moshi.errors import UserError

if TYPE_CHECKING:
    from ttt_moshi.data.tokenizer import Tokenizer


def run_report(argv: list[str]) -> int:
    """Exit status 0 the data set has no problems, 1 it has some, which are on the page."""
    parser = Parser(
        prog="ttt-moshi data report",
        description="Write a page about a data set: hours, who speaks, overlap, silence, words a minute, pauses "
        "between turns, levels, what was found and repaired, and parts to listen to, with their waveforms, words and "
        "tokens. The page needs nothing else.",
    )
    parser.add_argument("path", type=named, help="jsonl file or folder of them; several separated by commas")
    parser.add_argument("--out", type=named, required=True, help="page to write, such as page.html, or its URL")
    parser.add_argument("--clips", type=int, default=10, help="parts to listen to (default: %(default)s)")
    parser.add_argument("--tokenizer", type=Path, help="SentencePiece model, to show the tokens as the model gets them")
    parser.add_argument(
        "--no_whitespace_before_word", action="store_true", help="as `data.no_whitespace_before_word` in training"
    )
    remote_cache_options(parser)
    args = parser.parse_args(argv)
    use_remote_cache(args)
    if args.clips < 1:
        raise UserError(f"`--clips` must be at least 1, got {args.clips}")
    tokenizer = None if args.tokenizer is None else open_tokenizer(args.tokenizer)
    from ttt_moshi.data.interleaver import TextStyle
    from ttt_moshi.data.remote import located_out
    from ttt_moshi.data.report import write_report

    out = located_out(args.out)
    if out.is_dir() or args.out.endswith("/"):
        raise UserError(f"`--out {args.out}` is a folder; name a page in it")
    style = TextStyle(no_whitespace_before_word=args.no_whitespace_before_word)
    with progress("reading") as on_file:
        report = write_report(args.path, out, tokenizer, style, args.clips, on_file)
    print(f"{args.out}: {counted(report.recordings, 'recording')}, {counted(len(report.problems), 'problem')}")
    return 1 if report.problems else 0


def open_tokenizer(path: Path) -> Tokenizer:
    """The SentencePiece model in a file."""
    import sentencepiece

    if not path.is_file():
        raise UserError(f"`--tokenizer`: no SentencePiece model at {path}")
    try:
        return sentencepiece.SentencePieceProcessor(model_proto=path.read_bytes())
    except (RuntimeError, OSError) as error:
        raise UserError(f"`--tokenizer`: {path} is not a SentencePiece model that can be read") from error
