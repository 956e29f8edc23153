"""Streaming: one frame at a time, rows cached (ours) beside gradient sums cached (public decoding code)."""

from __future__ import annotations

import statistics
import time
from typing import Any

import torch

from benchmarks.ttt import problem
from benchmarks.ttt.baselines import Accumulators, accumulator_token
from ttt_moshi.ttt.block import block_step

PLAIN_PASSES = 11
"""Times that the plain form reads or writes a matrix's worth of memory in a frame: two products with the weights or
the frame's own (2), outer product (1), scaled (2), added to the sum (3), taken from the weights (3). W2 once more."""


def roofline(H: int, f: int, state_bytes: int) -> dict[str, float]:
    """What a frame would take if it only read or wrote its memory once at the speed of a plain sum, in milliseconds."""
    large = torch.ones(2**26)  # 256 MB: in no cache
    seconds = []
    for _ in range(5):
        start = time.process_time()
        large.sum()
        seconds.append(time.process_time() - start)
    bandwidth = large.numel() * 4 / min(seconds)
    matrix = H * f * 4 * f * 4
    return {
        "memory_gb_per_s": bandwidth / 1e9,
        "rows_floor_ms": 1e3 * state_bytes / bandwidth,
        "plain_floor_ms": 1e3 * (2 * PLAIN_PASSES + 1) * matrix / bandwidth,
    }


def measure(K: int = 16, H: int = 32, f: int = 128) -> dict[str, Any]:
    """Short turns of one mini-batch, so that every form starts with its memory out of cache; and long ones of six."""
    return {"short turns": turns(K, K, 10, H, f), "long turns": turns(K, 6 * K, 4, H, f)}


@torch.no_grad()
def turns(K: int, turn: int, count: int, H: int, f: int) -> dict[str, Any]:
    """CPU milliseconds of a frame and ratios of means; the forms take `count` turns of `turn` frames, the first to warm
    up.
    """
    frames, memory, norm, rule = problem.make(turn * count, K, H=H, f=f, grad=False)
    W1, b1, W2, b2 = memory.weights
    assert b2 is not None and W2 is not None
    sums = {
        name: Accumulators(W1.clone(), W2.clone(), torch.zeros_like(W1), torch.zeros_like(W2))
        for name in ("accumulators, plain", "accumulators, lean")
    }
    times: dict[str, list[float]] = {name: [] for name in ("rows", *sums)}
    for begin in range(0, turn * count, turn):
        tokens = [frames.between(t, t + 1) for t in range(begin, begin + turn)]
        expected = []
        for token in tokens:
            start = time.process_time()
            out, memory = block_step(token, memory, norm, rule, in_place=True)
            times["rows"].append(time.process_time() - start)
            expected.append(out)
        for name in sums:
            for i, token in enumerate(tokens):
                arguments = ((b1, b2), list(token), list(norm), i % K == K - 1, name.endswith("lean"))
                start = time.process_time()
                out, sums[name] = accumulator_token(sums[name], *arguments)
                times[name].append(time.process_time() - start)
                error = float((out - expected[i]).abs().max() / expected[i].abs().max())
                if error > 1e-4:
                    raise AssertionError(f"{name} computes something else: relative difference {error:.1e}")
    warm = {name: values[turn:] for name, values in times.items()}
    median = {name: 1e3 * statistics.median(values) for name, values in warm.items()}
    commits = [1e3 * seconds for seconds in warm["rows"][K - 1 :: K]]
    mean = {name: statistics.fmean(values) for name, values in warm.items()}
    carried = [*memory.weights, *memory.rows]
    state_bytes = sum(t.numel() * t.element_size() for t in carried if t is not None)
    return {
        "K": K,
        "turn": turn,
        "turns": count - 1,
        "heads": H,
        "head_dim": f,
        "median_ms": median,
        "mean_ms": {name: 1e3 * seconds for name, seconds in mean.items()},
        "roofline": roofline(H, f, state_bytes),
        "commit_median_ms": statistics.median(commits),
        "vs_plain": mean["accumulators, plain"] / mean["rows"],
        "vs_lean": mean["accumulators, lean"] / mean["rows"],
    }
