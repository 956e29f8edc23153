"""Which checkpoints stay. A policy looks at all of them at once; any rule can keep one. Deleting is by rename first."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from ttt_moshi.checkpoint import layout
from ttt_moshi.checkpoint.checking import check_quickly, verify
from ttt_moshi.checkpoint.commit import discard
from ttt_moshi.checkpoint.errors import CheckpointError, CorruptCheckpoint, ForeignCheckpoint
from ttt_moshi.checkpoint.files import Files
from ttt_moshi.checkpoint.manifest import read_committed
from ttt_moshi.checkpoint.sidecars import all_metrics, read_measured, read_pins

# Of a checkpoint that somebody moved to another disk and linked: what is outside of the folder is not ours to delete.
ONLY_THE_LINK = "it is a link: what it leads to stays"


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

    def check_metric(self, known: Collection[str]) -> None:
        """Raise CheckpointError, with the known names, if the best are to be kept by a metric that is none of them."""
        if self.best and self.metric not in known:
            nearest = get_close_matches(self.metric or "", known, n=1)
            hint = f" Did you mean {nearest[0]}?" if nearest else ""
            names = ", ".join(known) or "none"
            raise CheckpointError(f"{self.metric!r} is no metric of these checkpoints; they have: {names}.{hint}")

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
    """What happens to one checkpoint, or to something else that lies beside them, and why.

    `bytes` is what it takes in the folder: of a link that is deleted none.
    """

    name: str
    step: int | None
    keep: bool
    reason: str
    bytes: int


def prune(
    root: Path,
    policy: Retention,
    dry_run: bool = False,
    protected: Mapping[int, str] | None = None,
    files: Files | None = None,
    verified: set[tuple[int, str]] | None = None,
    log: Callable[[str], None] = lambda line: None,
) -> list[PruneStep]:
    """Delete what no rule keeps; the decisions, oldest first. `dry_run` only decides. At least one always stays.

    Nothing is deleted before a later checkpoint that stays has been verified, every byte of it. `verified` has (step,
    state id) of those for which that was done already, and is added to; `log` is told of one that does not verify. What
    is corrupt or foreign is left alone: it neither counts nor is it deleted. `protected` steps stay, with a reason.
    Raises UnreadableCheckpoint, with nothing deleted.
    """
    files, protected = files or Files(), protected or {}
    pins, measured = read_pins(files, root), read_measured(files, root)
    candidates, result = [], []
    for step in layout.committed_steps(files, root):
        name = layout.checkpoint_name(step)
        try:
            candidates.append((step, check_quickly(root / name, files)))
        except (CorruptCheckpoint, ForeignCheckpoint) as error:
            kind = "corrupt" if isinstance(error, CorruptCheckpoint) else "foreign"
            result.append(PruneStep(name, step, True, f"not touched, because it is {kind}: {error}", 0))
    pins |= {step for step, manifest in candidates if manifest["info"].get("pinned")}
    reasons = {
        **protected,
        **policy.kept([(step, all_metrics(manifest, measured)) for step, manifest in candidates], pins),
    }
    doomed = [step for step, _ in candidates if step not in reasons]
    if doomed and not dry_run:
        staying = [(step, manifest["state_id"]) for step, manifest in candidates if step in reasons]
        good = _newest_verified(files, root, staying, max(doomed), set() if verified is None else verified, log)
        for step in doomed:
            if step > good:
                reasons[step] = "no later checkpoint that stays could be verified"
    for step, manifest in candidates:
        reason, name = reasons.get(step), layout.checkpoint_name(step)
        size = sum(record["size"] for record in manifest["files"].values())
        why = reason or "no rule keeps it"
        if reason is None and (root / name).is_symlink():
            size, why = 0, f"{why}; {ONLY_THE_LINK}"
        result.append(PruneStep(name, step, reason is not None, why, size))
        if reason is None and not dry_run:
            discard(files, root, name)
    return sorted(result, key=lambda item: item.step or 0)


def _newest_verified(
    files: Files,
    root: Path,
    staying: list[tuple[int, str]],
    needed: int,
    verified: set[tuple[int, str]],
    log: Callable[[str], None],
) -> int:
    """The newest step that stays and is verified, -1 if none is; none is read if one later than `needed` is known."""
    known = [step for step, state in staying if (step, state) in verified]
    if known and max(known) > needed:
        return max(known)
    for step, state in sorted(staying, reverse=True):
        if (step, state) in verified:
            return step
        report = verify(root / layout.checkpoint_name(step), files=files)
        if report.ok:
            verified.add((step, state))
            return step
        log(f"step {step} was saved but does not verify, so no earlier one is deleted for it: {report.text()}")
    return -1


def known_metrics(root: Path, files: Files | None = None) -> list[str]:
    """Names of all metrics that the checkpoints of a folder have, sorted."""
    files, found = files or Files(), set[str]()
    measured = read_measured(files, root)
    for step in layout.committed_steps(files, root):
        try:
            found |= all_metrics(read_committed(root, step, files), measured).keys()
        except (CorruptCheckpoint, ForeignCheckpoint):
            continue
    return sorted(found)
