"""The checkpoints of a run under way: begun, followed, reported, and what is done when one fails."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ttt_moshi.checkpoint import CheckpointError, CheckpointStore, LostLock, Saved
from ttt_moshi.config import TrainArgs
from ttt_moshi.errors import UserError
from ttt_moshi.evaluation.gates import RANKED
from ttt_moshi.training import checkpoints
from ttt_moshi.training.assemble import Parts
from ttt_moshi.training.checkpoints import Progress
from ttt_moshi.training.distributed import World

logger = logging.getLogger(__name__)


class SavingFailed(UserError):  # noqa: N818 - what happened, as a person says it
    """More saves in a row failed than may, or the folder is no longer this run's."""


@dataclass(frozen=True)
class Committed:
    """A save that is on the disk, in the words of the metrics."""

    step: int
    record: dict[str, float]


class Saves:
    """Begins saves and follows them. All ranks make the same calls; what one rank notices, it brings to the others'
    attention by `failed`, so that none ends alone.

    Args:
        committed: receives every save that is on the disk, on rank 0.
    """

    def __init__(
        self,
        store: CheckpointStore,
        parts: Parts,
        args: TrainArgs,
        world: World,
        committed: Callable[[Committed], None] = lambda saved: None,
    ) -> None:
        self._store, self._parts, self._args, self._world = store, parts, args, world
        self._committed = committed if world.is_main else lambda saved: None
        self._failures = 0
        self._fatal: CheckpointError | None = None
        self.failure: CheckpointError | None = None
        """of the last save, if it failed"""
        self.begun: int | None = None
        """the step that was saved last, or is being saved"""
        self.last: Saved | None = None
        """the last save that was committed"""

    @property
    def failed(self) -> bool:
        """Whether the run must end for want of checkpoints."""
        return self._fatal is not None or self._failures > self._args.checkpoint.tolerate_failed_saves

    def wait_staged(self) -> None:
        """Call before the optimizer changes what is being saved."""
        self._store.wait_staged()

    def begin(self, progress: Progress, metrics: dict[str, float]) -> None:
        """Begins to save the state after `progress.step`; a save before it is waited for."""
        self.follow(wait=True)
        if self.failed:
            return
        self.begun = progress.step
        try:
            checkpoints.save(self._store, self._parts, self._args, self._world, progress, metrics)
        except CheckpointError as error:
            self._fail(error)

    def follow(self, wait: bool = False) -> None:
        """Reports the save that is under way, once it is finished."""
        try:
            saved = self._store.wait() if wait else self._store.poll()
        except CheckpointError as error:
            self._fail(error)
            return
        if saved is not None:
            self._failures, self.failure, self.last = 0, None, saved
            self._report(saved)

    def add_metrics(self, step: int, metrics: dict[str, float]) -> None:
        """Gives the checkpoint of a step, if there is one, what was measured after it was saved."""
        if not metrics or step != self.begun:
            return
        self.follow(wait=True)
        if self.failure is None and self.last is not None and self.last.healthy and self._world.is_main:
            try:
                self._store.set_metrics(step, metrics)
            except (CheckpointError, OSError) as error:
                logger.error("what was measured of step %d is not recorded beside its checkpoint: %s", step, error)

    def raise_failure(self) -> None:
        """Raises SavingFailed, on all ranks, once `failed` is known to all."""
        self.follow(wait=True)
        raise SavingFailed(str(self._fatal or self.failure or "another process could not save"))

    def finish(self, progress: Progress, metrics: dict[str, float]) -> None:
        """Waits for the last save, and tries it again as often as failures are tolerated. Raises SavingFailed."""
        self.follow(wait=True)
        while self.failure is not None and not self.failed:
            self.begin(progress, metrics)
            self.follow(wait=True)
        if self.failure is not None:
            self.raise_failure()

    def set_unhealthy(self, progress: Progress, reason: str) -> None:
        """Keeps the state for a look, where nothing resumes from it."""
        self.follow(wait=True)
        if progress.step not in self._store.steps():
            self.begin(progress, {})
            self.follow(wait=True)
        if progress.step in self._store.steps():
            self._store.set_unhealthy(progress.step, reason)

    def newest_good(self, before: int | None = None) -> int | None:
        """The step that a resumed run would begin at; or the newest one earlier than `before`."""
        return self._store.newest_valid(before)

    def _fail(self, error: CheckpointError) -> None:
        self._failures, self.failure = self._failures + 1, error
        if isinstance(error, LostLock):
            self._fatal = error
        tolerated = self._args.checkpoint.tolerate_failed_saves
        if not self.failed:
            logger.error(
                "THE CHECKPOINT OF STEP %s WAS NOT SAVED (%d of %d failures in a row that are tolerated): %s",
                self.begun, self._failures, tolerated, error,
            )  # fmt: skip

    def _report(self, saved: Saved) -> None:
        record = {
            "bytes": saved.bytes,
            "training_waited_seconds": saved.seconds["blocked"],
            "durable_seconds": saved.seconds["durable"],
        }
        if saved.healthy:
            logger.info(
                "saved step %d: %s, training waited %.2f s, durable after %.2f s",
                saved.step, _size(saved.bytes), record["training_waited_seconds"], record["durable_seconds"],
            )  # fmt: skip
        else:
            logger.error(
                "step %d holds NaN or infinity: it is kept as %s for a look, and nothing resumes from it",
                saved.step, saved.path,
            )  # fmt: skip
        self._committed(Committed(saved.step, record))


def _size(count: int) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"


def saved_metrics(record: dict[str, Any]) -> dict[str, float]:
    """What retention can rank checkpoints by, of an evaluation's record: the smaller, the better."""
    gates = record.get("gates", {})
    return {f"eval.{name}": value for name, value in record.get("nll", {}).items()} | {
        f"gates.{name}": gates[name] for name in RANKED if name in gates
    }
