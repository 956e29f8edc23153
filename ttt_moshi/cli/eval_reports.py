"""Evaluations that are there already: list them, compare them, write their reports, hand them to other tools."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.padding import Padding

from ttt_moshi.cli.arguments import Parser
from ttt_moshi.cli.eval_fetch import main as fetch
from ttt_moshi.errors import UserError


def main(argv: list[str]) -> int:
    """`ttt-moshi eval ls|compare|report|versa|lm-eval|fetch`; status 1: an incomplete comparison, or nothing found."""
    console = Console(highlight=False)
    command, rest = argv[0], argv[1:]
    commands = {
        "ls": _ls,
        "compare": _compare,
        "report": _report,
        "versa": _versa,
        "lm-eval": _lm_eval,
        "fetch": fetch,
    }
    return commands[command](rest, console)


def _ls(argv: list[str], console: Console) -> int:
    parser = Parser(prog="ttt-moshi eval ls", description="Lists the evaluations below a folder.")
    parser.add_argument("folder", nargs="?", type=Path, default=Path(), help="default: the working folder")
    folder = parser.parse_args(argv).folder
    from ttt_moshi.evaluation import EvaluationError, read_results
    from ttt_moshi.evaluation.results import MADE, WHOLE

    if not folder.is_dir():
        raise UserError(f"there is no folder {folder}")
    found = sorted(path for path in folder.glob("**/results.json") if path.parent.name not in (MADE, WHOLE))
    problems = []
    for path in found:
        try:
            results = read_results(path)
        except EvaluationError as error:
            problems.append(str(error))
            continue
        # Names and numbers of many tasks: a table would squeeze them at 80 columns.
        checkpoint = results.checkpoint
        console.print(f"[bold]{escape(str(path.parent))}[/]", soft_wrap=True)
        console.print(f"  step {checkpoint['step']}, state {checkpoint['state_id'][:12]}")
        done = [f"{n} {t['value']:.4g}" for n, t in results.tasks.items() if t["status"] == "ok"]
        for words, names in (("measured", done), ("not run", results.skipped)):
            if names:
                console.print(Padding(f"{words}: {', '.join(names)}", (0, 0, 0, 2)))
    if not found:
        console.print(f"no evaluation below {folder.absolute()}", soft_wrap=True)
        return 1
    for problem in problems:
        console.print(problem, style="yellow", soft_wrap=True, markup=False)
    return 1 if problems else 0


def _compare(argv: list[str], console: Console) -> int:
    parser = Parser(prog="ttt-moshi eval compare", description="Compares evaluations with the first one, item by item.")
    parser.add_argument("folders", nargs="+", type=Path, help="folders with a results.json; the first is the reference")
    parser.add_argument(
        "--out", type=Path, default=Path("comparison"), help="folder for the report (default: %(default)s)"
    )
    options = parser.parse_args(argv)
    from ttt_moshi.evaluation.compare import load_all
    from ttt_moshi.evaluation.documents import read_json
    from ttt_moshi.evaluation.report.write import COMPARISON, write_comparison

    _refuse_file("--out", options.out)
    if (options.out / "results.json").exists():
        raise UserError(f"--out {options.out} holds an evaluation, whose report would be replaced: name another folder")
    page = write_comparison(options.out, load_all(options.folders))
    comparison = read_json(options.out / COMPARISON)
    labels = [checkpoint["label"] for checkpoint in comparison["checkpoints"]]
    console.print(f"differences from {labels[0]}, item by item; positive is better", soft_wrap=True, markup=False)
    complete = True
    for name, task in comparison["tasks"].items():
        since = f", from {labels[task['reference']]}" if task["reference"] else ""
        console.print(f"[bold]{escape(name)}[/]{escape(since)}", soft_wrap=True)
        for label, found in zip(labels[1:], task["against_first"], strict=True):
            complete &= found["status"] == "ok"
            console.print(Padding(escape(f"{label}: {_difference(found)}"), (0, 0, 0, 2)))
    console.print(f"report: {page}", soft_wrap=True)
    return 0 if complete else 1


def _refuse_file(flag: str, path: Path) -> None:
    if path.exists() and not path.is_dir():
        raise UserError(f"{flag} {path} is a file; name a folder")


def _difference(found: dict[str, Any]) -> str:
    if found["status"] != "ok":
        return f"not compared, {found['reason']}"
    from ttt_moshi.evaluation.statistics import FEWEST

    low, high = found["ci95"]
    p = f", McNemar's p {found['mcnemar']:.3g}" if "mcnemar" in found else ""
    note = f"; {found['note']}" if "note" in found else ""
    note += f": fewer than {FEWEST} do not tell" if found["n"] < FEWEST else ""
    return f"{found['difference']:+.4f} ({low:+.4f} – {high:+.4f}), {found['n']} items{p}{note}"


def _report(argv: list[str], console: Console) -> int:
    parser = Parser(
        prog="ttt-moshi eval report",
        description="Writes the report of an evaluation again, from its results; of several, such as the checkpoints "
        "of a run, or one with and without its memory, one report: every value over steps, and what differs from the "
        "first.",
    )
    parser.add_argument("folders", nargs="+", type=Path, help="folders with a results.json")
    parser.add_argument("--out", type=Path, help="folder for the report of several (default: comparison)")
    options = parser.parse_args(argv)
    if len(options.folders) > 1:
        out = [] if options.out is None else ["--out", str(options.out)]
        return _compare([*map(str, options.folders), *out], console)
    if options.out is not None:
        raise UserError("--out is for the report of several evaluations; that of one lies in its folder")
    (folder,) = options.folders
    from ttt_moshi.evaluation import read_results
    from ttt_moshi.evaluation.errors import well_formed
    from ttt_moshi.evaluation.report.write import write_run_report

    path = folder / "results.json"
    with well_formed(path):
        page = write_run_report(folder, read_results(path))
    console.print(f"report: {page}", soft_wrap=True)
    return 0


def _versa(argv: list[str], console: Console) -> int:
    parser = Parser(
        prog="ttt-moshi eval versa",
        description="Writes pred.scp, gt.scp and text for VERSA (quality of generated speech).",
    )
    parser.add_argument(
        "predicted", type=Path, help="folder of generated audio files, or of conversations (NAME/output.wav)"
    )
    parser.add_argument("--references", type=Path, help="folder of true audio files with the same names")
    parser.add_argument("--out", type=Path, default=Path("versa"), help="default: %(default)s")
    options = parser.parse_args(argv)
    from ttt_moshi.data.transcripts import MAIN_SPEAKER, read_transcript
    from ttt_moshi.evaluation.interchange import sound_files, write_versa_lists

    _refuse_file("--out", options.out)
    for folder in (options.predicted, options.references):
        if folder is not None and not folder.is_dir():
            raise UserError(f"there is no folder {folder}")
    predicted = sound_files(options.predicted)
    references = None if options.references is None else sound_files(options.references)
    texts = {}
    for name, sound in (references or predicted).items():
        if (path := sound.with_suffix(".json")).is_file():
            words = [word.text for word in read_transcript(path).words if word.speaker == MAIN_SPEAKER]
            texts[name] = " ".join(words)
    for path in write_versa_lists(options.out, predicted, references, texts):
        console.print(str(path), soft_wrap=True)
    return 0


def _lm_eval(argv: list[str], console: Console) -> int:
    from ttt_moshi.evaluation.interchange import LM_EVAL_FILE, as_lm_eval

    parser = Parser(
        prog="ttt-moshi eval lm-eval",
        description="Writes the results of an evaluation in the structure of those of lm-evaluation-harness, for tools "
        "that read these.",
    )
    parser.add_argument("folder", type=Path, help="folder with a results.json")
    parser.add_argument("--out", type=Path, help=f"JSON file (default: {LM_EVAL_FILE} in the folder)")
    options = parser.parse_args(argv)
    from ttt_moshi.evaluation import read_results
    from ttt_moshi.evaluation.documents import read_json
    from ttt_moshi.evaluation.errors import well_formed
    from ttt_moshi.evaluation.results import write_json

    out = options.out or options.folder / LM_EVAL_FILE
    if out.is_dir():
        raise UserError(f"--out {out} is a folder; name a file")
    path, beside = options.folder / "results.json", options.folder / "timing.json"
    if out.resolve() == path.resolve():
        raise UserError(f"--out {out} holds the results that are to be converted; name another file")
    results, timing = read_results(path), {}
    if beside.is_file():
        with well_formed(beside):
            timing = dict(read_json(beside))
    with well_formed(path):
        converted = as_lm_eval(results, timing, path.stat().st_mtime)
    write_json(out, converted)
    for name in results.skipped:
        console.print(f"{name} not run: left out", style="yellow", soft_wrap=True, markup=False)
    console.print(f"results of {len(converted['results'])} tasks: {out}", soft_wrap=True)
    return 0
