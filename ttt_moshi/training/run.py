"""A training run from the first check to the last checkpoint, on one process or many."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ttt_moshi.checkpoint import CheckpointStore, Retention
from ttt_moshi.config import TrainArgs
from ttt_moshi.data import Batch
from ttt_moshi.errors import UserError
from ttt_moshi.training import checkpoints, random_state
from ttt_moshi.training.assemble import Parts, assemble
from ttt_moshi.training.distributed import World, join_world
from ttt_moshi.training.evaluate import evaluate_when_due
from ttt_moshi.training.feed import stage_at
from ttt_moshi.training.optimizer import set_learning_rate
from ttt_moshi.training.run_dir import RunDir, check_free, claim, record_launch
from ttt_moshi.training.schedule import one_cycle
from ttt_moshi.training.signals import Requests, requests
from ttt_moshi.training.sinks import JsonLines, Sink, TensorBoard, Wandb, cut_back
from ttt_moshi.training.step import StepResult, digest, loss_weights, train_step
from ttt_moshi.ttt import Diagnostics, watch

logger = logging.getLogger(__name__)

Report = Callable[[dict[str, Any]], None]


class NonFiniteLossError(UserError):
    """The loss or a gradient stopped being a number."""


@dataclass(frozen=True)
class Outcome:
    """How a run ended.

    Args:
        step: optimizer steps done.
        finished: whether that is all of them.
        stopped_by: name of the signal that ended it early.
        checkpoint: folder of the last checkpoint, if one was saved.
        state_id: its state id.
    """

    step: int
    finished: bool
    stopped_by: str | None
    checkpoint: Path | None
    state_id: str | None


def run(args: TrainArgs, report: Report = lambda record: None) -> Outcome:
    """Trains until `max_steps` or until a stop signal, and saves on the way.

    Everything that can be refused is refused before the run folder is touched.

    Args:
        report: receives every step's record, on rank 0.

    Raises:
        UserError: a configuration, data set, base model, run folder or checkpoint that cannot work.
        NonFiniteLossError: after a checkpoint of the last finite state was saved.
    """
    run_dir = RunDir(Path(args.run_dir))
    with join_world() as world, ExitStack() as stack:
        random_state.seed_everything(args.seed)
        if not args.checkpoint.resume:
            check_free(run_dir, args.overwrite_run_dir)
        parts = assemble(args, world)
        for stage in parts.stages:
            stack.callback(stage.loader.close)
        store = CheckpointStore(
            run_dir.checkpoints,
            world.rank,
            world.size,
            retention=_retention(args),
            mirror=args.checkpoint.mirror,
            log=logger.warning,
        )
        progress = checkpoints.Progress()
        if args.checkpoint.resume:
            checkpoints.check_resumable(store, parts, args)
            # Open for writing, so that a damaged checkpoint is set aside rather than met again.
            stack.enter_context(store)
            progress = checkpoints.resume(store, parts, args, world)
        if world.is_main:
            if not args.checkpoint.resume:
                claim(run_dir, args, args.overwrite_run_dir)
            record_launch(run_dir, args, world.size, progress.step)
        world.barrier()
        if args.do_ckpt:
            if not args.checkpoint.resume:
                stack.enter_context(store)
            checkpoints.reserve(store, parts, world)
        sinks = _Sinks(args, run_dir, progress.step, world, stack, report)
        asked = stack.enter_context(requests())
        return _loop(args, world, parts, store, run_dir, progress, sinks, asked)


def _retention(args: TrainArgs) -> Retention:
    checkpoint = args.checkpoint
    return Retention(args.num_ckpt_keep, checkpoint.keep_every, checkpoint.keep_best, checkpoint.keep_metric)


class _Sinks:
    """Training and evaluation metrics of rank 0; the other ranks write nowhere."""

    def __init__(
        self, args: TrainArgs, run_dir: RunDir, step: int, world: World, stack: ExitStack, report: Report
    ) -> None:
        self._report = report if world.is_main else lambda record: None
        self._train: list[Sink] = []
        self._eval: list[Sink] = []
        if not world.is_main:
            return
        for sinks, path, tag in (
            (self._train, run_dir.train_metrics, "train"),
            (self._eval, run_dir.eval_metrics, "eval"),
        ):
            removed = cut_back(path, step)
            if removed:
                logger.info("%s: removed %d lines after step %d", path.name, removed, step)
            sinks += [JsonLines(path), TensorBoard(run_dir.tensorboard, tag, purge_step=step + 1)]
            if args.wandb.project:
                sinks.append(Wandb(args.wandb, run_dir.path, tag, {}))
            for sink in sinks:
                stack.callback(sink.close)

    def train(self, record: dict[str, Any]) -> None:
        self._write(self._train, record)
        self._report(record)

    def eval(self, record: dict[str, Any]) -> None:
        self._write(self._eval, record)
        self._report(record)

    def sync(self) -> None:
        for sink in (*self._train, *self._eval):
            sink.sync()

    @staticmethod
    def _write(sinks: list[Sink], record: dict[str, Any]) -> None:
        for sink in sinks:
            sink.write(record)


def _loop(
    args: TrainArgs,
    world: World,
    parts: Parts,
    store: CheckpointStore,
    run_dir: RunDir,
    progress: checkpoints.Progress,
    sinks: _Sinks,
    asked: Requests,
) -> Outcome:
    weights = loss_weights(parts.model, args)
    saved_step, stopping = None, False
    saved_at = time.monotonic()
    parts.model.train()
    while progress.step < args.max_steps and not stopping:
        began = time.perf_counter()
        stage = stage_at(parts.stages, progress.step)
        if stage.first_step == progress.step:
            progress = progress.at_stage_start()
            parts.feed.restart(parts.model)
        work = parts.layout.read(stage.loader, progress.cursor)
        if progress.step + 1 < args.max_steps and stage_at(parts.stages, progress.step + 1) is stage:
            parts.layout.read_ahead(stage.loader, progress.cursor + parts.layout.clips)
        rates = set_learning_rate(parts.optimizer, one_cycle(progress.step, args.max_steps, args.optim.pct_start))
        store.wait_staged()
        watched = parts.ttt_layers() if args.train.watch_freq and progress.step % args.train.watch_freq == 0 else {}
        with watch(watched) as seen:
            result = train_step(
                parts.model, parts.optimizer, parts.feed, work, world, weights, args.max_norm,
                stop_requested=asked.stop is not None,
                save_requested=_save_asked(asked, args, world, run_dir, saved_at),
            )  # fmt: skip
        if not result.finite:
            raise _stop_at_non_finite(result, args, world, parts, store, progress)
        positions = range(progress.cursor, progress.cursor + parts.layout.clips)
        clip_ids = [stage.loader.clip(position).id for position in positions]
        seconds = time.perf_counter() - began
        progress = progress.after_step(parts.layout.clips, seconds)
        stopping = result.stop
        record = _record(progress, result, rates, work, clip_ids, seconds, world)
        sinks.train({**record, "memory": _memory(seen)} if watched else record)

        measured = evaluate_when_due(parts, args, world, progress.step, run_dir.benchmark_codes)
        if measured:
            sinks.eval({"step": progress.step, **measured})
        if args.do_ckpt:
            store.poll()
            due = args.ckpt_freq and progress.step % args.ckpt_freq == 0
            if progress.step == args.max_steps or stopping or due or result.save:
                sinks.sync()
                checkpoints.save(store, parts, args, world, progress, _saved_metrics(result, measured))
                saved_step, saved_at = progress.step, time.monotonic()
    saved = store.wait() if args.do_ckpt else None
    return Outcome(
        step=progress.step,
        finished=progress.step == args.max_steps,
        stopped_by=(asked.stop.name if asked.stop else "a signal to another process") if stopping else None,
        checkpoint=store.path(saved_step) if saved_step is not None else None,
        state_id=saved.state_id if saved is not None else None,
    )


def _save_asked(asked: Requests, args: TrainArgs, world: World, run_dir: RunDir, saved_at: float) -> bool:
    """Whether this process wants a checkpoint after the coming step. The ranks agree in the step's own collective."""
    wanted = asked.take_save()
    if world.is_main:
        minutes = args.checkpoint.every_minutes
        wanted |= minutes is not None and time.monotonic() - saved_at >= 60 * minutes
        if run_dir.save_request.exists():
            run_dir.save_request.unlink()
            wanted = True
    return wanted


def _saved_metrics(result: StepResult, measured: dict[str, Any]) -> dict[str, float]:
    """What retention can rank checkpoints by."""
    return {"loss": result.metrics["loss"], **{f"eval.{k}": v for k, v in measured.get("nll", {}).items()}}


def _record(
    progress: checkpoints.Progress,
    result: StepResult,
    rates: dict[str, float],
    work: list[list[Batch]],
    clip_ids: list[str],
    seconds: float,
    world: World,
) -> dict[str, Any]:
    """One line of metrics. Everything outside of `timing` is equal whenever the run is repeated or resumed."""
    heard = world.size * sum(int(batch.valid_frames.sum()) for clips in work for batch in clips)
    memory = torch.cuda.max_memory_allocated() if world.device.type == "cuda" else None
    return {
        "step": progress.step,
        **result.metrics,
        "lr": rates,
        "sample_ids": digest(clip_ids),
        "clips": progress.clips,
        "predicted_tokens": result.tokens,
        "timing": {
            "step_seconds": seconds,
            "audio_frames_per_second": heard / seconds,
            "elapsed_seconds": progress.elapsed_seconds,
            **({"max_memory_bytes": memory} if memory is not None else {}),
        },
    }


def _memory(seen: dict[str, list[Diagnostics]]) -> dict[str, dict[str, float]]:
    """What the TTT layers of this process did in the step, averaged over their calls."""
    means = {}
    for layer, calls in seen.items():
        summaries = [call.summary() for call in calls]
        means[layer] = {key: sum(s[key] for s in summaries) / len(summaries) for key in summaries[0]}
    return means


def _stop_at_non_finite(
    result: StepResult,
    args: TrainArgs,
    world: World,
    parts: Parts,
    store: CheckpointStore,
    progress: checkpoints.Progress,
) -> NonFiniteLossError:
    """Saves the last finite state, which the failed step left untouched, and says where it is."""
    where = "no checkpoint was saved (do_ckpt is false)"
    if args.do_ckpt:
        if progress.step > 0 and progress.step not in store.steps():
            checkpoints.save(store, parts, args, world, progress, {})
        store.wait()
        where = f"the state before it is saved at step {progress.step}" if progress.step else "nothing was trained yet"
    bad = {k: v for k, v in result.metrics.items() if k in ("text_loss", "audio_loss", "grad_norm")}
    return NonFiniteLossError(
        f"step {progress.step + 1} is not finite ({bad}); {where}. Lower optim.lr or ttt.base_lr, or look at the clips "
        f"at positions {progress.cursor} to {progress.cursor + parts.layout.clips - 1}"
    )
