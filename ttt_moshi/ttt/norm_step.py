"""The inner LayerNorm on plain tensors: its slopes, and the slope of the inner gradient that goes through it."""

from __future__ import annotations

import torch
from torch import Tensor

from ttt_moshi.ttt.config import LN_EPS


def norm_forward(z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Standardised z [..., f], mean and inverse deviation [..., 1]."""
    return torch.native_layer_norm(z, z.shape[-1:], None, None, LN_EPS)


def norm_backward(d: Tensor, z: Tensor, mean: Tensor, inverse_std: Tensor) -> Tensor:
    """Gradient of z from the gradient of the standardised z."""
    wanted = [True, False, False]
    return torch.ops.aten.native_layer_norm_backward(d, z, z.shape[-1:], mean, inverse_std, None, None, wanted)[0]


def inner_gradient_forward(z: Tensor, target: Tensor, gamma: Tensor, beta: Tensor) -> Tensor:
    """As `functional.inner_gradient`, in fused primitives."""
    normed, mean, inverse_std = norm_forward(z)
    return norm_backward((gamma * normed).add_(beta).sub_(target).mul_(gamma), z, mean, inverse_std)


def inner_gradient_backward(
    dg: Tensor, g: Tensor, z: Tensor, target: Tensor, gamma: Tensor, beta: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of z, target [G, K, f], gamma, beta [G, 1, f] from that of `g = inner_gradient_forward(z, ...)`.

    With x the standardised z and s the inverse deviation, g = s (d - mean(d) - x mean(d x)) and
    d = gamma (gamma x + beta - target). The bracket is linear and symmetric in d, so the way back is the same map; x
    also stands in its last term, and s in front of it.
    """
    x, mean, s = norm_forward(z)
    err = (gamma * x).add_(beta).sub_(target)
    d = gamma * err
    d_hat = norm_backward(dg, z, mean, s)  # gradient of d
    d_err = gamma * d_hat
    a = dg * s
    dx = gamma * d_err - a * (d * x).mean(-1, keepdim=True) - d * (a * x).mean(-1, keepdim=True)
    dz = norm_backward(dx, z, mean, s).addcmul_(x, s * (dg * g).sum(-1, keepdim=True), value=-1.0 / z.shape[-1])
    d_gamma = (d_hat * err).addcmul_(d_err, x).sum(1, keepdim=True)
    return dz, -d_err, d_gamma, d_err.sum(1, keepdim=True)
