"""A run under way, and one step on its way through the phases of the loop."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

from ttt_moshi.config import TrainArgs
from ttt_moshi.data import Batch
from ttt_moshi.signals import Requests
from ttt_moshi.training.assemble import Parts
from ttt_moshi.training.checkpoints import Progress
from ttt_moshi.training.distributed import World
from ttt_moshi.training.feed import Stage
from ttt_moshi.training.log import Log
from ttt_moshi.training.loss import LossWeights
from ttt_moshi.training.run_dir import RunDir
from ttt_moshi.training.saves import Saves


@dataclass
class Run:
    """What a run works with, and how far it has come.

    Args:
        saves: None where `do_ckpt` is false.
        progress: after the last step that was finite.
        loss: of that step.
        restart: whether carried recordings begin anew with the next step.
        evaluation_lacks: whether the evaluation after the step that the run was resumed at was never finished.
        stopped_by: the signal that ends the run.
        saved_at: when the last save was begun, by the monotonic clock.
    """

    args: TrainArgs
    world: World
    parts: Parts
    run_dir: RunDir
    log: Log
    saves: Saves | None
    asked: Requests
    weights: LossWeights
    progress: Progress
    restart: bool = False
    evaluation_lacks: bool = False
    loss: float | None = None
    stopped_by: str | None = None
    saved_at: float = field(default_factory=time.monotonic)

    @property
    def finished(self) -> bool:
        """Whether every step is done."""
        return self.progress.step >= self.args.max_steps

    @property
    def over(self) -> bool:
        """Whether no further step is to be made."""
        return self.finished or self.stopped_by is not None

    @property
    def metrics(self) -> dict[str, float]:
        """What retention can rank the checkpoint of the last step by, evaluations aside."""
        return {} if self.loss is None else {"loss": self.loss}


@dataclass
class Step:
    """One step.

    Args:
        cursor: position of its first clip in the stage's order.
        restart: whether it begins an order of clips, so that nothing is carried into it.
        inherit: whether recordings that begin in it find the memory that the one before them left.
        work: this rank's clips; for each micro-batch its consecutive batches.
        began: when, by the performance counter.
        save: whether somebody asked for its checkpoint.
        give_up: whether some process can no longer save or write down what happens.
        record: what the metrics say of it.
    """

    stage: Stage
    cursor: int
    restart: bool
    inherit: bool
    work: list[list[Batch]]
    began: float
    save: bool = False
    give_up: bool = False
    record: dict[str, Any] = field(default_factory=dict)

    def positions(self, clips: int) -> range:
        """Positions of its clips."""
        return range(self.cursor, self.cursor + clips)
