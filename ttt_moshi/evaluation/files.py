"""The files of one evaluation.

results.json            every number (see `results`)
timing.json             how long it took, where, and with which commit of this code
samples/<task>.jsonl    one line per item: id, score, groups, NLL per codebook
submission/             ZeroSpeech submission files of the tasks that were scored whole
report.md, report.html  the same for people, with plots/*.svg and *.png

They are made in a folder of their own first, and put into their places when all are there: what was there before is
lost to nothing that may happen meanwhile.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ttt_moshi.evaluation.errors import EvaluationError, writing
from ttt_moshi.evaluation.interchange import LM_EVAL_FILE, ZEROSPEECH, most_items, submission_file, write_submission
from ttt_moshi.evaluation.outcome import Outcome
from ttt_moshi.evaluation.report.write import plot_files, write_run_report
from ttt_moshi.evaluation.results import Results, read_results, write_json, write_results, write_text
from ttt_moshi.evaluation.tasks.registry import known_tasks
from ttt_moshi.files import only_writer

SPLITS = ("dev", "test")
_RESULTS = "results.json"
_REPORTS = ("timing.json", "report.md", "report.html", LM_EVAL_FILE)
_MADE = ".unfinished"
_LOCK = ".lock"
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
        with writing(out), only_writer(out / _LOCK) as alone:
            if alone:
                yield
                return
        time.sleep(0.05)
    raise EvaluationError(f"another process has been writing to {out} for minutes: end it, or name another --out")


def write_evaluation(
    out: Path, results: Results, outcomes: Mapping[str, Outcome], timing: dict[str, Any], adds: bool = False
) -> None:
    """Writes everything; `results.json` last, so that where it is, the rest is. Several processes call it within
    `alone_in`.

    Args:
        outcomes: of the tasks that were measured now.
        adds: whether `results` are those of the evaluation in `out` with more. Otherwise what an evaluation has left
            there is deleted, as soon as the new one is in its place.
    """
    before = [] if adds else _files_of_an_evaluation(out)
    made = out / _MADE
    _remove(made)  # of one that was killed
    try:
        _make(made, out, results, outcomes, timing)
        new = sorted((path for path in made.rglob("*") if path.is_file()), key=lambda path: path.name == _RESULTS)
        placed = {out / path.relative_to(made): path for path in new}
        for place, path in placed.items():
            with writing(place):
                place.parent.mkdir(parents=True, exist_ok=True)
                path.replace(place)
    finally:
        _remove(made)
    _delete(path for path in before if path not in placed)
    _delete_empty_folders(out)


def _make(made: Path, out: Path, results: Results, outcomes: Mapping[str, Outcome], timing: dict[str, Any]) -> None:
    for name, outcome in outcomes.items():
        lines = [json.dumps({"task": name, **sample}, allow_nan=False) + "\n" for sample in outcome.samples]
        write_text(_samples(made, name), "".join(lines))
        if name in ZEROSPEECH and most_items(results.config) is None:
            write_submission(made / "submission", name, results.config["split"], outcome.scores)
    write_json(made / "timing.json", timing)
    write_run_report(out, results, made)
    write_results(made / _RESULTS, results)


def _files_of_an_evaluation(out: Path) -> list[Path]:
    """Every path that an evaluation may have written, as far as its tasks are known; caches, conversations and files
    of others are not among them."""
    try:
        there = list(read_results(out / _RESULTS).tasks)
    except EvaluationError:
        there = []
    tasks = {*known_tasks(), *there}
    return [
        out / _RESULTS,
        *(out / name for name in _REPORTS),
        *(submission_file(out / "submission", task, split) for task in ZEROSPEECH for split in SPLITS),
        *(path for task in sorted(tasks) for path in (_samples(out, task), *plot_files(out, task))),
    ]


def _samples(out: Path, task: str) -> Path:
    return out / "samples" / f"{task}.jsonl"


def _delete(paths: Iterable[Path]) -> None:
    for path in paths:
        with writing(path):
            path.unlink(missing_ok=True)


def _delete_empty_folders(out: Path) -> None:
    folders = [out / "submission" / kind for kind in ZEROSPEECH.values()]
    for folder in (*folders, out / "submission", out / "samples", out / "plots"):
        if folder.is_dir() and not any(folder.iterdir()):
            with writing(folder):
                folder.rmdir()


def _remove(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
