"""The files of one evaluation.

results.json            every number (see `results`)
timing.json             how long it took, where, and with which commit of this code
samples/<task>.jsonl    one line per item: id, score, groups, NLL per codebook
submission/             ZeroSpeech submission files of the tasks that were scored whole
report.md, report.html  the same for people, with plots/*.svg and *.png

All of them are made in a folder of their own, `.unfinished`, whose renaming to `.whole` decides: before, what was there
is untouched, and afterwards they only have to be moved to their places, which the next process does where this one
could not.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from ttt_moshi.evaluation.errors import EvaluationError, writing
from ttt_moshi.evaluation.interchange import LM_EVAL_FILE, ZEROSPEECH, most_items, submission_file, write_submission
from ttt_moshi.evaluation.outcome import Outcome
from ttt_moshi.evaluation.report.write import COMPARISON, plot_files, write_run_report
from ttt_moshi.evaluation.results import (
    MADE,
    WHOLE,
    Results,
    is_task_name,
    read_results,
    write_json,
    write_results,
    write_text,
)
from ttt_moshi.evaluation.tasks.registry import known_tasks
from ttt_moshi.files import only_writer

SPLITS = ("dev", "test")
_RESULTS = "results.json"
_REPORTS = ("timing.json", "report.md", "report.html", LM_EVAL_FILE)
_LOCK = ".lock"
_REPLACES = ".replaces"
"""in `.whole`: what was there before is to be deleted first"""
_PATIENCE_SEC = 300.0


@contextmanager
def alone_in(out: Path) -> Iterator[None]:
    """Makes the folder of an evaluation, and keeps other evaluations from writing there while the body runs.

    Raises:
        EvaluationError: the folder cannot be written, or another process has been writing there for minutes.
    """
    with writing(out):
        out.mkdir(parents=True, exist_ok=True)
    until = time.monotonic() + _PATIENCE_SEC
    while time.monotonic() < until:
        with ExitStack() as stack:
            with writing(out):
                alone = stack.enter_context(only_writer(out / _LOCK))
            if alone:
                _put_into_place(out)
                yield
                return
        time.sleep(0.05)
    raise EvaluationError(f"another process has been writing to {out} for minutes: end it, or name another --out")


def settle(out: Path) -> None:
    """Ends what a process began that was killed while it put an evaluation into its place. Raises as `alone_in`."""
    if (out / WHOLE).is_dir():
        with alone_in(out):
            pass


def refuse_comparison(out: Path) -> None:
    """Raises `EvaluationError` where a comparison is, whose report an evaluation would replace."""
    if (out / COMPARISON).exists():
        raise EvaluationError(f"--out {out} holds a comparison, whose report would be replaced: name another folder")


def write_evaluation(
    out: Path, results: Results, outcomes: Mapping[str, Outcome], timing: dict[str, Any], adds: bool = False
) -> None:
    """Writes everything; `results.json` last, so that where it is, the rest is. Call it within `alone_in`.

    Args:
        outcomes: of the tasks that were measured now.
        adds: whether `results` are those of the evaluation in `out` with more. Otherwise what an evaluation has left
            there is deleted, when the new one is whole.
    """
    made = out / MADE
    _remove(made)  # of one that was killed
    try:
        _make(made, out, results, outcomes, timing)
        with writing(made):
            if not adds:
                (made / _REPLACES).touch()
            made.rename(out / WHOLE)
    finally:
        _remove(made)
    _put_into_place(out)


def _make(made: Path, out: Path, results: Results, outcomes: Mapping[str, Outcome], timing: dict[str, Any]) -> None:
    for name, outcome in outcomes.items():
        lines = [json.dumps({"task": name, **sample}, allow_nan=False) + "\n" for sample in outcome.samples]
        write_text(_samples(made, name), "".join(lines))
        if name in ZEROSPEECH and most_items(results.config) is None:
            write_submission(made / "submission", name, results.config["split"], outcome.scores)
    write_json(made / "timing.json", timing)
    write_run_report(out, results, made)
    write_results(made / _RESULTS, results)


def _put_into_place(out: Path) -> None:
    """Each step may be the last one of a process, and the next one goes on with what is left."""
    whole = out / WHOLE
    if not whole.is_dir():
        return
    if (whole / _REPLACES).exists():
        _delete_evaluation(out)
        _delete([whole / _REPLACES])
    for path in sorted(filter(Path.is_file, whole.rglob("*")), key=lambda path: path.name == _RESULTS):
        place = out / path.relative_to(whole)
        with writing(place):
            place.parent.mkdir(parents=True, exist_ok=True)
            path.replace(place)
    _remove(whole)


def _delete_evaluation(out: Path) -> None:
    """Deletes what `write_evaluation` has written; caches, conversations and files of others stay.

    `results.json` goes first: without it nobody takes what is left for an evaluation.

    Raises:
        EvaluationError: a file that cannot be deleted.
    """
    try:
        there = list(read_results(out / _RESULTS).tasks)
    except EvaluationError:
        there = []
    _delete([out / _RESULTS])
    for name in filter(is_task_name, {*known_tasks(), *there}):
        _delete([_samples(out, name), *plot_files(out, name)])
    _delete([submission_file(out / "submission", task, split) for task in ZEROSPEECH for split in SPLITS])
    _delete([out / name for name in _REPORTS])
    folders = [out / "submission" / kind for kind in ZEROSPEECH.values()]
    for folder in (*folders, out / "submission", out / "samples", out / "plots"):
        if folder.is_dir() and not any(folder.iterdir()):
            with writing(folder):
                folder.rmdir()


def _samples(out: Path, task: str) -> Path:
    return out / "samples" / f"{task}.jsonl"


def _delete(paths: Iterable[Path]) -> None:
    for path in paths:
        with writing(path):
            path.unlink(missing_ok=True)


def _remove(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
