"""Training: the fast scan beside autograd and checkpointed autograd, forward and backward, one layer."""

from __future__ import annotations

import time
from typing import Any

import torch
from torch import Tensor

from benchmarks.ttt import problem
from benchmarks.ttt.baselines import naive_scan
from ttt_moshi.ttt.scan import scan

PUBLIC_GROUP = 16
"""mini-batches recomputed together in public training code"""


def forms(frames: Any, memory: Any, norm: Any, rule: Any) -> dict[str, Any]:
    """Name to a function that runs the forward pass."""
    weights = list(memory.weights)
    K = rule.mini_batch_size
    return {
        "naive autograd": lambda: naive_scan(list(frames), weights, list(norm), K),
        "checkpointed naive": lambda: naive_scan(list(frames), weights, list(norm), K, group=PUBLIC_GROUP),
        "scan, rebuild": lambda: scan(frames, memory.weights, norm, rule)[0],
        "scan, checkpoint": lambda: scan(frames, memory.weights, norm, rule, "checkpoint")[0],
    }


def measure(
    T: int = 640, sizes: tuple[int, ...] = (16, 64), repeats: int = 7, H: int = 32, f: int = 128
) -> list[dict[str, Any]]:
    """CPU seconds (the best of `repeats`, forms taken in turn) and ratios, for each mini-batch size."""
    results = []
    for K in sizes:
        frames, memory, norm, rule = problem.make(T, K, H=H, f=f)
        inputs = problem.leaves(frames, memory, norm)
        runs = forms(frames, memory, norm, rule)
        probe = torch.randn(1, H, T, f, generator=torch.Generator().manual_seed(1))
        expected: list[Tensor] = []
        best = dict.fromkeys(runs, float("inf"))
        for turn in range(repeats + 1):
            for name, run in runs.items():
                start = time.process_time()
                out = run()
                gradients = torch.autograd.grad((out * probe).sum(), inputs)
                seconds = time.process_time() - start
                if turn == 0:  # warm-up: check that all compute the same
                    expected = expected or [out.detach(), *gradients]
                    for mine, theirs in zip([out.detach(), *gradients], expected, strict=True):
                        error = float((mine - theirs).abs().max() / theirs.abs().max().clamp(min=1e-30))
                        if error > 1e-3:
                            raise AssertionError(f"{name} computes something else: relative difference {error:.1e}")
                    continue
                best[name] = min(best[name], seconds)
        del expected
        ours = best["scan, rebuild"]
        results.append(
            {
                "K": K,
                "T": T,
                "heads": H,
                "head_dim": f,
                "cpu_seconds": best,
                "vs_naive": best["naive autograd"] / ours,
                "vs_checkpointed": best["checkpointed naive"] / ours,
            }
        )
    return results
