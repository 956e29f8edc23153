"""Which checkpoints stay. A policy looks at all of them at once; any rule can keep one. Deleting is by rename first."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ttt_moshi.checkpoint import layout
from ttt_moshi.checkpoint.errors import CheckpointError, CorruptCheckpoint
from ttt_moshi.checkpoint.files import Files, replace_file
from ttt_moshi.checkpoint.saving import discard
from ttt_moshi.checkpoint.verify import check_quickly


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

    def kept(self, candidates: Sequence[tuple[int, dict[str, Any]]], pinned: set[int]) -> dict[int, str]:
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

    Damaged checkpoints are left alone: they neither count nor are they deleted. `protected` steps stay in any case.
    """
    files = files or Files()
    pins = read_pins(files, root)
    sound, result = [], []
    for step in layout.committed_steps(files, root):
        try:
            sound.append((step, check_quickly(root / layout.checkpoint_name(step), files)))
        except CorruptCheckpoint as error:
            result.append(PruneStep(step, True, f"not touched, because it is damaged: {error}", 0))
    pins |= {step for step, manifest in sound if manifest["info"].get("pinned")}
    measured = read_measured(files, root)
    reasons = policy.kept([(step, {**manifest["metrics"], **measured.get(step, {})}) for step, manifest in sound], pins)
    for step, manifest in sound:
        reason = reasons.get(step) or ("the run was resumed from it" if step in (protected or ()) else None)
        size = sum(record["size"] for record in manifest["files"].values())
        result.append(PruneStep(step, reason is not None, reason or "no rule keeps it", size))
        if reason is None and not dry_run:
            discard(files, root, layout.checkpoint_name(step))
    return sorted(result, key=lambda item: item.step)


def read_measured(files: Files, root: Path) -> dict[int, dict[str, float]]:
    """What was measured of steps after they were saved: step -> name -> value. It ranks, and nobody resumes from it."""
    if layout.MEASURED not in files.names(root):
        return {}
    try:
        content = json.loads(files.read(root / layout.MEASURED))
        return {int(step): {str(n): float(v) for n, v in metrics.items()} for step, metrics in content.items()}
    except (ValueError, TypeError, AttributeError) as error:
        what = f"{root / layout.MEASURED} must be a JSON object of steps ({error}); mend or delete it"
        raise CheckpointError(what) from error


def write_measured(files: Files, root: Path, measured: dict[int, dict[str, float]]) -> None:
    """Replace what was measured, leaving out steps that are no longer there."""
    there = layout.committed_steps(files, root)
    kept = {str(step): measured[step] for step in sorted(measured) if step in there}
    replace_file(files, root / layout.MEASURED, json.dumps(kept).encode())


def read_pins(files: Files, root: Path) -> set[int]:
    """Steps that a person has pinned."""
    if layout.PINS not in files.names(root):
        return set()
    try:
        return {int(step) for step in json.loads(files.read(root / layout.PINS))}
    except (ValueError, TypeError) as error:
        what = f"{root / layout.PINS} must be a JSON list of steps ({error}); mend or delete it"
        raise CheckpointError(what) from error


def write_pins(files: Files, root: Path, steps: set[int]) -> None:
    """Replace the list of pinned steps."""
    replace_file(files, root / layout.PINS, json.dumps(sorted(steps)).encode())
    files.sync_folder(root)
