"""When the delta rule runs through the kernels of fla-core on a GPU, and how they are called.

They are tried once for every geometry, values and gradients, against our own form: kernels that are not installed, do
not compile or compute something else are not used, and a warning says why.
"""

from __future__ import annotations

import functools
import importlib.util
import warnings
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ttt_moshi.ttt.delta import CHUNK, Core, DeltaFrames, chunked, delta_scan

TOLERANCE = 1e-2
"""Largest difference from our own form in the trial, relative to the largest value: products are taken in tf32."""


def scan(frames: DeltaFrames, W: Tensor, start: Tensor) -> tuple[Tensor, Tensor]:
    """`delta_scan`, through the kernels where they can be used. Raises nothing of its own."""
    core: Core = chunked
    if W.device.type == "cuda":
        reason = reason_against(W.device, W.dtype, W.shape[-1])
        if reason is None:
            core = adapted(_rule("chunk_gated_delta_rule"))
        else:
            _warn_once(f"the delta rule runs without the kernels of fla-core, slower: {reason}")
    return delta_scan(frames, W, start, core)


@functools.cache
def _warn_once(message: str) -> None:
    warnings.warn(message, RuntimeWarning, stacklevel=2)


@functools.cache
def reason_against(device: torch.device, dtype: torch.dtype, f: int) -> str | None:
    """Why the kernels cannot be used for heads of width f; None if they can."""
    if dtype != torch.float32:
        return f"they are tried in torch.float32, not in {dtype}"
    if importlib.util.find_spec("fla") is None:
        return "fla-core is not installed (`pip install 'ttt-moshi[gpu]'`)"
    try:
        error = trial(device, f, _rule("chunk_gated_delta_rule"))
    except Exception as failure:  # noqa: BLE001 - no driver, no compiler, no room, another version: ours works
        return f"{type(failure).__name__} at head_dim {f}: {' '.join(str(failure).split())}"
    if not error <= TOLERANCE:
        return f"their result is off by {error:.1e} (relative) at head_dim {f} on this device"
    return None


def _rule(name: str) -> Callable[..., tuple[Tensor, Tensor]]:
    module: Any = importlib.import_module("fla.ops.gated_delta_rule")
    return getattr(module, name)


def adapted(rule: Callable[..., tuple[Tensor, Tensor]]) -> Core:
    """A function of fla-core in the form of `delta.chunked`: theirs has time before heads."""

    def core(frames: DeltaFrames, S: Tensor) -> tuple[Tensor, Tensor]:
        log_retain = torch.zeros_like(frames.beta) if frames.log_retain is None else frames.log_retain
        given = frames._replace(log_retain=log_retain)
        q, k, v, beta, g = (t.transpose(1, 2).contiguous() for t in given)  # type: ignore[union-attr]
        z, S = rule(
            q=q, k=k, v=v, g=g, beta=beta, scale=1.0, initial_state=S.contiguous(), output_final_state=True
        )  # fmt: skip
        return z.transpose(1, 2), S

    return core


def trial(device: torch.device, f: int, rule: Callable[..., tuple[Tensor, Tensor]]) -> float:
    """Largest relative difference between the two forms: values, fast weights and all gradients."""
    generator = torch.Generator().manual_seed(0)
    B, H, T = 2, 2, 2 * CHUNK + 5

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    q, k = (F.normalize(random(B, H, T, f), dim=-1) for _ in range(2))
    gates = torch.sigmoid(random(B, H, T)), -0.1 * random(B, H, T).square()
    leaves = [t.to(device).requires_grad_() for t in (q, k, random(B, H, T, f), *gates, random(B, H, f, f))]
    start = random(H, f, f).to(device)

    def run(core: Core) -> list[Tensor]:
        with torch.enable_grad():
            z, W = delta_scan(DeltaFrames(*leaves[:5]), leaves[5], start, core)
            gradients = torch.autograd.grad(z.square().sum() + W.sum(), leaves)
        return [z.detach(), W.detach(), *gradients]

    pairs = zip(run(adapted(rule)), run(chunked), strict=True)
    return max(float((a - b).abs().max() / b.abs().max()) for a, b in pairs)
