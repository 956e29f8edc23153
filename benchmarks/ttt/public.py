"""`python -m benchmarks.ttt.public --clone DIR`: the scan and one streamed frame beside a public implementation.

DIR is a clone of github.com/test-time-training/ttt-lm-pytorch, the code of arXiv 2407.04620 (it needs `transformers`
4.46). Its `TTTMLP.ttt`, what lies between the projections and the output norm, computes our scan with fast biases and
updates scaled by 1/i, and that is what both are timed on; outputs and gradients are compared first. Nothing of it is
copied here.
"""

from __future__ import annotations

import argparse
import importlib.util
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
from rich.console import Console
from torch import Tensor

from benchmarks.ttt import machine, memory, problem
from ttt_moshi.ttt.block import Frames, Norm, Rule, block_step
from ttt_moshi.ttt.scan import scan
from ttt_moshi.ttt.state import Memory, Weights

H, F = 32, 128
GROUPS = 4
"""parts of the sequence that the public code recomputes in its backward pass, where it is told to"""


class Problem:
    """One layer's inputs, weights and both forms of it; the public layer's parameters are the weights of both."""

    def __init__(self, public: ModuleType, K: int, T: int) -> None:
        config = public.TTTConfig(
            hidden_size=H * F, num_attention_heads=H, mini_batch_size=K, num_hidden_layers=1, ttt_layer_type="mlp"
        )
        self.config, self.layer, self.K = config, public.TTTMLP(config, layer_idx=0), K
        frames, start, _, _ = problem.make(T, K, H=H, f=F)
        self.q, self.k, self.v, self.lam = frames
        layer = self.layer
        with torch.no_grad():
            for mine, theirs in zip(start.weights, (layer.W1, layer.b1, layer.W2, layer.b2), strict=True):
                assert mine is not None
                theirs.copy_(mine[0])
        self.weights = Weights(*(w[None] for w in (layer.W1, layer.b1, layer.W2, layer.b2)))
        self.norm = Norm(layer.ttt_norm_weight[:, None], layer.ttt_norm_bias[:, None])
        self.rule = Rule(K, update_biases=True, reciprocal_positions=True)
        self.memory = Memory(Weights(*(w.detach().clone() for w in self.weights)), start.rows, start.phase)
        cached = SimpleNamespace(config=config, layers=[SimpleNamespace(seq_modeling_block=layer)], device="cpu")
        self.cache = public.TTTCache(cached, 1)
        parameters = (layer.W1, layer.b1, layer.W2, layer.b2, layer.ttt_norm_weight, layer.ttt_norm_bias)
        self.leaves = [self.q, self.k, self.v, self.lam, *parameters]

    def ours(self) -> Tensor:
        """[1, H, T, f]"""
        return scan(Frames(self.q, self.k, self.v - self.k, self.lam), self.weights, self.norm, self.rule)[0]

    def theirs(self, groups: int = 0) -> Tensor:
        """[1, T, H * f]"""
        self.config.scan_checkpoint_group_size = groups
        inputs = self._inputs(slice(None), self.K, self.rule.tau(self.q))
        out: Tensor = self.layer.ttt(inputs, mini_batch_size=self.K, last_mini_batch_params_dict=None)[0]
        return out

    def our_frame(self, t: int) -> Tensor:
        q, k, v, lam = (tensor[:, :, t : t + 1] for tensor in (self.q, self.k, self.v, self.lam))
        frames = Frames(q, k, v - k, lam)
        out, self.memory = block_step(frames, self.memory, self.norm, self.rule, in_place=True)
        return out

    def their_frame(self, t: int) -> Tensor:
        self.cache.seqlen_offset = t
        tau = self.rule.tau(self.q)[t % self.K][None]
        inputs = self._inputs(slice(t, t + 1), 1, tau)
        out: Tensor = self.layer.ttt(inputs, 1, last_mini_batch_params_dict=None, cache_params=self.cache)[0]
        return out

    def _inputs(self, frames: slice, K: int, tau: Tensor) -> dict[str, Tensor]:
        q, k, v = (t[:, :, frames].unflatten(2, (-1, K)) for t in (self.q, self.k, self.v))
        lam = self.lam[:, :, frames].unflatten(2, (-1, K))[..., None, :]
        scale = tau[:, None].expand(*q.shape[:3], K, 1)
        return {"XQ": q, "XK": k, "XV": v, "eta": scale * lam, "token_eta": scale, "ttt_lr_eta": lam}


def check(mine: list[Tensor], theirs: list[Tensor]) -> None:
    """Raises AssertionError where two lists of tensors differ by more than float32 rounding explains."""
    for a, b in zip(mine, theirs, strict=True):
        error = float((a - b).abs().max() / b.abs().max())
        if not error <= 1e-3:
            raise AssertionError(f"the two do not compute the same: relative difference {error:.1e}")


def by_frame(out: Tensor) -> Tensor:
    """[1, H, T, f] as the public code returns it, [1, T, H * f]."""
    return out.transpose(1, 2).flatten(2)


def training(public: ModuleType, K: int, T: int = 640, repeats: int = 3) -> dict[str, Any]:
    """CPU seconds of forward and backward, best of `repeats`, forms in turn; bytes kept for the backward pass."""
    p = Problem(public, K, T)
    runs: dict[str, Callable[[], Tensor]] = {
        "ours": lambda: by_frame(p.ours()),
        "public": p.theirs,
        "public, recomputing": lambda: p.theirs(GROUPS),
    }
    probe = torch.randn(1, T, H * F, generator=torch.Generator().manual_seed(1))
    best, expected = dict.fromkeys(runs, float("inf")), None
    for turn in range(repeats + 1):
        for name, run in runs.items():
            start = time.process_time()
            out = run()
            gradients = torch.autograd.grad((out * probe).sum(), p.leaves)
            seconds = time.process_time() - start
            if turn:
                best[name] = min(best[name], seconds)
            else:  # warm-up
                expected = expected or [out.detach(), *gradients]
                check([out.detach(), *gradients], expected)
    kept = {name: memory.kept(runs[name]) / T for name in ("ours", "public")}
    return {"K": K, "T": T, "cpu_seconds": best, "kept_bytes_per_frame": kept}


@torch.no_grad()
def streaming(public: ModuleType, K: int = 16, count: int = 96) -> dict[str, Any]:
    """CPU milliseconds of a frame, mean and median, a mini-batch of each form in turn."""
    p = Problem(public, K, count)
    times: dict[str, list[float]] = {"ours": [], "public": []}
    for begin in range(0, count, K):
        outputs: dict[str, list[Tensor]] = {"ours": [], "public": []}
        for name, frame in (("ours", p.our_frame), ("public", p.their_frame)):
            for t in range(begin, begin + K):
                start = time.process_time()
                out = frame(t)
                times[name].append(1e3 * (time.process_time() - start))
                outputs[name].append(by_frame(out) if name == "ours" else out)
        check(outputs["ours"], outputs["public"])
    warm = {name: values[K:] for name, values in times.items()}
    return {
        "K": K,
        "mean_ms": {name: statistics.fmean(values) for name, values in warm.items()},
        "median_ms": {name: statistics.median(values) for name, values in warm.items()},
    }


def main(argv: list[str] | None = None) -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clone", type=Path, required=True, help="folder with the public ttt.py")
    parser.add_argument("--json", type=Path, help="where to write the result")
    options = parser.parse_args(argv)
    source = options.clone / "ttt.py"
    if not source.exists():
        parser.error(f"{source} does not exist: --clone takes a clone of github.com/test-time-training/ttt-lm-pytorch")
    if importlib.util.find_spec("transformers") is None:
        parser.error("the public code needs transformers: pip install 'transformers==4.46.3'")
    spec = importlib.util.spec_from_file_location("public_ttt", source)
    assert spec is not None and spec.loader is not None
    public = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(public)
    torch.set_num_threads(1)
    result: dict[str, Any] = {
        "machine": machine.facts(),
        "training": [training(public, K) for K in (16, 64)],
        "streaming": streaming(public),
    }
    console = Console()
    console.print(result)
    for row in result["training"]:
        seconds = row["cpu_seconds"]
        for name in ("public", "public, recomputing"):
            console.print(f"train, K={row['K']}: {seconds[name] / seconds['ours']:.2f} times faster than {name}")
    mean = result["streaming"]["mean_ms"]
    console.print(f"stream: {mean['public'] / mean['ours']:.2f} times faster than public")
    if options.json:
        machine.write(options.json, result)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
