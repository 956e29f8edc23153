"""Streaming: one frame at a time, rows cached (ours) beside gradient sums cached (public decoding code)."""

from __future__ import annotations

import statistics
import time
from typing import Any

import torch

from benchmarks.ttt import problem
from benchmarks.ttt.baselines import Accumulators, accumulator_token
from ttt_moshi.ttt.block import block_step


@torch.no_grad()
def measure(K: int = 16, frames_count: int = 160, H: int = 32, f: int = 128) -> dict[str, Any]:
    """Median CPU milliseconds of a frame, of ordinary and of committing frames, and ratios; forms taken in turn."""
    frames, memory, norm, rule = problem.make(frames_count, K, H=H, f=f, grad=False)
    W1, b1, W2, b2 = memory.weights
    assert b2 is not None and W2 is not None
    sums = {
        name: Accumulators(W1.clone(), W2.clone(), torch.zeros_like(W1), torch.zeros_like(W2))
        for name in ("accumulators, plain", "accumulators, lean")
    }
    times: dict[str, list[float]] = {name: [] for name in ("rows", *sums)}
    for begin in range(
        0, frames_count, K
    ):  # a mini-batch of each form in turn: none finds the other's data in its cache
        tokens = [frames.between(t, t + 1) for t in range(begin, begin + K)]
        expected = []
        for token in tokens:
            start = time.process_time()
            out, memory = block_step(token, memory, norm, rule, in_place=True)
            times["rows"].append(time.process_time() - start)
            expected.append(out)
        for name in sums:
            for i, token in enumerate(tokens):
                arguments = ((b1, b2), list(token), list(norm), i == K - 1, name.endswith("lean"))
                start = time.process_time()
                out, sums[name] = accumulator_token(sums[name], *arguments)
                times[name].append(time.process_time() - start)
                error = float((out - expected[i]).abs().max() / expected[i].abs().max())
                if error > 1e-4:
                    raise AssertionError(f"{name} computes something else: relative difference {error:.1e}")
    warm = {name: values[K:] for name, values in times.items()}
    median = {name: 1e3 * statistics.median(values) for name, values in warm.items()}
    commits = [1e3 * seconds for seconds in warm["rows"][K - 1 :: K]]
    mean = {name: statistics.fmean(values) for name, values in warm.items()}
    return {
        "K": K,
        "frames": frames_count,
        "heads": H,
        "head_dim": f,
        "median_ms": median,
        "commit_median_ms": statistics.median(commits),
        "vs_plain": mean["accumulators, plain"] / mean["rows"],
        "vs_lean": mean["accumulators, lean"] / mean["rows"],
    }
