"""Formulas shared by the step-by-step and the fast form: norms, their inner gradient, GELU and its slopes."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from ttt_moshi.ttt.config import LN_EPS

GELU_C = 2.0 * math.sqrt(2.0 / math.pi)
GELU_A = 0.044715
"""Of the tanh form: gelu(z) = z sigmoid(GELU_C (z + GELU_A z^3))."""


def gelu(z: Tensor) -> Tensor:
    """GELU, tanh form."""
    return F.gelu(z, approximate="tanh")


def gelu_backward(d: Tensor, z: Tensor) -> Tensor:
    """`d` times the slope of `gelu` at z, in one pass."""
    return torch.ops.aten.gelu_backward(d, z, approximate="tanh")


def gelu_sigmoid(z: Tensor) -> Tensor:
    """s with gelu(z) = z s: s = sigmoid(w), w = c (z + a z^3).

    On a CPU a sigmoid takes a fifth of the time of a tanh, and one serves `gelu` and its derivatives.
    """
    c = z.new_full((), GELU_C)
    return torch.addcmul(c, z, z, value=GELU_C * GELU_A).mul_(z).sigmoid_()


def gelu_rate(z: Tensor) -> Tensor:
    """r = dw/dz, for the derivatives of `gelu` by `gelu_sigmoid`."""
    return torch.addcmul(z.new_full((), GELU_C), z, z, value=3.0 * GELU_C * GELU_A)


def gelu_slope(z: Tensor, s: Tensor, rate: Tensor) -> Tensor:
    """First derivative of `gelu`, s + z s'."""
    return torch.addcmul(s, z, torch.ops.aten.sigmoid_backward(rate, s))


def gelu_curvature(z: Tensor, value: Tensor, s: Tensor, rate: Tensor) -> Tensor:
    """Second derivative of `gelu`, 2 s' + z s''; `value` is gelu(z).

    With s' = s (1 - s) r it is s (1 - s) ((z (1 - 2 s) r + 4) r - 2 c).
    """
    bracket = torch.addcmul(z.new_full((), 4.0), torch.sub(z, value, alpha=2.0), rate)
    bracket = torch.addcmul(z.new_full((), -2.0 * GELU_C), bracket, rate)
    return torch.ops.aten.sigmoid_backward(bracket, s)


def standardise(z: Tensor) -> Tensor:
    """Zero mean and unit (biased) variance over the last axis."""
    return F.layer_norm(z, z.shape[-1:], eps=LN_EPS)


def layer_norm(z: Tensor, gamma: Tensor, beta: Tensor) -> Tensor:
    """LayerNorm over the last axis; `gamma` and `beta` broadcast against `z` (they differ from head to head)."""
    return torch.addcmul(beta, standardise(z), gamma)


def norm_forward(z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Standardised z [..., f], mean and inverse deviation [..., 1]."""
    return torch.native_layer_norm(z, z.shape[-1:], None, None, LN_EPS)


def norm_backward(d: Tensor, z: Tensor, mean: Tensor, inverse_std: Tensor) -> Tensor:
    """Gradient of z from the gradient of the standardised z: s (d - mean(d) - x mean(d x))."""
    wanted = [True, False, False]
    return torch.ops.aten.native_layer_norm_backward(d, z, z.shape[-1:], mean, inverse_std, None, None, wanted)[0]


def inner_gradient(z: Tensor, target: Tensor, gamma: Tensor, beta: Tensor) -> Tensor:
    """Gradient of `0.5 * |layer_norm(z) - target|^2` with respect to `z`; all [..., f]."""
    normed, mean, inverse_std = norm_forward(z)
    return norm_backward(torch.addcmul(beta - target, gamma, normed).mul_(gamma), z, mean, inverse_std)


def rms_norm(x: Tensor) -> Tensor:
    """Parameter-free: unit mean square over the last axis."""
    return F.rms_norm(x, x.shape[-1:], eps=LN_EPS)


def rotate(x: Tensor, positions: Tensor) -> Tensor:
    """Rotary embedding of halves of the head. x: [B, H, T, f], positions: [B, T] (integers)."""
    half = x.shape[-1] // 2
    rates = torch.exp(torch.arange(half, device=x.device, dtype=x.dtype) * (-math.log(10000.0) / half))
    angles = positions[:, None, :, None].to(x.dtype) * rates  # [B, 1, T, f/2]
    cos, sin = angles.cos(), angles.sin()
    first, second = x[..., :half], x[..., half:]
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)
