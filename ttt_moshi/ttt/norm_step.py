"""The inner gradients of many mini-batches at once, and the way back through them, on plain tensors."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from ttt_moshi.ttt.functional import norm_backward, norm_forward


class InnerGradient(NamedTuple):
    """g = inner_gradient(z, target, gamma, beta), and what its way back needs. All [..., K, f] or [..., K, 1].

    With x the standardised z, s the inverse deviation and N(v) = s (v - mean(v) - x mean(v x)), the way back through
    the standardisation: g = N(d), d = gamma (gamma x + beta - target).
    """

    z: Tensor
    mean: Tensor
    s: Tensor
    x: Tensor
    g: Tensor
    s_dx: Tensor
    """s mean(d x)"""

    @staticmethod
    def of(z: Tensor, target: Tensor, gamma: Tensor, beta: Tensor) -> InnerGradient:
        """Of any number of mini-batches."""
        x, mean, s = norm_forward(z)
        d = (gamma * x).add_(beta).sub_(target).mul_(gamma)
        return InnerGradient(z, mean, s, x, norm_backward(d, z, mean, s), (d * x).mean(-1, keepdim=True).mul_(s))

    def unbind(self) -> list[InnerGradient]:
        """One for each index of the first axis."""
        return [InnerGradient(*own) for own in zip(*(t.unbind() for t in self), strict=True)]

    def backward(self, dg: Tensor, gamma: Tensor, d_hat: Tensor) -> Tensor:
        """Gradient of z from that of g; `d_hat` is filled with that of d.

        N is symmetric in v, so d_hat = N(dg). x and s also depend on z: with dx = gamma^2 d_hat - s dg mean(d x)
        - d mean(s dg x), dz = N(dx) - x s mean(dg g); N of the last two terms of dx are multiples of d_hat and g.
        """
        d_hat.copy_(norm_backward(dg, self.z, self.mean, self.s))
        dz = norm_backward(gamma.square() * d_hat, self.z, self.mean, self.s).addcmul_(self.s_dx, d_hat, value=-1.0)
        scale = self.s * (-1.0 / dg.shape[-1])
        dz.addcmul_(self.g, (dg * self.x).sum(-1, keepdim=True).mul_(scale))
        return dz.addcmul_(self.x, (dg * self.g).sum(-1, keepdim=True).mul_(scale))

    def outer_gradients(
        self, d_hat: Tensor, target: Tensor, gamma: Tensor, beta: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Gradients of target [..., K, f], and of gamma and beta [G, 1, f], summed over mini-batches (first axis)."""
        err_twice = (2.0 * gamma * self.x).add_(beta).sub_(target)
        d_target = d_hat * -gamma
        return d_target, err_twice.mul_(d_hat).sum((0, 2))[:, None], -d_target.sum((0, 2))[:, None]
