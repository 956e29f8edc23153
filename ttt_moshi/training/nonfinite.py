"""A run whose loss or gradient is no number any more: which state is good, what was heard, how to go on."""

from __future__ import annotations

import math
from typing import Any

from ttt_moshi.errors import UserError
from ttt_moshi.training.step import StepResult, forward_is_finite
from ttt_moshi.training.under_way import Run, Step
from ttt_moshi.training.where import heard

# So many recordings are named in the message; `ttt-moshi data where` names all.
SHOWN = 4


class NonFiniteLossError(UserError):
    """The loss or a gradient stopped being a number.

    Args:
        options: what to add to the command line in order to go on, or nothing where there is no state to go on from.
    """

    def __init__(self, message: str, options: list[str]) -> None:
        super().__init__(message)
        self.options = options


def end(run: Run, step: Step, result: StepResult) -> NonFiniteLossError:
    """Saves what can be resumed from after a step that was not finite, and says how to go on. All ranks call it.

    The step has left nothing behind, so the state is that of the step before. It is good unless its own forward pass
    fails once more: then nothing may resume from it, or every restart would meet the same end.
    """
    number = run.progress.step + 1
    bad = {k: v for k, v in result.metrics.items() if k in ("text_loss", "audio_loss", "distill_loss", "grad_norm")}
    what = f"step {number} is not finite ({_text(bad)}). It heard {_heard(run, step, number)}"
    if not math.isfinite(result.metrics["loss"]):
        if forward_is_finite(run.parts.model, run.parts.feed, step.work, run.world, step.restart, step.inherit):
            kept = _save(run)
            return NonFiniteLossError(
                f"{what}. Repeated, it was finite: look for a fault of memory, processor or driver. {kept}",
                ["--checkpoint.resume", "true"] if run.saves is not None and run.progress.step else [],
            )
        return _bad_weights(run, what)
    kept = _save(run)
    good = None if run.saves is None else run.saves.newest_good(before=run.progress.step)
    return NonFiniteLossError(f"{what}. Its loss is finite, a gradient is not. {kept}", _slower(run, good))


def end_last(run: Run, step: Step) -> NonFiniteLossError:
    """As `end`, for the last step of a run, which no later one has tried."""
    what = f"after the last step, {run.progress.step}, the model's losses are not finite. It heard " + _heard(
        run, step, run.progress.step
    )
    return _bad_weights(run, what)


def _bad_weights(run: Run, what: str) -> NonFiniteLossError:
    step = run.progress.step
    if run.saves is None:
        return NonFiniteLossError(f"{what}. No checkpoint was saved (do_ckpt is false)", [])
    if step:
        run.saves.set_unhealthy(run.progress, "its own forward pass is not finite")
        what += f". The state after step {step} gives such losses itself: it is kept as unhealthy, for a look only"
    good = run.saves.newest_good()
    if good is None:
        return NonFiniteLossError(
            f"{what}. There is no earlier checkpoint: begin anew with a lower optim.lr (now {run.args.optim.lr:g}) or "
            "ttt.base_lr, and with ckpt_freq",
            [],
        )
    return NonFiniteLossError(f"{what}. The last step known good is {good}", _slower(run, good))


def _slower(run: Run, good: int | None) -> list[str]:
    """How to go on from a good step at half the rate."""
    if good is None:
        return []
    step = ["--checkpoint.resume_step", str(good)]
    return ["--checkpoint.resume", "true", *step, "--optim.lr", f"{run.args.optim.lr / 2:g}"]


def _save(run: Run) -> str:
    if run.saves is None:
        return "No checkpoint was saved (do_ckpt is false)"
    if not run.progress.step:
        return "Nothing was trained yet"
    if run.progress.step != run.saves.begun:
        run.saves.begin(run.progress, run.metrics)
    run.saves.finish(run.progress, run.metrics)
    return f"The state before it is saved at step {run.progress.step}"


def _heard(run: Run, step: Step, number: int) -> str:
    clips = heard(step.stage, step.positions(run.parts.layout.clips))
    more = f" and {len(clips) - SHOWN} more (`ttt-moshi data where {run.run_dir.path} --step {number}`)"
    return ", ".join(clip.text() for clip in clips[:SHOWN]) + (more if len(clips) > SHOWN else "")


def _text(values: dict[str, Any]) -> str:
    parts = []
    for name, value in values.items():
        parts.append(f"{name} {_text(value)}" if isinstance(value, dict) else f"{name} {value:.4g}")
    return ", ".join(parts)
