"""A training run from the first check to the last checkpoint, on one process or many."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ttt_moshi.checkpoint import CheckpointStore, Retention, check_mirror
from ttt_moshi.config import TrainArgs
from ttt_moshi.config_idle import told_idle
from ttt_moshi.errors import UserError
from ttt_moshi.signals import Requests, requests
from ttt_moshi.training import random_state
from ttt_moshi.training.assemble import assemble
from ttt_moshi.training.checkpoints import Progress
from ttt_moshi.training.distributed import World, join_world
from ttt_moshi.training.evaluate import due
from ttt_moshi.training.hardware import explain, explained
from ttt_moshi.training.log import Log, Report
from ttt_moshi.training.loop import train
from ttt_moshi.training.nonfinite import NonFiniteLossError
from ttt_moshi.training.run_dir import RunDir, choose_start, delete_around_checkpoints, open_run_dir
from ttt_moshi.training.saves import Saves, SavingFailed
from ttt_moshi.training.sinks import Metrics, has_step
from ttt_moshi.training.start import Place, check, take
from ttt_moshi.training.step import loss_weights
from ttt_moshi.training.under_way import Run

logger = logging.getLogger(__name__)


class RunEnded(UserError):  # noqa: N818 - what happened, as a person says it
    """A run that had begun ended by itself before its last step. The message says why and what can be resumed.

    Args:
        options: what to add to the command line in order to go on; empty where there is nothing to go on from.
    """

    def __init__(self, message: str, options: list[str]) -> None:
        super().__init__(message)
        self.options = options


@dataclass(frozen=True)
class Outcome:
    """How a run ended.

    Args:
        step: optimizer steps done.
        finished: whether that is all of them.
        stopped_by: name of the signal that ended it early.
        checkpoint: folder of the checkpoint that a resumed run begins at, if this launch saved or resumed one.
        state_id: its state id, if this launch saved it.
    """

    step: int
    finished: bool
    stopped_by: str | None
    checkpoint: Path | None
    state_id: str | None


def run(args: TrainArgs, report: Report = lambda record: None, asked: Requests | None = None) -> Outcome:
    """Trains until `max_steps` or until a stop signal, and saves on the way.

    The run folder is locked first; everything that can be refused is refused before anything in it is touched.

    Args:
        report: receives every step's record, on rank 0.
        asked: the process's handlers of signals, where they are installed already.

    Raises:
        UserError: a configuration, data set, base model, run folder or checkpoint that cannot work.
        RunEnded: the run had begun, and ended by itself.
        Stopped: a stop signal came before the first step.
    """
    with explained(), ExitStack() as stack:
        asked = asked or stack.enter_context(requests())
        asked.starting()
        world = stack.enter_context(join_world(60 * args.patience_minutes))
        random_state.seed_everything(args.seed)
        run_dir = world.from_main(lambda: open_run_dir(args.run_dir))
        _same_folder(world, args, run_dir)
        store = _store(args, run_dir, world)
        world.from_main(lambda: choose_start(run_dir, store, args))
        store.claim()
        stack.callback(store.close)
        # Once more: only the holder of the lock sees a folder that nobody else changes.
        start = world.from_main(lambda: choose_start(run_dir, store, args))
        parts = assemble(args, world)
        for stage in parts.stages:
            stack.callback(stage.loader.close)
        place = Place(args, world, run_dir, store, start, parts)
        found = check(place)
        for told in told_idle(args):
            logger.warning("%s", told)
        with _beginning(place):
            progress, anew = take(place, found)
            run = _under_way(place, progress, anew, asked, report, stack)
        asked.started()
        with _ended(run, store):
            train(run)
            if run.saves is not None:
                run.saves.finish(run.progress, run.metrics)
        return _outcome(run, store)


def _same_folder(world: World, args: TrainArgs, run_dir: RunDir) -> None:
    """Refuses ranks that would save their parts of a checkpoint in different folders."""
    folders = world.gather(str(open_run_dir(args.run_dir).path))
    for rank, folder in enumerate(folders):
        if folder != str(run_dir.path):
            raise UserError(
                f"`run_dir` leads to {run_dir.path} for process 0 and to {folder} for process {rank}: name one "
                "absolute path on a file system that all nodes share"
            )


def _store(args: TrainArgs, run_dir: RunDir, world: World) -> CheckpointStore:
    checkpoint = args.checkpoint
    mirror = checkpoint.mirror if args.do_ckpt else None
    if mirror is not None:
        check_mirror(mirror, [run_dir.path, run_dir.checkpoints])
    return CheckpointStore(
        run_dir.checkpoints,
        world.rank,
        world.size,
        retention=Retention(args.num_ckpt_keep, checkpoint.keep_every, checkpoint.keep_best, checkpoint.keep_metric),
        mirror=mirror,
        timeout=world.patience,
        log=logger.warning,
    )


def _under_way(place: Place, progress: Progress, anew: bool, asked: Requests, report: Report, stack: ExitStack) -> Run:
    """The run, ready for its first step."""
    args, world, run_dir = place.args, place.world, place.run_dir
    metrics = world.together(lambda: Metrics(args, run_dir, progress.step) if world.is_main else None)
    if metrics is not None:
        stack.callback(metrics.close)
        for name, removed in metrics.removed.items():
            if removed:
                logger.info("%s: removed %d lines after step %d", name, removed, progress.step)
    lacks = place.start.resume and any(due(args, progress.step))
    if lacks:
        lacks = world.from_main(lambda: not has_step(run_dir.eval_metrics, progress.step))
    log, saves = Log(metrics, report), None
    if args.do_ckpt:
        place.store.open()
        saves = Saves(place.store, place.parts, args, world, log.saved)
        if place.start.resume:
            saves.begun = progress.step
    return Run(
        args=args, world=world, parts=place.parts, run_dir=run_dir, log=log, saves=saves, asked=asked,
        weights=loss_weights(place.parts.model, args), progress=progress, restart=anew, evaluation_lacks=lacks,
    )  # fmt: skip


@contextmanager
def _beginning(place: Place) -> Iterator[None]:
    """Lets a start that fails for its disk be repeated: what it has made in a folder that was new is deleted again."""
    try:
        yield
    except OSError:
        new = not (place.start.resume or place.start.replace)
        if new and place.world.is_main:
            with suppress(OSError):  # the first error is the one to tell
                delete_around_checkpoints(place.run_dir)
        raise


@contextmanager
def _ended(run: Run, store: CheckpointStore) -> Iterator[None]:
    """Turns what ends a run by itself into `RunEnded`, after what was trained is saved."""
    try:
        yield
    except NonFiniteLossError as error:
        raise RunEnded(str(error), error.options) from error
    except SavingFailed as error:
        raise RunEnded(f"{_sentence(error)} {_resumable(store)}", _resume_options(store)) from error
    except (MemoryError, RuntimeError) as error:
        reason = explain(error, run.world)
        if reason is None:
            raise
        if run.saves is not None:
            run.saves.follow(wait=True)  # an earlier step may still be on its way to the disk
        raise RunEnded(f"{reason} {_resumable(store)}", _resume_options(store)) from error
    except (UserError, OSError) as error:
        reason = str(error)
        if run.saves is not None and run.progress.step and run.saves.begun != run.progress.step:
            try:
                run.saves.begin(run.progress, run.metrics)
                run.saves.finish(run.progress, run.metrics)
            except SavingFailed as failed:
                reason += f"; and then {failed}"
        raise RunEnded(f"{_sentence(reason)} {_resumable(store)}", _resume_options(store)) from error


def _sentence(reason: object) -> str:
    return str(reason).rstrip(".") + "."


def _resumable(store: CheckpointStore) -> str:
    good = store.newest_valid()
    return "There is no checkpoint to resume from" if good is None else f"Step {good} can be resumed"


def _resume_options(store: CheckpointStore) -> list[str]:
    return [] if store.newest_valid() is None else ["--checkpoint.resume", "true"]


def _outcome(run: Run, store: CheckpointStore) -> Outcome:
    """What a reader of the folder would find.

    Raises:
        RunEnded: the last state has NaN or infinity in it, so that nothing can resume from it.
    """
    last = None if run.saves is None else run.saves.last
    if last is not None and not last.healthy:
        raise RunEnded(
            f"the state after step {last.step} holds NaN or infinity and was kept as {last.path}, for a look only. "
            f"{_resumable(store)}",
            _resume_options(store),
        )
    checkpoint: Any = None
    if run.saves is not None and run.saves.begun is not None:
        checkpoint = store.path(run.saves.begun)
    return Outcome(
        step=run.progress.step,
        finished=run.finished,
        stopped_by=run.stopped_by,
        checkpoint=checkpoint,
        state_id=None if last is None else last.state_id,
    )
