"""Learning rates as pure functions of configuration and step, so that nothing of them can be lost or restarted."""

from __future__ import annotations

import math

from ttt_moshi.config import OptimArgs

START_FACTOR = 25.0
END_FACTOR = 1e4


def peak_learning_rates(optim: OptimArgs) -> dict[str, float]:
    """Peak learning rate of each role."""
    ttt = optim.lr if optim.ttt_lr is None else optim.ttt_lr
    return {
        "base": optim.lr,
        "lora": optim.lr,
        "ttt": ttt,
        "fast_weight": ttt if optim.fast_weight_lr is None else optim.fast_weight_lr,
        "gate": ttt if optim.gate_lr is None else optim.gate_lr,
    }


def one_cycle(step: int, max_steps: int, pct_start: float) -> float:
    """Share of the peak learning rate at optimizer step `step` (0 is the first).

    Cosine from 1/25 up to 1 over the first `pct_start` of the run, then cosine down to 1/250,000: the curve of
    `torch.optim.lr_scheduler.OneCycleLR` (Smith and Topin, arXiv:1708.07120) without its cycling of beta1.

    Raises:
        ValueError: `step` is outside of the run.
    """
    if not 0 <= step < max_steps:
        raise ValueError(f"step {step} is outside of a run of {max_steps} steps")
    start, end = 1 / START_FACTOR, 1 / START_FACTOR / END_FACTOR
    peak = pct_start * max_steps - 1
    if step <= peak:
        return _cosine(start, 1.0, step / peak if peak > 0 else 1.0)
    last = max_steps - 1
    return _cosine(1.0, end, (step - peak) / (last - peak))


def _cosine(begin: float, end: float, share: float) -> float:
    return end + (begin - end) / 2 * (1 + math.cos(math.pi * share))
