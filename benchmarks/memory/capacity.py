"""`python -m benchmarks.memory.capacity`: how many pairs each inner network holds, at equal bytes and at equal time.

No training: networks as they are initialised hear pairs of random keys and values once, and are asked for every key. An
answer is right where, of all values heard, the key's own is nearest in direction. So this is what the rule of writing
and the size of the memory allow, before keys are learned that keep out of one another's way.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from benchmarks.memory import plots
from benchmarks.ttt.capability import HEADS, heard_once
from benchmarks.ttt.machine import facts, write
from ttt_moshi.ttt import TTTConfig
from ttt_moshi.ttt.networks import make_inner

INNER = ("mlp", "linear", "delta")
PAIRS = (16, 32, 64, 128, 256)
"""whole mini-batches: what has not been written yet is not in the weights"""
WIDTH = 32
"""of the MLP's heads; the others are made as wide as equality allows"""
WIDEST = 128
TIMED_FRAMES = 256
REPEATS = 3


def main(argv: list[str] | None = None) -> int:
    """Measures everything, prints the table and draws."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3, help="of keys, values and networks")
    parser.add_argument("--out", type=Path, default=Path("runs/bench-memory"), help="folder of the results")
    options = parser.parse_args(argv)
    wanted = {"equal bytes of state": state_bytes, "equal time": milliseconds}
    curves: dict[str, dict[str, dict[str, float]]] = {}
    for way, cost in wanted.items():
        for inner, f in widths(cost).items():
            share = {str(n): float(np.mean([recall(inner, n, f, s) for s in range(options.seeds)])) for n in PAIRS}
            size, took = state_bytes(inner, f) / 1024, milliseconds(inner, f)
            label = f"{inner}, heads of {f}: {size:.0f} KiB, {took:.0f} ms"
            curves.setdefault(way, {})[label] = share
            print(f"{way:22}{label:44}" + "".join(f"{value:7.3f}" for value in share.values()), flush=True)
    result: dict[str, Any] = {"schema": 1, "pairs": PAIRS, "seeds": options.seeds, "recall": curves, "machine": facts()}
    write(options.out / "capacity.json", result)
    plots.save(plots.capacity_figure(curves), options.out / "capacity")
    print(options.out / "capacity.svg")
    return 0


def recall(inner: str, pairs: int, f: int, seed: int) -> float:
    """Share of the keys, over all heads, whose own value is nearest to what the memory makes of them."""
    _, found, wanted = heard_once(inner, pairs, f=f, seed=seed)
    near = F.normalize(found, dim=-1) @ F.normalize(wanted, dim=-1).mT  # [1, HEADS, pairs, pairs]
    return float((near.argmax(-1) == torch.arange(pairs)).float().mean())


def state_bytes(inner: str, f: int) -> float:
    """Of one stream."""
    return make_inner(TTTConfig(HEADS * f, HEADS, inner=inner), device="meta").initial_state(1).num_bytes  # type: ignore[arg-type]


def milliseconds(inner: str, f: int) -> float:
    """CPU time of a forward and backward pass over `TIMED_FRAMES`, the quickest of some."""
    torch.manual_seed(0)
    net = make_inner(TTTConfig(HEADS * f, HEADS, inner=inner))  # type: ignore[arg-type]
    net.reset_parameters()
    x, valid = torch.randn(1, TIMED_FRAMES, HEADS * f), torch.ones(1, TIMED_FRAMES, dtype=torch.bool)
    q, k, v = torch.randn(3, 1, HEADS, TIMED_FRAMES, f, requires_grad=True)
    took = []
    for _ in range(REPEATS):
        began = time.process_time()
        net(x, q, k, v, valid)[0].sum().backward()
        took.append(time.process_time() - began)
    return 1e3 * min(took)


def widths(cost: Any, candidates: Sequence[int] = range(16, WIDEST + 1, 2)) -> dict[str, int]:
    """How wide each network's heads may be to cost no more than the MLP with heads of `WIDTH`."""
    limit = cost("mlp", WIDTH)
    found = {"mlp": WIDTH}
    for inner in INNER[1:]:
        low, high = 0, len(candidates) - 1
        while low < high:  # the cost grows with the width
            middle = (low + high + 1) // 2
            low, high = (middle, high) if cost(inner, candidates[middle]) <= limit else (low, middle - 1)
        found[inner] = candidates[low]
    return found


if __name__ == "__main__":
    raise SystemExit(main())
