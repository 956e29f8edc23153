"""Tasks of other packages: what fails in one of them is its own, and costs the others nothing."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ttt_moshi.errors import UserError
from ttt_moshi.evaluation.errors import EvaluationError, EvaluationStopped
from ttt_moshi.evaluation.outcome import Outcome

if TYPE_CHECKING:
    from ttt_moshi.evaluation.scoring.engine import Engine


def guard(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
    """The same function of the task `name`, with every error that is meant for nobody as an `EvaluationError` that says
    where it is from."""

    def guarded(*args: Any) -> Any:
        try:
            return call(*args)
        except (UserError, EvaluationStopped):
            raise
        except Exception as error:
            place = traceback.extract_tb(error.__traceback__)[-1]
            what = " ".join(f"{type(error).__name__}: {error}".split())
            raise EvaluationError(
                f"`{name}` of another package has failed: {what} ({Path(place.filename).name}, line {place.lineno})"
            ) from error

    return guarded


@dataclass(frozen=True)
class GuardedTask:
    """A task of another package."""

    name: str
    task: Any

    def run(self, engine: Engine) -> Outcome:
        """Raises `EvaluationError` for whatever goes wrong in it."""
        outcome = guard(self.name, self.task.run)(engine)
        if not (isinstance(outcome, Outcome) and isinstance(outcome.entry, dict)):
            raise EvaluationError(f"`{self.name}` of another package gave back no `Outcome` with an entry")
        return outcome
