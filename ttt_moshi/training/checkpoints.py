"""What a training checkpoint holds, and how a run starts from one."""

from __future__ import annotations

import logging
import math
import socket
import sys
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path

from torch import Tensor

from ttt_moshi.checkpoint import CheckpointStore, Export, Mismatch, read_manifest
from ttt_moshi.config import TrainArgs, to_dict
from ttt_moshi.training import random_state
from ttt_moshi.training.assemble import Parts
from ttt_moshi.training.distributed import World
from ttt_moshi.training.identity import BY_CONTENT, TRAINING_CONFIG
from ttt_moshi.training.optimizer import optimizer_tensors, set_update_counts, update_counts
from ttt_moshi.training.run_dir import git_state, redact

logger = logging.getLogger(__name__)

# How the names of tensors begin that hold what is carried from clip to clip.
CARRIED = "stream/"


@dataclass(frozen=True)
class Progress:
    """How far a run has come.

    Args:
        step: optimizer steps done.
        cursor: clips consumed in this stage, which is the position in its endless order of clips.
        clips: clips consumed in all.
        elapsed_seconds: time spent in steps, over all launches.
    """

    step: int = 0
    cursor: int = 0
    clips: int = 0
    elapsed_seconds: float = 0.0

    def from_first_clip(self) -> Progress:
        """The same progress at the first clip of an order of clips."""
        return replace(self, cursor=0)


def save(
    store: CheckpointStore,
    parts: Parts,
    args: TrainArgs,
    world: World,
    progress: Progress,
    metrics: dict[str, float],
) -> None:
    """Saves everything that influences the next step, and the exports that evaluation and serving read."""
    store.save(
        progress.step,
        kind="adapters" if args.save_adapters else "full",
        tensors=_tensors(parts, world),
        state={
            "step": progress.step,
            "cursor": progress.cursor,
            "clips": progress.clips,
            "data_fingerprint": parts.data_fingerprint,
            "data_identity": BY_CONTENT,
            "rows": parts.carried_rows,
            "update_counts": update_counts(parts.model, parts.optimizer),
            "schedule": {"name": "one_cycle", "max_steps": args.max_steps, "pct_start": args.optim.pct_start},
        },
        rank_state={"random": random_state.capture()},
        exports=parts.exports(),
        documents={**parts.documents, TRAINING_CONFIG: to_dict(args)},
        metrics=metrics,
        info={
            "elapsed_seconds": progress.elapsed_seconds,
            "saved_at": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "host": socket.gethostname(),
            "command": redact(sys.argv),
            "git": git_state(),
        },
    )


def reserve(store: CheckpointStore, parts: Parts, world: World, reclaimed: int = 0) -> None:
    """Refuses a disk without room for one checkpoint, before the first step.

    Args:
        reclaimed: bytes that will be free by then, of a run that is replaced.
    """
    exported = sum(e.dtype.itemsize * _elements(e, parts) for file in parts.exports().values() for e in file.values())
    store.reserve(_tensors(parts, world), exported, reclaimed)


def _elements(export: Export, parts: Parts) -> int:
    if export.shape is not None:
        return math.prod(export.shape)
    if isinstance(export.source, str):
        return parts.model.get_parameter(export.source.removeprefix("param/")).numel()
    assert isinstance(export.source, Tensor)
    return export.source.numel()


def resume(
    store: CheckpointStore, parts: Parts, args: TrainArgs, world: World, begin_recordings_anew: bool = False
) -> tuple[Progress, Path]:
    """Restores the newest valid checkpoint, or exactly the named one, and says which and why.

    Args:
        begin_recordings_anew: whether what was carried from clip to clip is left aside, and the order of clips begins
            at its first.
    """
    wanted = args.checkpoint.resume_step
    tensors = _tensors(parts, world)
    if begin_recordings_anew:
        tensors = {name: tensor for name, tensor in tensors.items() if not name.startswith(CARRIED)}
    loaded = store.load(wanted, tensors=tensors, strict=not begin_recordings_anew)
    report = loaded.report
    if report.missing or report.shape or report.dtype or not all(n.startswith(CARRIED) for n in report.unexpected):
        raise Mismatch(f"{loaded.path} does not fit the model: {report.text()}", report)
    for moved in store.leave_branch(loaded.step):
        logger.warning("kept %s aside: the run goes on from step %d without it", moved, loaded.step)
    state = loaded.state
    set_update_counts(parts.model, parts.optimizer, state["update_counts"])
    if loaded.rank_state is not None:
        left = random_state.restore(loaded.rank_state["random"])
        if left is not None:
            logger.warning("%s", left)
    reason = f"named by resume_step {wanted}" if wanted != -1 else "the newest valid checkpoint"
    logger.info("resuming at step %d from %s (%s)", state["step"], loaded.path, reason)
    elapsed = read_manifest(loaded.path)["info"]["elapsed_seconds"]
    progress = Progress(state["step"], state["cursor"], state["clips"], elapsed)
    return progress.from_first_clip() if begin_recordings_anew else progress, loaded.path


def _tensors(parts: Parts, world: World) -> dict[str, Tensor]:
    """Every live tensor that the next step depends on."""
    tensors = {**optimizer_tensors(parts.model, parts.optimizer), **parts.feed.tensors(world.mesh)}
    return tensors if parts.teacher is None else {**tensors, **parts.teacher.tensors(world.mesh)}
