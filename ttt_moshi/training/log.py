"""What rank 0 writes down and shows of a run; the other ranks write nothing."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import numpy as np

from ttt_moshi.training.saves import Committed
from ttt_moshi.training.sinks import Metrics

logger = logging.getLogger(__name__)

Report = Callable[[dict[str, Any]], None]


class Log:
    """Records of steps, evaluations and saves.

    Args:
        metrics: where they are kept; None on other ranks than 0.
        report: shows them to a person.
    """

    def __init__(self, metrics: Metrics | None, report: Report) -> None:
        self._metrics, self._report = metrics, report
        self._saves: list[dict[str, float]] = []
        self.failure: OSError | None = None
        """why something could not be written; the run ends with the next step, on all ranks together"""

    def train(self, record: dict[str, Any]) -> None:
        """One step. Saves that were committed since the last one stand beside its timing."""
        if self._metrics is not None:
            if self._saves:
                record["timing"]["saves"] = self._saves
            self._saves = []
            self._write("train", record)
            self._show(record)

    def eval(self, record: dict[str, Any], said: np.ndarray | None = None) -> None:
        """One evaluation; `said`, float32 [samples] at Mimi's rate, is a sample of what the model says."""
        if self._metrics is not None:
            self._write("eval", record)
            self._show(record)
            if said is not None:
                self._guarded(lambda metrics: metrics.hear("eval/said", record["step"], said))

    def saved(self, saved: Committed) -> None:
        """One committed save."""
        if self._metrics is not None:
            self._saves.append({"step": saved.step, **saved.record})
            self._write("save", {"step": saved.step, **saved.record})

    def sync(self) -> None:
        """Makes durable what was written, before a checkpoint claims that it happened."""
        if self._metrics is not None:
            self._guarded(lambda metrics: metrics.sync())

    def _write(self, kind: str, record: dict[str, Any]) -> None:
        self._guarded(lambda metrics: metrics.write(kind, record))

    def _guarded(self, write: Callable[[Metrics], None]) -> None:
        assert self._metrics is not None
        try:
            write(self._metrics)
        except OSError as error:
            self.failure = error

    def _show(self, record: dict[str, Any]) -> None:
        try:
            self._report(record)
        except OSError as error:
            # The terminal is gone, or the pipe's reader: no reason to lose the run.
            logger.warning("the run goes on, but cannot be shown any more: %s", error)
            self._report = lambda record: None
