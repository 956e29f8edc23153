"""`ttt-moshi data check`: what is wrong with a data set."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from ttt_moshi.cli.arguments import Parser, named
from ttt_moshi.cli.data_choices import remote_cache_options, use_remote_cache
from ttt_moshi.cli.data_report import open_tokenizer
from ttt_moshi.cli.data_shown import clock, counted, progress, shown

if TYPE_CHECKING:
    from ttt_moshi.data.check import Finding, Report


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
