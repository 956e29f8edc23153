"""The files of one evaluation.

results.json            every number (see `results`)
timing.json             how long it took, where, and with which commit of this code
samples/<task>.jsonl    one line per item: id, score, groups, NLL per codebook
submission/             ZeroSpeech submission files of the tasks that were scored whole
report.md, report.html  the same for people, with plots/*.svg and *.png
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ttt_moshi.evaluation.errors import EvaluationError, writing
from ttt_moshi.evaluation.interchange import LM_EVAL_FILE, ZEROSPEECH, most_items, submission_file, write_submission
from ttt_moshi.evaluation.outcome import Outcome
from ttt_moshi.evaluation.report.write import plot_files, write_run_report
from ttt_moshi.evaluation.results import Results, read_results, write_json, write_results, write_text
from ttt_moshi.evaluation.tasks.registry import known_tasks

SPLITS = ("dev", "test")
_REPORTS = ("timing.json", "report.md", "report.html", LM_EVAL_FILE)


def write_evaluation(
    out: Path, results: Results, outcomes: Mapping[str, Outcome], timing: dict[str, Any], adds: bool = False
) -> None:
    """Writes everything; `results.json` last, so that where it is, the rest is.

    Args:
        outcomes: of the tasks that were measured now.
        adds: whether `results` are those of the evaluation in `out` with more. Otherwise what an evaluation has left
            there is deleted first.
    """
    if not adds:
        delete_evaluation(out)
    for name, outcome in outcomes.items():
        lines = [json.dumps({"task": name, **sample}, allow_nan=False) + "\n" for sample in outcome.samples]
        write_text(_samples(out, name), "".join(lines))
        if name in ZEROSPEECH and most_items(results.config) is None:
            write_submission(out / "submission", name, results.config["split"], outcome.scores)
    write_json(out / "timing.json", timing)
    write_run_report(out, results)
    write_results(out / "results.json", results)


def delete_evaluation(out: Path) -> None:
    """Deletes what `write_evaluation` has written; caches, conversations and files of others stay.

    `results.json` goes first: without it nobody takes what is left for an evaluation.

    Raises:
        EvaluationError: a file that cannot be deleted.
    """
    try:
        there = list(read_results(out / "results.json").tasks)
    except EvaluationError:
        there = []
    _delete([out / "results.json"])
    for name in {*known_tasks(), *there}:
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
