"""`python -m benchmarks.ttt.gpu`: the layer on a GPU. Without one it says "not run: no GPU" and succeeds."""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.ttt import machine, problem
from ttt_moshi.ttt import TTTConfig, TTTLayer
from ttt_moshi.ttt.scan import scan


def milliseconds(run: Callable[[], Any], repeats: int = 10) -> float:
    """Median time of `run` on the device."""
    for _ in range(3):
        run()
    times = []
    for _ in range(repeats):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        run()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end))
    return statistics.median(times)


def graphed(run: Callable[[], Any], repeats: int = 10) -> float:
    """Median time of `run` replayed from a CUDA graph."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            run()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    return milliseconds(graph.replay, repeats)


def inner_scan(T: int, K: int) -> dict[str, float]:
    """Forward and backward of the scan alone, 32 heads of 128, eager and replayed from a graph."""
    frames, memory, norm, rule = problem.make(T // K * K, K, device="cuda")
    inputs = problem.leaves(frames, memory, norm)

    def run() -> None:
        out, _ = scan(frames, memory.weights, norm, rule)
        torch.autograd.grad(out, inputs, torch.ones_like(out))

    return {"eager_ms": milliseconds(run), "graph_ms": graphed(run)}


def layers(T: int, K: int) -> dict[str, float]:
    """Forward and backward of a whole TTT layer, and of full causal attention of the same width, in bfloat16."""
    layer = TTTLayer(TTTConfig(dim=4096, num_heads=32, mini_batch_size=K), device="cuda")
    for projection in (layer.wq, layer.wk, layer.wv, layer.wo):
        projection.to(torch.bfloat16)
    weights = [
        torch.randn(4096, 4096, device="cuda", dtype=torch.bfloat16).mul_(0.015).requires_grad_() for _ in range(4)
    ]
    x = torch.randn(1, T, 4096, device="cuda", dtype=torch.bfloat16, requires_grad=True)

    def ttt() -> None:
        y, _ = layer(x)
        y.backward(torch.ones_like(y))

    def attention() -> None:
        q, k, v = ((x @ w).unflatten(-1, (32, 128)).transpose(1, 2) for w in weights[:3])
        y: Tensor = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2) @ weights[3]
        y.backward(torch.ones_like(y))

    return {"ttt_ms": milliseconds(ttt), "attention_ms": milliseconds(attention)}


@torch.no_grad()
def streaming(K: int, num_layers: int = 8) -> dict[str, float]:
    """One frame through `num_layers` layers at batch 1, replayed from a graph."""
    stack = [TTTLayer(TTTConfig(dim=4096, num_heads=32, mini_batch_size=K), device="cuda") for _ in range(num_layers)]
    states = [layer.init_state(1) for layer in stack]
    x = torch.randn(1, 1, 4096, device="cuda", dtype=torch.bfloat16)

    def run() -> None:
        y = x
        for layer, state in zip(stack, states, strict=True):
            y = layer.stream(y, state)

    return {"eager_ms": milliseconds(run, 50), "graph_ms": graphed(run, 50)}


def measure() -> dict[str, Any]:
    """All of it."""
    result: dict[str, Any] = {"status": "run", "machine": machine.facts()}
    result["inner_scan"] = {f"T={T} K={K}": inner_scan(T, K) for T in (1250, 7500) for K in (16, 64)}
    result["layers"] = {f"T={T} K=64": layers(T, 64) for T in (750, 1500, 3000, 7500, 15_000, 30_000)}
    result["streaming_8_layers"] = {f"K={K}": streaming(K) for K in (16, 64)}
    result["peak_bytes"] = torch.cuda.max_memory_allocated()
    return result


def main(argv: list[str] | None = None) -> int:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, help="where to write the result")
    parser.add_argument("--plot", type=Path, help="where to draw time against length")
    options = parser.parse_args(argv)
    if torch.cuda.is_available():
        result = measure()
        print(result)
        if options.plot:
            plot(options.plot, result["layers"])
    else:
        result = {"status": "not run", "reason": "no GPU", "machine": machine.facts()}
        print("not run: no GPU")
    if options.json:
        machine.write(options.json, result)
    return 0


def plot(path: Path, rows: dict[str, dict[str, float]]) -> None:
    """Time of the two layers against the length of the sequence."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    lengths = [int(name.split()[0].removeprefix("T=")) for name in rows]
    figure, axes = pyplot.subplots()
    for name in ("ttt_ms", "attention_ms"):
        axes.loglog(lengths, [row[name] for row in rows.values()], marker="o", label=name.removesuffix("_ms"))
    axes.set_xlabel("frames")
    axes.set_ylabel("forward and backward, ms")
    axes.legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


if __name__ == "__main__":
    raise SystemExit(main())
