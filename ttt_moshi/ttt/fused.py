"""When the fused forward kernel is used, and how it is called.

It is tried once for every geometry, on random inputs, against the plain form: a kernel that does not compile, does not
fit or computes something else is never used, and a warning says why.
"""

from __future__ import annotations

import functools
import importlib.util
import warnings
from collections.abc import Sequence

import torch
from torch import Tensor

from ttt_moshi.ttt import mlp_step
from ttt_moshi.ttt.config import LN_EPS
from ttt_moshi.ttt.scan_types import Fixed, Inputs, make_batches

TOLERANCE = 1e-4
"""Largest difference from the plain form in the trial, relative to the largest value."""


def usable(q: Tensor, weights: Sequence[Tensor], K: int, fading: bool = False) -> bool:
    """Whether `forward` can take these (q [G, T, f]); warns once per geometry if a GPU has to do without it."""
    if q.device.type != "cuda":
        return False
    kind = "mlp" if len(weights) == 4 else "linear"
    reason = reason_against(kind, q.device, q.dtype, K, q.shape[-1])
    if fading:
        reason = "it cannot forget (half_life_frames)"
    if reason:
        _warn_once(f"TTT layers run without their fused kernel, slower: {reason}")
    return not reason


@functools.cache
def _warn_once(message: str) -> None:
    warnings.warn(message, RuntimeWarning, stacklevel=2)


@functools.cache
def reason_against(kind: str, device: torch.device, dtype: torch.dtype, K: int, f: int) -> str | None:
    """Why the kernel cannot be used for this geometry; None if it can."""
    if kind != "mlp":
        return "there is none for the linear inner network"
    if dtype != torch.float32:
        return f"it works in torch.float32, not in {dtype}"
    if K not in (16, 32, 64) or f not in (16, 32, 64, 128):
        return f"it needs mini_batch_size 16, 32 or 64 and head_dim 16, 32, 64 or 128, got {K} and {f}"
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed"
    try:
        error = trial(device, K, f)
    except Exception as failure:  # noqa: BLE001 - no compiler, no driver, no room: whatever it is, the plain form works
        return f"{type(failure).__name__} at mini_batch_size {K}, head_dim {f}: {' '.join(str(failure).split())}"
    if not error <= TOLERANCE:
        return f"its result is off by {error:.1e} (relative) at mini_batch_size {K}, head_dim {f} on this device"
    return None


@torch.no_grad()
def trial(device: torch.device, K: int, f: int, update_biases: bool = True) -> float:
    """Largest relative difference between the kernel and `mlp_step.forward`: outputs, saved tensors, weights."""
    generator = torch.Generator().manual_seed(0)
    G, N, h = 2, 3, 4 * f

    def random(*shape: int, scale: float = 1.0) -> Tensor:
        return (torch.randn(shape, generator=generator) * scale).to(device)

    q, k, target = (random(G, N * K, f) for _ in range(3))
    lam = random(G, N * K).abs() / h
    gamma, beta = 1 + random(G, 1, f, scale=0.1), random(G, 1, f, scale=0.1)
    tau = torch.arange(1, K + 1, device=device, dtype=torch.float32).reciprocal()
    inputs = Inputs(q, k, target, lam, gamma, beta, tau)
    weights = [random(G, f, h, scale=f**-0.5), random(G, 1, h), random(G, h, f, scale=h**-0.5), random(G, 1, f)]
    bias = float(update_biases)

    def room() -> list[Tensor]:
        return [torch.empty(N, G, rows * K, width, device=device) for rows, width in mlp_step.saved_shapes(weights)]

    mine, theirs = [w.clone() for w in weights], [w.clone() for w in weights]
    saved, expected_saved = room(), room()
    out = forward(inputs, mine, saved, bias)
    batches, fixed = make_batches(inputs, bias), Fixed(gamma, beta, bias)
    expected = torch.cat(
        [mlp_step.forward(theirs, b, fixed, [t[n] for t in expected_saved]) for n, b in enumerate(batches.unbind())],
        dim=1,
    )
    pairs = zip([out, *saved, *mine], [expected, *expected_saved, *theirs], strict=True)
    return max(float((a - b).abs().max() / b.abs().max()) for a, b in pairs)


def forward(inputs: Inputs, weights: list[Tensor], saved: list[Tensor], bias: float) -> Tensor:
    """All mini-batches: outputs [G, T, f]. `weights` are updated in place; `saved` is filled as by `mlp_step.forward`,
    mini-batch by mini-batch along its first axis, or always at 0 if that axis has length 1.
    """
    import triton

    from ttt_moshi.ttt.fused_kernel import forward_kernel

    K = len(inputs.tau)
    G, T, f = inputs.q.shape
    h = weights[0].shape[-1]
    given = Inputs(*(t.contiguous() for t in inputs))
    out = torch.empty_like(given.q)
    strides = [t.stride(0) if len(t) > 1 else 0 for t in saved]
    forward_kernel[(G,)](
        *given, *weights, out, *saved, T // K, *strides,
        BIAS=int(bias), K=K, F=f, H=h, TILE=min(h, triton.next_power_of_2(max(16, 4096 // f))), EPS=LN_EPS,
        num_warps=8, num_stages=1,
    )  # fmt: skip
    return out
