"""The way back through the inner gradient, on plain tensors."""

from __future__ import annotations

from torch import Tensor

from ttt_moshi.ttt.functional import norm_backward, norm_forward


def inner_gradient_backward(
    dg: Tensor, g: Tensor, z: Tensor, target: Tensor, gamma: Tensor, beta: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of z, target [G, K, f], gamma, beta [G, 1, f] from that of `g = inner_gradient(z, ...)`.

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
