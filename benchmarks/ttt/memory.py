"""Memory: the streaming state, and what training keeps for its backward pass."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from benchmarks.ttt import problem
from benchmarks.ttt.baselines import naive_scan
from ttt_moshi.ttt import TTTConfig, TTTLayer
from ttt_moshi.ttt.scan import scan


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


def measure(T: int = 256, K: int = 16, ten_minutes: int = 7504) -> dict[str, Any]:
    """At 32 heads of 128; `per_frame` is the slope between T/2 and T frames."""

    def of(length: int, name: str) -> int:
        frames, memory, norm, rule = problem.make(length, K)
        if name == "naive autograd":
            return kept(lambda: naive_scan(list(frames), list(memory.weights), list(norm), K))  # type: ignore[arg-type]
        return kept(lambda: scan(frames, memory.weights, norm, rule, name)[0])  # type: ignore[arg-type]

    per_frame = {name: (of(T, name) - of(T // 2, name)) / (T - T // 2) for name in ("naive autograd", "rebuild")}
    state = TTTLayer(TTTConfig(dim=4096, num_heads=32, mini_batch_size=K), device="meta").init_state(1)
    return {
        "state_bytes": state.num_bytes,
        "per_frame_bytes": per_frame,
        "vs_naive": per_frame["naive autograd"] / per_frame["rebuild"],
        "ten_minute_bytes": {policy: of(ten_minutes, policy) for policy in ("rebuild", "checkpoint")},
    }
