"""The training loop: a few phases that share one `Run`, each of which can be read and changed by itself."""

from __future__ import annotations

import logging
import time

import torch

from ttt_moshi.errors import UserError
from ttt_moshi.evaluation import EvaluationStopped
from ttt_moshi.schedule import one_cycle
from ttt_moshi.training import evaluate as evaluation
from ttt_moshi.training import nonfinite
from ttt_moshi.training.checkpoints import Progress
from ttt_moshi.training.feed import stage_at
from ttt_moshi.training.optimizer import set_learning_rate
from ttt_moshi.training.saves import saved_metrics
from ttt_moshi.training.step import StepResult, digest, forward_is_finite, train_step
from ttt_moshi.training.under_way import Run, Step
from ttt_moshi.ttt import Diagnostics, watch

logger = logging.getLogger(__name__)

STOPS = ("SIGTERM", "SIGINT", "SIGHUP")


class EvaluationFailed(UserError):  # noqa: N818 - what happened, as a person says it
    """An evaluation could not be finished, and `stop_on_failed_evaluation` is set."""


class LogFailed(UserError):  # noqa: N818 - what happened, as a person says it
    """What happens can no longer be written down."""


def train(run: Run) -> None:
    """Steps until the run is over."""
    run.parts.model.train()
    if run.evaluation_lacks:
        evaluate(run)
    while not run.over:
        step = read(run)
        compute(run, step)
        record(run, step)
        check_last(run, step)
        save(run, step.save)
        evaluate(run)
    if run.world.any(run.log.failure is not None):
        give_up(run)


def read(run: Run) -> Step:
    """The clips of the next step; those after it are begun to be read."""
    began = time.perf_counter()
    progress, layout = run.progress, run.parts.layout
    stage = stage_at(run.parts.stages, progress.step)
    restart = run.restart or stage.first_step == progress.step
    cursor = 0 if restart else progress.cursor
    work = run.world.together(lambda: layout.read(stage.loader, cursor))
    if progress.step + 1 < run.args.max_steps and stage_at(run.parts.stages, progress.step + 1) is stage:
        layout.read_ahead(stage.loader, cursor + layout.clips)
    inherit = progress.step >= run.args.max_steps * (1 - run.args.train.inherit_memory)
    return Step(stage, cursor, restart, inherit, work, began)


def compute(run: Run, step: Step) -> None:
    """Forward, backward and update. A step that is not finite leaves nothing behind and ends the run."""
    args, parts, before = run.args, run.parts, run.progress
    rates = set_learning_rate(parts.optimizer, one_cycle(before.step, args.max_steps, args.optim.pct_start))
    if run.saves is not None:
        run.saves.follow()
        run.saves.wait_staged()
    watched = parts.ttt_layers() if args.train.watch_freq and before.step % args.train.watch_freq == 0 else {}
    with watch(watched) as seen:
        result = train_step(
            parts.model, parts.optimizer, parts.feed, step.work, run.world, run.weights, args.max_norm,
            votes=_votes(run), restart=step.restart, teacher=parts.teacher, inherit=step.inherit,
        )  # fmt: skip
    if not result.finite:
        raise nonfinite.end(run, step, result)
    seconds, clips = time.perf_counter() - step.began, parts.layout.clips
    run.progress = Progress(
        before.step + 1, step.cursor + clips, before.clips + clips, before.elapsed_seconds + seconds
    )
    run.loss, run.restart = result.metrics["loss"], False
    run.stopped_by = next((name for name in STOPS if name in result.votes), None)
    step.save, step.give_up = "save" in result.votes, "give up" in result.votes
    step.record = _record(run, step, result, rates, seconds)
    if watched:
        step.record["memory"] = _memory(seen)


def record(run: Run, step: Step) -> None:
    """Writes the step's line of metrics, and ends a run in which something cannot be written any more."""
    run.log.train(step.record)
    if step.give_up:
        give_up(run)


def check_last(run: Run, step: Step) -> None:
    """The last state must be as good as every other one, whose forward pass the next step has tried."""
    parts = run.parts
    if run.finished and not forward_is_finite(parts.model, parts.feed, step.work, run.world, inherit=step.inherit):
        raise nonfinite.end_last(run, step)


def save(run: Run, asked: bool = False) -> None:
    """Begins a checkpoint if one is due, was asked for, or is the last."""
    if run.saves is None or run.saves.begun == run.progress.step:
        return
    due = run.args.ckpt_freq and run.progress.step % run.args.ckpt_freq == 0
    if run.over or due or asked:
        run.log.sync()
        run.saves.begin(run.progress, run.metrics)
        run.saved_at = time.monotonic()


def evaluate(run: Run) -> None:
    """Measures what is due, after the step is saved: no failure and no stop can cost what was trained."""
    number = run.progress.step
    if run.stopped_by is not None or not any(evaluation.due(run.args, number)):
        return
    try:
        measured = evaluation.evaluate(
            run.parts, run.args, run.world, number, run.run_dir, lambda: run.asked.stop is not None
        )
    except EvaluationStopped:
        names = run.world.gather(run.asked.stop.name if run.asked.stop else None)
        run.stopped_by = next(name for name in names if name is not None)
        logger.warning("the evaluation after step %d was stopped by %s", number, run.stopped_by)
        save(run)
        return
    except (UserError, OSError) as error:
        _failed(run, number, str(error))
        return
    run.log.eval({"step": number, **measured.record}, measured.said)
    if run.saves is not None:
        run.saves.add_metrics(number, saved_metrics(measured.record))
    if measured.failures:
        _failed(run, number, "; ".join(measured.failures))


def give_up(run: Run) -> None:
    """Ends the run, on all ranks, where one of them cannot save or cannot write down what happens, and says why."""
    reasons = run.world.gather(None if run.log.failure is None else str(run.log.failure))
    for reason in reasons:
        if reason is not None:
            raise LogFailed(f"the metrics cannot be written: {reason}")
    if run.saves is not None:
        run.saves.raise_failure()


def _failed(run: Run, number: int, reason: str) -> None:
    if run.args.stop_on_failed_evaluation:
        raise EvaluationFailed(f"the evaluation after step {number} failed: {reason}")
    logger.error("THE EVALUATION AFTER STEP %d FAILED, training goes on: %s", number, reason)


def _votes(run: Run) -> list[str]:
    """What this process asks of all, before a step."""
    votes = [] if run.asked.stop is None else [run.asked.stop.name]
    wanted = run.asked.take_save()
    if run.world.is_main:
        minutes = run.args.checkpoint.every_minutes
        wanted |= minutes is not None and time.monotonic() - run.saved_at >= 60 * minutes
        if run.run_dir.save_request.exists():
            run.run_dir.save_request.unlink(missing_ok=True)
            wanted = True
    if wanted:
        votes.append("save")
    if run.log.failure is not None or (run.saves is not None and run.saves.failed):
        votes.append("give up")
    return votes


def _record(run: Run, step: Step, result: StepResult, rates: dict[str, float], seconds: float) -> dict[str, object]:
    """One line of metrics. Everything outside of `timing` is equal whenever the run is repeated or resumed."""
    heard = run.world.size * sum(int(batch.valid_frames.sum()) for clips in step.work for batch in clips)
    memory = torch.cuda.max_memory_allocated() if run.world.device.type == "cuda" else None
    clip_ids = [step.stage.loader.clip(position).id for position in step.positions(run.parts.layout.clips)]
    return {
        "step": run.progress.step,
        **result.metrics,
        "lr": rates,
        "sample_ids": digest(clip_ids),
        "clips": run.progress.clips,
        "predicted_tokens": result.tokens,
        "timing": {
            "step_seconds": seconds,
            "audio_frames_per_second": heard / seconds,
            "elapsed_seconds": run.progress.elapsed_seconds,
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
