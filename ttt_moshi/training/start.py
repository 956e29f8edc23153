"""The beginning of a run in its folder: all checks, then the first change, then a new state or that of a checkpoint."""

from __future__ import annotations

import logging
from dataclasses import dataclass

from ttt_moshi.checkpoint import CheckpointStore
from ttt_moshi.config import TrainArgs
from ttt_moshi.moshi import own_codebooks
from ttt_moshi.training import checkpoints, identity
from ttt_moshi.training.assemble import Parts
from ttt_moshi.training.checkpoints import Progress
from ttt_moshi.training.distributed import World
from ttt_moshi.training.evaluate import check_evaluation
from ttt_moshi.training.identity import Difference
from ttt_moshi.training.run_dir import (
    RunDir,
    Start,
    claim,
    delete_around_checkpoints,
    mark_replaced,
    record_launch,
    size_of,
)
from ttt_moshi.training.sinks import check_wandb

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Place:
    """Where a run is to begin, locked for it, and with what."""

    args: TrainArgs
    world: World
    run_dir: RunDir
    store: CheckpointStore
    start: Start
    parts: Parts


def check(place: Place) -> list[Difference]:
    """What is left to be refused, before anything in the folder is touched. All ranks call it.

    Returns:
        what is different from the checkpoint that will be resumed.

    Raises:
        UserError: an evaluation that could not run, another run than the checkpoint's, a disk without room.
    """
    args, world, parts = place.args, place.world, place.parts
    world.together(lambda: check_evaluation(args, own_codebooks(parts.model)))
    world.together(lambda: check_wandb(args.wandb))
    found = world.together(lambda: _compare(place)) if place.start.resume else []
    if args.do_ckpt:
        reclaimed = world.from_main(lambda: size_of(place.run_dir) if place.start.replace else 0)
        checkpoints.reserve(place.store, parts, world, reclaimed)
    return found


def take(place: Place, found: list[Difference]) -> tuple[Progress, bool]:
    """Begins in the folder: deletes an earlier run, or restores its state, and records the launch. All ranks call it.

    Returns:
        how far the run has come, and whether recordings that were carried begin anew.
    """
    args, world, run_dir, store = place.args, place.world, place.run_dir, place.store
    progress, anew = Progress(), False
    if place.start.resume:
        anew = args.train.stateful and any(difference.changes_the_run for difference in found)
        # Open for writing, so that a corrupt checkpoint is set aside rather than met again.
        store.open()
        progress, path = checkpoints.resume(store, place.parts, args, world, begin_recordings_anew=anew)
        _record_changes(place, found, progress.step)
        if anew:
            logger.warning("the recordings begin anew: what was carried from clip to clip belongs to the run before")
        if progress.step >= args.max_steps:
            what = "the last" if progress.step == args.max_steps else f"beyond --max_steps {args.max_steps}"
            message = "step %d of %s is %s: nothing to train; raise --max_steps for more"
            logger.warning(message, progress.step, path, what)
    elif place.start.replace:
        world.from_main(lambda: mark_replaced(run_dir))
        store.clear()
        world.from_main(lambda: delete_around_checkpoints(run_dir))

    def write() -> None:
        if not place.start.resume:
            claim(run_dir, args)
        record_launch(run_dir, args, world.size, progress.step, progress.cursor)

    world.from_main(write)
    return progress, anew


def _compare(place: Place) -> list[Difference]:
    """What is different from the checkpoint that will be resumed; printed as a table.

    Raises:
        ConfigError: it would be another run.
    """
    args, store = place.args, place.store
    step = args.checkpoint.resume_step if args.checkpoint.resume_step != -1 else store.newest_valid()
    if step is None:
        return []
    path = store.path(step)
    before = identity.identity_of_checkpoint(path)
    if before.data is None:
        logger.warning("%s was saved by an earlier version, which did not tell data by content: not compared", path)
    found = identity.differences(before, identity.identity_of_run(args, place.world.size, place.parts))
    if found:
        level = logging.INFO if all(d.meaning == identity.SAME for d in found) else logging.WARNING
        logger.log(level, "different from %s:", path)
        for line in identity.table(found):
            logger.log(level, "  %s", line)
    identity.refuse(found, args.checkpoint.accept_changes, path)
    return found


def _record_changes(place: Place, found: list[Difference], step: int) -> None:
    changes = [difference for difference in found if difference.changes_the_run]
    if changes and place.world.is_main:
        place.store.log_event(
            "accepted changes",
            step=step,
            changes=[{"key": d.key, "before": d.before, "now": d.now, "class": d.meaning} for d in changes],
        )
