"""The first screen of an evaluation: every task's value, what chance would reach, and what that means."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

from ttt_moshi.evaluation.report.tables import interval
from ttt_moshi.evaluation.results import OK
from ttt_moshi.evaluation.statistics import FEWEST


class Headline(NamedTuple):
    """One task in words; `value`, `chance` and `n` are empty where there is none."""

    task: str
    value: str
    chance: str
    n: str
    meaning: str


def headlines(tasks: dict[str, dict[str, Any]]) -> Iterable[Headline]:
    """The headline of every entry of `results.json`, in their order."""
    for name, task in tasks.items():
        if task["status"] != OK:
            yield Headline(name, "not run", "", "", task["reason"])
            continue
        chance = f"{task['chance']:.4g}" if "chance" in task else ""
        yield Headline(name, interval(task), chance, f"{task['n']} {task['unit_of_n']}", meaning(task))


def meaning(task: dict[str, Any]) -> str:
    """One sentence on a measured entry: what it shows, where its interval lies beyond chance, else that it does not.
    Of a few items an interval says nothing: they may be alike.

    An entry of an earlier version, which does not say what it means, has its metric.
    """
    clause = task.get("means") or task["metric"]
    low, high = task["ci95"]
    chance = task.get("chance")
    if chance is None:
        sentence = clause
    elif task["n"] < FEWEST:
        sentence = f"fewer than {FEWEST} {task['unit_of_n']} do not tell whether {clause}"
    elif low <= chance <= high:
        sentence = f"chance does as well: no evidence that {clause}"
    elif (low > chance) == (task["better"] == "higher"):
        sentence = clause
    else:
        sentence = f"worse than chance: it is not so that {clause}"
    return sentence[0].upper() + sentence[1:] + "." + _published(task)


def _published(task: dict[str, Any]) -> str:
    published = task.get("reference")
    if published is None:
        return ""
    return f" {published['name']} is quoted with {published['value']} ({100 * published['deviation']:+.1f} points)."
