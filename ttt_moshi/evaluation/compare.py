"""Several checkpoints on the same items: what changed, and is it more than chance?

Differences are paired: both checkpoints answered the same items, so what the items have in common cancels. An unpaired
comparison of two accuracies over a thousand pairs cannot see two points; a paired one often can.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ttt_moshi.evaluation.documents import json_lines
from ttt_moshi.evaluation.errors import EvaluationError, line_of
from ttt_moshi.evaluation.judge import RATINGS, judged_by
from ttt_moshi.evaluation.results import OK, Results, read_results
from ttt_moshi.evaluation.statistics import FEWEST, mcnemar, mean_by_item, paired_difference


@dataclass
class Evaluation:
    """One evaluation as it lies in its folder."""

    folder: Path
    results: Results
    items: dict[str, dict[str, float]]  # task -> item -> score, higher = better
    name: str = ""
    """the end of its path that tells it from the others; empty takes the last part"""

    @property
    def label(self) -> str:
        """Short name for tables: the folder's, the step, and how the model was read."""
        way = f", {self.way}" if self.way else ""
        name = self.name or self.folder.absolute().name
        return f"{name} (step {self.results.checkpoint['step']}{way})"

    @property
    def way(self) -> str:
        """How the model was read, in options; empty as usual. Steps of different ways are no course of a training."""
        named = {name: self.results.config.get(name) for name in ("ttt", "sink", "text", "user")}
        return " ".join(f"--{name} {value}" for name, value in named.items() if value not in (None, 0, "on"))


def load(folder: Path) -> Evaluation:
    """Reads an evaluation. Raises `EvaluationError` when its files are missing or corrupt."""
    results = read_results(folder / "results.json")
    items = {
        name: _items(folder / "samples" / f"{name}.jsonl", results.data.get(name, {}).get("samples"))
        for name in results.measured
    }
    return Evaluation(folder, results, items)


def load_all(folders: Sequence[Path]) -> list[Evaluation]:
    """Reads several, which are told apart by their names. Raises `EvaluationError` as `load`, and for one that is named
    twice."""
    found = [load(folder) for folder in folders]
    paths = [folder.resolve() for folder in folders]
    if twice := next((folder for folder, path in zip(folders, paths, strict=True) if paths.count(path) > 1), None):
        raise EvaluationError(f"{twice} is named twice: an evaluation does not differ from itself")
    parts = 1
    while len({path.parts[-parts:] for path in paths}) < len(paths):
        parts += 1
    for evaluation, path in zip(found, paths, strict=True):
        evaluation.name = "/".join(path.parts[-parts:])
    return found


def _items(path: Path, count: int | None) -> dict[str, float]:
    """Mean score of every item; a pair's samples name their item, other samples are items themselves.

    Args:
        count: of the samples that were written, None where that is not known.
    """
    samples = list(json_lines(path))
    if count is not None and len(samples) != count:
        raise EvaluationError(f"{path} holds {len(samples)} samples, and {count} were measured: evaluate it again")
    items, scores = [], []
    for number, sample in samples:
        with line_of(path, number):
            if sample["score"] is None:
                continue
            items.append(sample.get("item", sample["id"]))
            scores.append(float(sample["score"]))
            if not math.isfinite(scores[-1]):
                raise ValueError(f"`score` is {sample['score']}, and no number")
    return mean_by_item(items, scores)


def compare_task(name: str, first: Evaluation, second: Evaluation) -> dict[str, Any]:
    """How `second` differs from `first` in one task, over the items that both answered.

    {"status": "ok", "first", "second", "difference", "ci95", "n", "significant"}, the last where the interval excludes
    0 and there are items enough for one; tasks of choices add "mcnemar" (p
    value) and the counts "first_only", "second_only" of items that one of the two got right, ratings from two files a
    "note". Differences of scores are positive when `second` is better.
    """
    if (reason := incomparable(name, first, second)) is not None:
        return {"status": "skipped", "reason": reason}
    if not (first.items[name].keys() & second.items[name].keys()):
        return {"status": "skipped", "reason": "the two have no item in common"}
    shared = sorted(first.items[name].keys() & second.items[name].keys())
    a = np.array([first.items[name][item] for item in shared])
    b = np.array([second.items[name][item] for item in shared])
    low, high = paired_difference(a, b)
    found: dict[str, Any] = {
        "status": OK,
        "first": first.results.tasks[name]["value"],
        "second": second.results.tasks[name]["value"],
        "difference": float((b - a).mean()),
        "ci95": [low, high],
        "n": len(shared),
        "significant": (low > 0 or high < 0) and len(shared) >= FEWEST,
    }
    if first.results.tasks[name].get("chance", 0.0) > 0.0:  # a share of right choices; of a difference it is 0
        right_a, right_b = a > 0.5, b > 0.5
        wrong_a, wrong_b = a < 0.5, b < 0.5
        found["first_only"] = int((right_a & wrong_b).sum())
        found["second_only"] = int((wrong_a & right_b).sum())
        found["mcnemar"] = mcnemar(found["first_only"], found["second_only"])
    if protocol(name, first.results).get("judge") == RATINGS:
        found["note"] = "the ratings of both are from files, and whether by one judge is not recorded"
    return found


def incomparable(name: str, first: Evaluation, second: Evaluation) -> str | None:
    """Why the values of a task in two evaluations are not of one quantity, None where they are."""
    for evaluation in (first, second):
        if (reason := _lacks(name, evaluation.results)) is not None:
            return f"{evaluation.label}: {reason}"
    versions = [e.results.tasks[name].get("version", 1) for e in (first, second)]
    if versions[0] != versions[1]:
        return "the two are of versions {} and {} of the task".format(*versions)
    one, other = (protocol(name, e.results) for e in (first, second))
    # What is in one of the two alone had no meaning for the other, or an earlier version did not record it.
    apart = [f"`{key}` ({one[key]} and {other[key]})" for key in one if key in other and one[key] != other[key]]
    if apart:
        return f"the two differ in {', '.join(apart)}: evaluate one of them again as the other was"
    digests = [e.results.data.get(name, {}).get("digest") for e in (first, second)]
    if digests[0] != digests[1]:
        lengths = [e.results.config.get("duration_sec") for e in (first, second)]
        if name == "perplexity" and lengths[0] != lengths[1]:
            clips = "clips of {} and {} s: give both the same `duration_sec` (--config)".format(*lengths)
            return f"the two were evaluated on {clips}"
        return "the two were evaluated on different recordings"
    return None


def protocol(name: str, results: Results) -> dict[str, Any]:
    """What decided the number of a task beside the model, how it was read, and the data.

    Entries say it themselves. Of an earlier version's it is what they and the settings beside them tell.
    """
    task, config = results.tasks[name], results.config
    if "protocol" in task:
        return task["protocol"]
    judge = config.get("judge")
    told = {
        "dtype": config.get("dtype") if task.get("options") else None,
        "sampled_texts": config.get("sampled_texts") if task.get("options") else None,
        "minutes": task.get("minutes") if name == "hour" else None,
        "answers": task.get("draws"),
        "answer_seconds": task.get("answer_seconds"),
        "judge": judged_by(judge) if judge is not None and name == "judged_answers" else None,
    }
    return {key: value for key, value in told.items() if value is not None}


def _lacks(name: str, results: Results) -> str | None:
    """Why there is no number of a task that can be compared, None where there is one."""
    task = results.tasks.get(name)
    if task is None:
        return "was not asked for"
    return task["reason"] if task["status"] != OK else not_applied(name, results)


def not_applied(name: str, results: Results) -> str | None:
    """Why the number of a task is not that of the options that were recorded beside it, None where it is.

    Entries name the options that acted on them. Those of an earlier version do not, and it let some options reach some
    tasks only.
    """
    task, config = results.tasks[name], results.config
    if "options" in task:
        acted = task["options"]
        ignored = [key for key, value in acted.items() if config.get(key) not in (None, value)]
    else:
        usual = {"ttt": "on"} | ({"text": "absent", "user": "silence"} if name == "perplexity" else {})
        reached = name not in ("perplexity", "inner")
        ignored = [] if reached else [key for key, value in usual.items() if config.get(key) not in (None, value)]
    if not ignored:
        return None
    words = ", ".join(f"`--{key} {config[key]}`" for key in ignored)
    return f"{words} was recorded and not applied to this task: evaluate it again"


def compare(evaluations: list[Evaluation]) -> dict[str, Any]:
    """Every later evaluation against the first, in each task that this one lacks against the first that has it
    ("reference", its number); those that were read in another way also against the same checkpoint read as usual (None
    where there is none); and which of all are not beaten in everything (Pareto).

    Raises `EvaluationError` for fewer than two.
    """
    if len(evaluations) < 2:
        raise EvaluationError("a comparison needs at least two evaluations")
    names = list(dict.fromkeys(name for e in evaluations for name in e.results.tasks))
    usual = {e.results.checkpoint["state_id"]: e for e in evaluations if not e.way}
    read_otherwise = [(usual.get(e.results.checkpoint["state_id"]) if e.way else None, e) for e in evaluations]
    tasks = {}
    for name in names:
        at = next((i for i, e in enumerate(evaluations) if _lacks(name, e.results) is None), 0)
        tasks[name] = {
            "reference": at,
            "values": [_value(e, name, evaluations[at]) for e in evaluations],
            "against_first": _against(name, evaluations, at),
            "against_own": [None if own is None else compare_task(name, own, e) for own, e in read_otherwise],
        }
    return {
        "schema": 1,
        "checkpoints": [{"label": e.label, "way": e.way, **e.results.checkpoint} for e in evaluations],
        "tasks": tasks,
        "pareto": pareto(evaluations, tasks),
    }


def _against(name: str, evaluations: list[Evaluation], at: int) -> list[dict[str, Any]]:
    """Every later evaluation against the one with number `at`, the first that has the task; that one itself against
    the first of all, which says why that one is not compared."""
    return [
        compare_task(name, evaluations[0 if number == at else at], evaluation)
        for number, evaluation in enumerate(evaluations)
        if number > 0
    ]


def _value(evaluation: Evaluation, name: str, reference: Evaluation) -> dict[str, Any]:
    """`not_comparable`: why it is of another quantity than the value of `reference`."""
    task = evaluation.results.tasks.get(name)
    if task is None or task["status"] != OK:
        return {"status": "skipped", "value": None, "ci95": None}
    found = {"status": OK, "value": task["value"], "ci95": task["ci95"]}
    reason = incomparable(name, reference, evaluation)
    return found if reason is None else found | {"not_comparable": reason}


def is_comparable(value: dict[str, Any]) -> bool:
    """Whether there is a value, of the same quantity as that of the first evaluation that has one."""
    return value["status"] == OK and "not_comparable" not in value


def pareto(evaluations: list[Evaluation], tasks: Mapping[str, Mapping[str, Any]]) -> list[bool]:
    """For each evaluation whether no other one is at least as good in every task in which all can be compared, and
    better in one; false for all where there is none."""
    common = [name for name, task in tasks.items() if all(is_comparable(value) for value in task["values"])]
    sign = {n: 1.0 if evaluations[0].results.tasks[n]["better"] == "higher" else -1.0 for n in common}
    if not common:
        return [False] * len(evaluations)
    points = [np.array([sign[n] * e.results.tasks[n]["value"] for n in common]) for e in evaluations]
    return [not any((q >= p).all() and (q > p).any() for q in points) for p in points]
