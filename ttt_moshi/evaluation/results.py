"""`results.json`: what was measured, on what, with what, and how sure it is.

    {"schema": 1,
     "checkpoint": {"state_id", "step", "kind"},
     "tasks": {NAME: {"status": "ok",      "value", "ci95": [low, high], "n", ...}
                   | {"status": "skipped", "value": null, "ci95": null, "n": 0, "reason"}},
     "config", "seed", "data", "versions"}

A task that did not run has no number: its value is null and its reason says why. Nothing that differs between two equal
evaluations (times, paths, hosts) is in the file, so equal evaluations write equal bytes; `timing.json` has such things.
"""

from __future__ import annotations

import json
import math
import platform
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from ttt_moshi.evaluation.documents import read_json
from ttt_moshi.evaluation.errors import EvaluationError, well_formed, writing
from ttt_moshi.files import write_atomically

SCHEMA = 1
OK = "ok"
SKIPPED = "skipped"
MADE, WHOLE = ".unfinished", ".whole"
"""folders in which `files` makes an evaluation before it has its place"""
MEASURED = ("value", "ci95", "n", "metric", "unit_of_n", "better")
"""what the entry of a measured task has at least"""


@dataclass
class Results:
    """One evaluation of one checkpoint, as `results.json` has it."""

    checkpoint: dict[str, Any]  # state_id, step, kind
    tasks: dict[str, dict[str, Any]] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)  # evaluation options: batch policy, dtype, modes, subset
    data: dict[str, Any] = field(default_factory=dict)  # digests and counts of every data set used
    seed: int = 0
    versions: dict[str, str] = field(default_factory=lambda: versions())  # of the software that measured

    @property
    def measured(self) -> list[str]:
        """Names of the tasks that have a number."""
        return [name for name, task in self.tasks.items() if task["status"] == OK]

    @property
    def skipped(self) -> list[str]:
        """Names of the tasks that were asked for and did not run."""
        return [name for name, task in self.tasks.items() if task["status"] != OK]

    def to_json(self) -> dict[str, Any]:
        return {
            "schema": SCHEMA,
            "checkpoint": self.checkpoint,
            "tasks": self.tasks,
            "config": self.config,
            "seed": self.seed,
            "data": self.data,
            "versions": self.versions,
        }


def skipped(reason: str) -> dict[str, Any]:
    """The entry of a task that did not run."""
    return {"status": SKIPPED, "value": None, "ci95": None, "n": 0, "reason": reason}


def versions() -> dict[str, str]:
    """Software that can change a number."""
    return {name: version(name) for name in ("ttt-moshi", "moshi", "torch", "numpy")} | {
        "python": platform.python_version()
    }


def is_task_name(name: str) -> bool:
    """Whether `--tasks` can name it, and a file can be called so."""
    return re.fullmatch(r"\w[\w.\- ]*", name) is not None and name not in ("all", "list")


def check_task(name: str, task: dict[str, Any]) -> None:
    """Raises `EvaluationError` unless the entry is a finite measured number with its interval, or a reason."""
    if task.get("status") == SKIPPED:
        if task.get("value", "none") is not None or not task.get("reason"):
            raise EvaluationError(f"task `{name}` was skipped, so it needs a reason and no value")
        return
    if task.get("status") != OK:
        raise EvaluationError(f"task `{name}` has the unknown status {task.get('status')!r}")
    if lacking := [key for key in MEASURED if key not in task]:
        raise EvaluationError(f"task `{name}` has a result without `{'`, `'.join(lacking)}`; such a one is not written")
    try:
        low, high = task["ci95"]
        finite = all(math.isfinite(number) for number in (task["value"], low, high)) and task["n"] >= 1
        finite = finite and low <= high
    except (TypeError, ValueError):
        finite = False
    if not finite:
        raise EvaluationError(
            f"task `{name}` has no finite result (value {task['value']}, ci95 {task['ci95']}, n {task['n']}); "
            "such a number is not written"
        )
    if type(task["n"]) is not int:
        kind = type(task["n"]).__name__
        raise EvaluationError(f"task `{name}`: `n` is {task['n']!r}, and no whole number (a {kind}, not an int)")
    words = task["metric"], task["unit_of_n"]
    if task["better"] not in ("higher", "lower") or not all(isinstance(word, str) for word in words):
        raise EvaluationError(f"task `{name}`: `better` is higher or lower, `metric` and `unit_of_n` are words")


def check_written(name: str, task: Mapping[str, Any], samples: Iterable[Any]) -> None:
    """Raises `EvaluationError` unless an entry and its samples can be written, and compared."""
    for what, value in (("result", task), *(("sample", sample) for sample in samples)):
        try:
            json.dumps(value, allow_nan=False)
        except (ValueError, TypeError, RecursionError) as error:
            raise EvaluationError(f"task `{name}` has a {what} that cannot be written: {error}") from None
        if what == "sample" and not (isinstance(value, dict) and {"id", "score"} <= value.keys()):
            raise EvaluationError(f"task `{name}` has a sample without `id` and `score`: {value!r}")


def write_results(path: Path, results: Results) -> None:
    """Writes `path` in one step: a reader sees the old file or the whole new one. Raises `EvaluationError` on entries
    that are not results."""
    for name, task in results.tasks.items():
        check_task(name, task)
    write_json(path, results.to_json())


def write_json(path: Path, value: Any) -> None:
    """JSON with sorted structure left as given, no NaN, atomically."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False, ensure_ascii=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """Writes `text` under a temporary name in the same folder and renames it over `path`."""
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, text.encode())


def read_results(path: Path) -> Results:
    """Reads a `results.json`. Raises `EvaluationError` when it is missing, not one, or of a later schema."""
    if path.parent.is_file():
        raise EvaluationError(f"{path.parent} is a file: name the folder of an evaluation")
    if not path.is_file():
        raise EvaluationError(f"no evaluation at {path}: run `ttt-moshi eval --out {path.parent}` first")
    with well_formed(path):
        values = read_json(path)
        if not isinstance(values, dict) or values.get("schema") != SCHEMA:
            found = values.get("schema") if isinstance(values, dict) else None
            raise EvaluationError(f"{path} has schema {found!r}; this version reads schema {SCHEMA}")
        parts = ("checkpoint", "tasks", "config", "data", "seed", "versions")
        results = Results(*(values[part] for part in parts))
        for key in ("state_id", "step", "kind"):
            results.checkpoint[key]
        for name, task in results.tasks.items():
            try:
                if not is_task_name(name):
                    raise EvaluationError(f"{name!r} cannot be the name of a task")
                check_task(name, task)
            except EvaluationError as error:
                raise EvaluationError(f"{path}: {error}") from None
            if task["status"] == OK:
                for key in ("options", "protocol"):
                    task.get(key, {}).items()
        results.config.get("ttt")
        for part in (*results.data.values(), results.versions):
            part.items()
    return results
