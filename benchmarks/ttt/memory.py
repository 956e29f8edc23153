"""Memory: the streaming state, and what training keeps for its backward pass."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from benchmarks.ttt import problem
from benchmarks.ttt.baselines import naive_scan
from ttt_moshi.ttt import TTTConfig, TTTLayer
from ttt_moshi.ttt.delta import DeltaFrames, delta_scan
from ttt_moshi.ttt.scan import scan
from ttt_moshi.ttt.state import Weights

INNER = ("mlp", "linear", "delta")


def kept(run: Callable[[], Tensor]) -> int:
    """Bytes that the graph of `run()` holds, every storage once."""
    storages: dict[int, tuple[int, Tensor]] = {}

    def pack(tensor: Tensor) -> Tensor:
        storages[tensor.untyped_storage().data_ptr()] = (tensor.untyped_storage().nbytes(), tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        out = run()
    total = sum(size for size, _ in storages.values())
    del out
    return total


def of_scan(inner: str, T: int, K: int = 16) -> int:
    """Bytes that the scan of an inner network keeps for the backward pass of T frames, at 32 heads of 128."""
    if inner == "delta":
        H, f = 32, 128
        leaves = [torch.randn(1, H, T, f) for _ in range(3)] + [torch.rand(1, H, T), torch.randn(1, H, f, f)]
        q, k, v, beta, W = (t.requires_grad_() for t in leaves)
        given = DeltaFrames(q, k, v, beta, -torch.rand(1, H, 1).expand(1, H, T))
        return kept(lambda: delta_scan(given, W, W[0].detach())[0])
    frames, memory, norm, rule = problem.make(T, K)
    weights = memory.weights
    if inner == "linear":
        weights = Weights(weights.W1[..., :128].detach().contiguous(), weights.b1[..., :128].detach(), None, None)
    return kept(lambda: scan(frames, weights, norm, rule)[0])


def measure(T: int = 256, K: int = 16, ten_minutes: int = 7504) -> dict[str, Any]:
    """At 32 heads of 128; `per_frame` is the slope between T/2 and T frames."""

    def of(length: int, name: str) -> int:
        frames, memory, norm, rule = problem.make(length, K)
        if name == "naive autograd":
            return kept(lambda: naive_scan(list(frames), list(memory.weights), list(norm), K))  # type: ignore[arg-type]
        return kept(lambda: scan(frames, memory.weights, norm, rule, name)[0])  # type: ignore[arg-type]

    per_frame = {name: (of(T, name) - of(T // 2, name)) / (T - T // 2) for name in ("naive autograd", "rebuild")}
    states = {
        inner: TTTLayer(TTTConfig(dim=4096, num_heads=32, inner=inner), device="meta").init_state(1).num_bytes  # type: ignore[arg-type]
        for inner in INNER
    }
    return {
        "state_bytes": states["mlp"],
        "by_inner_network": {
            inner: {
                "state_bytes": states[inner],
                "per_frame_bytes": (of_scan(inner, 2 * T) - of_scan(inner, T)) / T,
            }
            for inner in INNER
        },
        "per_frame_bytes": per_frame,
        "vs_naive": per_frame["naive autograd"] / per_frame["rebuild"],
        "ten_minute_bytes": {policy: of(ten_minutes, policy) for policy in ("rebuild", "checkpoint")},
    }
