"""`python -m benchmarks.ttt.gpu`: the layer on a GPU. Without one it says "not run: no GPU" and succeeds.

Needs torch and moshi only; the plot needs matplotlib too.
"""

from __future__ import annotations

import argparse
import importlib.util
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from moshi.modules.transformer import StreamingTransformer
from torch import Tensor

from benchmarks.ttt import machine, problem
from ttt_moshi.moshi.layer import TTTTransformerLayer
from ttt_moshi.ttt import TTTConfig, TTTLayer
from ttt_moshi.ttt.scan import scan


@dataclass(frozen=True)
class Sizes:
    """What is measured: the temporal transformer of Moshi 7B, unless told otherwise."""

    device: str = "cuda"
    dim: int = 4096
    heads: int = 32
    num_layers: int = 32
    num_ttt_layers: int = 8
    context: int = 3000
    scan_lengths: tuple[int, ...] = (1250, 7500)
    lengths: tuple[int, ...] = (750, 1500, 3000, 7500, 15_000, 30_000)
    mini_batches: tuple[int, ...] = (16, 64)
    batch_size: int = 4
    sample: int = 1250
    hour: int = 45_000
    """frames streamed between the first and the last timing"""

    def layer(self, K: int) -> TTTLayer:
        """A TTT layer with bfloat16 projections."""
        layer = TTTLayer(TTTConfig(dim=self.dim, num_heads=self.heads, mini_batch_size=K), device=self.device)
        for projection in (layer.wq, layer.wk, layer.wv, layer.wo):
            projection.to(torch.bfloat16)
        return layer

    def random(self, *shape: int) -> Tensor:
        """Normal numbers in bfloat16."""
        return torch.randn(*shape, device=self.device, dtype=torch.bfloat16)


def milliseconds(run: Callable[[], Any], repeats: int = 10) -> float:
    """Median time of `run`, with the device idle before and after."""
    synchronize = torch.cuda.synchronize if torch.cuda.is_available() else lambda: None
    times = []
    for turn in range(3 + repeats):
        synchronize()
        start = time.perf_counter()
        run()
        synchronize()
        if turn >= 3:
            times.append(1e3 * (time.perf_counter() - start))
    return statistics.median(times)


def captured(run: Callable[[], Any]) -> Callable[[], Any]:
    """`run` as a CUDA graph to replay (without a GPU: itself)."""
    if not torch.cuda.is_available():
        return run
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            run()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    return graph.replay


def inner_scan(sizes: Sizes, T: int, K: int) -> dict[str, float]:
    """Forward and backward of the scan alone, eager and replayed from a graph."""
    T = T // K * K
    frames, memory, norm, rule = problem.make(T, K, H=sizes.heads, f=sizes.dim // sizes.heads, device=sizes.device)
    inputs = [leaf.detach().requires_grad_() for leaf in problem.leaves(frames, memory, norm)]
    frames, norm = type(frames)(*inputs[:4]), type(norm)(*inputs[8:])
    weights = type(memory.weights)(*inputs[4:8])

    def run() -> None:
        out, _ = scan(frames, weights, norm, rule)
        torch.autograd.grad(out, inputs, torch.ones_like(out), allow_unused=True)

    return {"eager_ms": milliseconds(run), "graph_ms": milliseconds(captured(run))}


def layers(sizes: Sizes, T: int, K: int) -> dict[str, float]:
    """Forward and backward of a whole TTT layer, and of full causal attention of the same width, in bfloat16."""
    layer = sizes.layer(K)
    projections = [sizes.random(sizes.dim, sizes.dim).mul_(sizes.dim**-0.5).requires_grad_() for _ in range(4)]
    x = sizes.random(1, T, sizes.dim).requires_grad_()
    parameters = [x, *layer.parameters()]

    def ttt() -> None:
        y, _ = layer(x)
        torch.autograd.grad(y, parameters, torch.ones_like(y), allow_unused=True)

    def attention() -> None:
        q, k, v = ((x @ w).unflatten(-1, (sizes.heads, -1)).transpose(1, 2) for w in projections[:3])
        y: Tensor = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2) @ projections[3]
        torch.autograd.grad(y, [x, *projections], torch.ones_like(y))

    return {
        "ttt_ms": milliseconds(ttt),
        "ttt_graph_ms": milliseconds(captured(ttt)),
        "attention_ms": milliseconds(attention),
    }


def temporal_model(sizes: Sizes, K: int, with_ttt: bool) -> dict[str, float]:
    """Forward and backward of the temporal transformer, each layer checkpointed; all parameters get a gradient.

    `added_bytes` is the peak beyond parameters and their gradients.
    """
    model = StreamingTransformer(
        sizes.dim, sizes.heads, sizes.num_layers, dim_feedforward=int(4.125 * sizes.dim), causal=True,
        context=sizes.context, positional_embedding="rope", gating="silu", norm="rms_norm_f32",
        layer_class=TTTTransformerLayer, checkpointing=True, device=sizes.device, dtype=torch.bfloat16,
    )  # fmt: skip
    first = (sizes.num_layers - sizes.num_ttt_layers) // 2
    if with_ttt:
        for layer in model.layers[first : first + sizes.num_ttt_layers]:
            layer.ttt = sizes.layer(K)
    x = sizes.random(sizes.batch_size, sizes.sample, sizes.dim).requires_grad_()
    parameters = [p for p in model.parameters() if p.requires_grad]

    def step() -> None:
        y = model(x)
        y.backward(torch.ones_like(y))
        for p in parameters:
            p.grad = None

    found = {"step_ms": milliseconds(step, 5)}
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        step()
        standing = 2 * sum(p.numel() * p.element_size() for p in parameters)
        found["added_bytes"] = torch.cuda.max_memory_allocated() - standing
    return found


@torch.no_grad()
def streaming(sizes: Sizes, K: int) -> dict[str, float]:
    """One frame through all TTT layers of the model at batch 1: eager, and from a graph early and an hour later."""
    stack = [sizes.layer(K) for _ in range(sizes.num_ttt_layers)]
    states = [layer.init_state(1) for layer in stack]
    x = sizes.random(1, 1, sizes.dim)

    def run() -> None:
        y = x
        for layer, state in zip(stack, states, strict=True):
            y = layer.stream(y, state)

    eager, replay = milliseconds(run, 50), captured(run)
    early = milliseconds(replay, 500)
    for _ in range(sizes.hour):
        replay()
    return {"eager_ms": eager, "graph_ms": early, "graph_ms_an_hour_later": milliseconds(replay, 500)}


def attempt(measurement: Callable[..., dict[str, float]], *arguments: Any) -> dict[str, Any]:
    """The result, or why there is none: one measurement that fails (out of memory, say) must not cost the others."""
    try:
        return measurement(*arguments)
    except RuntimeError as error:
        return {"error": f"{type(error).__name__}: {error}"}
    finally:
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def measure(sizes: Sizes) -> dict[str, Any]:
    """All of it."""
    result: dict[str, Any] = {"status": "run", "machine": machine.facts()}
    long_K = sizes.mini_batches[-1]
    result["inner_scan"] = {
        f"T={T} K={K}": attempt(inner_scan, sizes, T, K) for T in sizes.scan_lengths for K in sizes.mini_batches
    }
    result["layers"] = {f"T={T} K={long_K}": attempt(layers, sizes, T, long_K) for T in sizes.lengths}
    result["streaming"] = {f"K={K}": attempt(streaming, sizes, K) for K in sizes.mini_batches}
    result["temporal_model"] = {
        "base": attempt(temporal_model, sizes, long_K, False),
        **{f"TTT K={K}": attempt(temporal_model, sizes, K, True) for K in sizes.mini_batches},
    }
    return result


def bars(result: dict[str, Any]) -> list[tuple[str, float, float]]:
    """Name, figure and upper bound of what is held to one; a figure that could not be measured is left out."""
    scans, rows, model = result["inner_scan"], result["layers"], result["temporal_model"]
    frame = result["streaming"].get("K=64", {})
    found: list[tuple[str, Callable[[], float], float]] = [
        ("scan, 1250 frames, K=64, graph: ms", lambda: scans["T=1250 K=64"]["graph_ms"], 6.0),
        ("scan, 1250 frames, K=64, eager: ms", lambda: scans["T=1250 K=64"]["eager_ms"], 30.0),
        ("layer over attention, 3000 frames", lambda: _over_attention(rows["T=3000 K=64"]), 5.0),
        ("layer over attention, 30,000 frames", lambda: _over_attention(rows["T=30000 K=64"]), 2.0),
        ("temporal model: step over base", lambda: model["TTT K=64"]["step_ms"] / model["base"]["step_ms"], 1.35),
        (
            "temporal model: GB added in training",
            lambda: (model["TTT K=64"]["added_bytes"] - model["base"]["added_bytes"]) / 1e9,
            6.0,
        ),
        ("a frame through all TTT layers, graph: ms", lambda: frame["graph_ms"], 1.5),
        ("the same an hour later, share", lambda: frame["graph_ms_an_hour_later"] / frame["graph_ms"], 1.05),
    ]
    measured = []
    for name, figure, bound in found:
        try:
            measured.append((name, figure(), bound))
        except KeyError:
            continue
    return measured


def _over_attention(row: dict[str, float]) -> float:
    return row["ttt_graph_ms"] / row["attention_ms"]


def main(argv: list[str] | None = None) -> int:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, help="where to write the result")
    parser.add_argument("--plot", type=Path, help="where to draw time against length; default: beside the JSON file")
    options = parser.parse_args(argv)
    if torch.cuda.is_available():
        result = measure(Sizes())
        print(result)
        for name, value, bound in bars(result):
            print(f"{name}: {value:.3g} (bar {bound:g}, {'met' if value <= bound else 'NOT met'})")
        path = options.plot or (options.json.with_suffix(".png") if options.json else None)
        if path and importlib.util.find_spec("matplotlib") is None:
            print("not drawn: matplotlib is not installed")
        elif path:
            plot(path, result["layers"])
    else:
        result = {"status": "not run", "reason": "no GPU", "machine": machine.facts()}
        print("not run: no GPU")
    if options.json:
        machine.write(options.json, result)
    return 0


def plot(path: Path, rows: dict[str, dict[str, Any]]) -> None:
    """Time of the two layers against the length of the sequence; lengths that failed are left out."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    done = {int(name.split()[0].removeprefix("T=")): row for name, row in rows.items() if "error" not in row}
    figure, axes = pyplot.subplots()
    labels = {"ttt_ms": "TTT layer, eager", "ttt_graph_ms": "TTT layer, graph", "attention_ms": "full causal attention"}
    for key, label in labels.items():
        axes.loglog(list(done), [row[key] for row in done.values()], marker="o", label=label)
    axes.set_xlabel("frames")
    axes.set_ylabel("forward and backward, ms")
    axes.legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


if __name__ == "__main__":
    raise SystemExit(main())
