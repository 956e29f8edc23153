"""Runs tasks one after another; what cannot run says why and has no number."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from ttt_moshi.errors import UserError
from ttt_moshi.evaluation.errors import EvaluationError
from ttt_moshi.evaluation.outcome import Outcome
from ttt_moshi.evaluation.results import check_task, skipped
from ttt_moshi.evaluation.scoring.engine import Engine
from ttt_moshi.evaluation.tasks.registry import TASKS, Benchmarks

NO_BENCHMARKS = "no benchmark data: name its folder with --data_root (`ttt-moshi data make-bench` makes a small one)"


@dataclass
class SuiteOutcome:
    """Entries of `results.json` by task, and what lies behind those that ran."""

    tasks: dict[str, dict[str, Any]] = field(default_factory=dict)
    outcomes: dict[str, Outcome] = field(default_factory=dict)


def check_tasks(names: list[str], benchmarks: Benchmarks) -> None:
    """Finds the data of every named task, without a model. Raises `EvaluationError` naming all tasks that lack some."""
    problems = []
    for name in names:
        try:
            TASKS[name](benchmarks)
        except (UserError, OSError) as reason:
            problems.append(f"`{name}`: {reason}")
    if problems:
        raise EvaluationError("these tasks cannot run: " + "; ".join(problems))


def run_suite(
    names: list[str],
    benchmarks: Benchmarks | None,
    engine: Engine,
    announce: Callable[[str], None] = lambda name: None,
) -> SuiteOutcome:
    """Every named task in turn.

    A task whose data is missing or whose numbers are not finite becomes `skipped` with the reason; only errors that are
    meant for a person are treated so, all others stop the evaluation.
    """
    result = SuiteOutcome()
    for name in names:
        announce(name)
        try:
            if benchmarks is None:
                raise EvaluationError(NO_BENCHMARKS)
            outcome = TASKS[name](benchmarks).run(engine)
            check_task(name, outcome.entry)
        except UserError as reason:
            result.tasks[name] = skipped(str(reason))
            continue
        result.tasks[name] = outcome.entry
        result.outcomes[name] = outcome
    return result
