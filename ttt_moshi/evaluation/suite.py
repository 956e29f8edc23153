"""Runs tasks one after another; what cannot run says why and has no number."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from ttt_moshi.errors import UserError
from ttt_moshi.evaluation.errors import EvaluationError
from ttt_moshi.evaluation.outcome import Outcome
from ttt_moshi.evaluation.results import check_task, check_written, skipped
from ttt_moshi.evaluation.scoring.engine import Engine
from ttt_moshi.evaluation.tasks.registry import Benchmarks, known_tasks


@dataclass
class SuiteOutcome:
    """Entries of `results.json` by task, and what lies behind those that ran."""

    tasks: dict[str, dict[str, Any]] = field(default_factory=dict)
    outcomes: dict[str, Outcome] = field(default_factory=dict)


def check_tasks(names: list[str], benchmarks: Benchmarks) -> None:
    """Finds the data of every named task, without a model. Raises `EvaluationError` naming all tasks that lack some."""
    problems = []
    for name in names:
        spec = known_tasks()[name]
        try:
            (spec.check or spec.build)(benchmarks)
        except (UserError, OSError) as reason:
            problems.append(f"`{name}`: {reason}")
    if problems:
        raise EvaluationError("these tasks cannot run: " + "; ".join(problems))


def run_suite(
    names: list[str],
    benchmarks: Benchmarks,
    engine_for: Callable[[str], Engine],
    refused: Mapping[str, str] | None = None,
) -> SuiteOutcome:
    """Every named task in turn.

    A task whose data is missing or whose numbers are not finite becomes `skipped` with the reason; only errors that are
    meant for a person are treated so, all others stop the evaluation.

    Args:
        engine_for: the engine for a task of that name.
        refused: tasks that are not run, with the reason.
    """
    result = SuiteOutcome()
    for name in names:
        spec = known_tasks()[name]
        try:
            if refused and name in refused:
                raise EvaluationError(refused[name])
            outcome = spec.build(benchmarks).run(engine_for(name))
            outcome.entry["protocol"] = dict(spec.protocol(benchmarks))
            check_task(name, outcome.entry)
            check_written(name, outcome.entry, outcome.samples)
        except (UserError, OSError) as reason:
            result.tasks[name] = skipped(str(reason))
            continue
        # What a number means may depend on the model: the entry then says so itself.
        means = {"means": spec.means} if spec.means else {}
        result.tasks[name] = means | outcome.entry | {"version": spec.version}
        result.outcomes[name] = outcome
    return result
