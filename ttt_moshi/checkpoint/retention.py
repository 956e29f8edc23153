"""Which checkpoints stay. A policy looks at all of them at once; any rule can keep one. Deleting is by rename first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ttt_moshi.checkpoint import layout
from ttt_moshi.checkpoint.checking import check_quickly
from ttt_moshi.checkpoint.commit import discard
from ttt_moshi.checkpoint.errors import CheckpointError, CorruptCheckpoint, ForeignCheckpoint
from ttt_moshi.checkpoint.files import Files
from ttt_moshi.checkpoint.sidecars import all_metrics, read_measured, read_pins


@dataclass(frozen=True)
class Retention:
    """Keep the newest `last` (None: all), every step divisible by `every`, the `best` by `metric`, and the pinned."""

    last: int | None = None
    every: int | None = None
    best: int = 0
    metric: str | None = None
    larger_is_better: bool = False

    def __post_init__(self) -> None:
        if self.last is not None and self.last < 1:
            raise CheckpointError(f"keeping the last {self.last} would leave none; use at least 1, or null for all")
        if self.every is not None and self.every < 1:
            raise CheckpointError(f"keeping every {self.every} steps makes no sense; use at least 1")
        if self.best and not self.metric:
            raise CheckpointError("keeping the best checkpoints needs the name of a metric")

    def kept(self, candidates: Sequence[tuple[int, Mapping[str, Any]]], pinned: set[int]) -> dict[int, str]:
        """Steps to keep with the reason, of (step, metrics) pairs."""
        steps = sorted(step for step, _ in candidates)
        if self.last is None:
            return {step: "all are kept" for step in steps}
        reasons = {step: f"one of the last {self.last}" for step in steps[-self.last :]}
        for step in steps:
            if self.every and step % self.every == 0:
                reasons.setdefault(step, f"a multiple of {self.every}")
            if step in pinned:
                reasons[step] = "pinned"
        sign = -1.0 if self.larger_is_better else 1.0
        measured = [(metrics.get(self.metric or ""), step) for step, metrics in candidates]
        values = [(sign * value, step) for value, step in measured if value is not None]
        for _, step in sorted(values)[: self.best]:
            reasons.setdefault(step, f"among the best {self.best} by {self.metric}")
        return reasons


@dataclass(frozen=True)
class PruneStep:
    """What happens to one checkpoint and why."""

    step: int
    keep: bool
    reason: str
    bytes: int


def prune(
    root: Path, policy: Retention, dry_run: bool = False, protected: set[int] | None = None, files: Files | None = None
) -> list[PruneStep]:
    """Delete what no rule keeps; the decisions, oldest first. `dry_run` only decides. At least one always stays.

    What is corrupt or foreign is left alone: it neither counts nor is it deleted. `protected` steps stay in any case.
    Raises UnreadableCheckpoint, with nothing deleted.
    """
    files = files or Files()
    pins = read_pins(files, root)
    candidates, result = [], []
    for step in layout.committed_steps(files, root):
        try:
            candidates.append((step, check_quickly(root / layout.checkpoint_name(step), files)))
        except (CorruptCheckpoint, ForeignCheckpoint) as error:
            kind = "corrupt" if isinstance(error, CorruptCheckpoint) else "foreign"
            result.append(PruneStep(step, True, f"not touched, because it is {kind}: {error}", 0))
    pins |= {step for step, manifest in candidates if manifest["info"].get("pinned")}
    measured = read_measured(files, root)
    reasons = policy.kept([(step, all_metrics(manifest, measured)) for step, manifest in candidates], pins)
    for step, manifest in candidates:
        reason = reasons.get(step) or ("the run was resumed from it" if step in (protected or ()) else None)
        size = sum(record["size"] for record in manifest["files"].values())
        result.append(PruneStep(step, reason is not None, reason or "no rule keeps it", size))
        if reason is None and not dry_run:
            discard(files, root, layout.checkpoint_name(step))
    return sorted(result, key=lambda item: item.step)
