"""What the two inner networks' mini-batch steps take and give, and the updates they share.

Everything that does not depend on the weights is computed for many mini-batches at once, before and after the walk
through them; those tensors are [N, G, K, ...] with N mini-batches and G = streams x heads.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple, Protocol

import torch
from torch import Tensor

if TYPE_CHECKING:
    from ttt_moshi.ttt.norm_step import InnerGradient


class Inputs(NamedTuple):
    """What a scan reads beside weights."""

    q: Tensor
    """[G, T, f]"""
    k: Tensor
    """[G, T, f]"""
    target: Tensor
    """[G, T, f]"""
    lam: Tensor
    """[G, T]"""
    gamma: Tensor
    """[G, 1, f]"""
    beta: Tensor
    """[G, 1, f]"""
    tau: Tensor
    """[K]; no gradient flows to it"""

    def part(self, heads: slice, frames: slice) -> Inputs:
        """Some slices of G, some frames."""
        q, k, target, lam = (t[heads, frames] for t in self[:4])
        return Inputs(q, k, target, lam, self.gamma[heads], self.beta[heads], self.tau)


class Batch(NamedTuple):
    """One mini-batch, or N of them with one more axis in front."""

    kq: Tensor
    """keys, then queries: [G, 2K, f]"""
    k: Tensor
    """[G, K, f]"""
    ek: Tensor
    """e times k: [G, K, f]"""
    target: Tensor
    """[G, K, f]"""
    E: Tensor
    """minus the step sizes as seen by each query, lower triangular: [G, K, K]"""
    reach: Tensor
    """how similar each query is to each key: [G, K, K]"""
    S: Tensor
    """E times reach: [G, K, K]"""
    e: Tensor
    """minus the step sizes of the update at the end: [G, K, 1]"""

    @property
    def q(self) -> Tensor:
        """[G, K, f]"""
        return self.kq[..., self.k.shape[-2] :, :]

    def unbind(self) -> list[Batch]:
        """One for each index of the first axis."""
        return [Batch(*own) for own in zip(*(t.unbind() for t in self), strict=True)]


class Fixed(NamedTuple):
    """What all mini-batches share."""

    gamma: Tensor
    """[G, 1, f]"""
    beta: Tensor
    """[G, 1, f]"""
    bias: float
    """1 where the biases are updated too (they are the weights of one more, constant input), else 0"""


class Gradients(NamedTuple):
    """What the way back through one mini-batch fills (or N of them, with one more axis in front)."""

    kq: Tensor
    """gradient of `Batch.kq` through the first matrix: [G, 2K, f]"""
    written: Tensor
    """gradient of `Batch.ek`: [G, K, f]"""
    e: Tensor
    """gradient of `Batch.e` except through `ek`: [G, K]"""
    S: Tensor
    """gradient of `Batch.S`: [G, K, K]"""
    E: Tensor
    """gradient of `Batch.E` except through `S`: [G, K, K]"""
    d_hat: Tensor
    """see `InnerGradient.backward`: [G, K, f]"""
    normed_bar: Tensor
    """not a gradient, but found on the way: the standardised outputs, [G, K, f]"""

    @staticmethod
    def room(batches: Batch) -> Gradients:
        """Space for the gradients of N mini-batches."""
        like = [batches.kq, batches.k, batches.e[..., 0], batches.S, batches.S, batches.k, batches.k]
        return Gradients(*(torch.empty(t.shape, dtype=t.dtype, device=t.device) for t in like))

    def unbind(self) -> list[Gradients]:
        """One for each index of the first axis."""
        return [Gradients(*own) for own in zip(*(t.unbind() for t in self), strict=True)]


class Step(Protocol):
    """One mini-batch of one inner network: what the modules `mlp_step` and `linear_step` offer."""

    def saved_shapes(self, weights: Sequence[Tensor]) -> list[tuple[int, int]]:
        """Of each tensor that `forward` leaves for `backward`: mini-batches of rows, and width."""

    def predicted(self, saved: Sequence[Tensor], K: int) -> Tensor:
        """What the inner loss of the keys is taken of, from the tensors that `forward` left: [..., K, f]."""

    def forward(self, weights: Sequence[Tensor], batch: Batch, fixed: Fixed, saved: Sequence[Tensor]) -> Tensor:
        """Outputs [G, K, f]; `weights` become those after the mini-batch, `saved` is filled."""

    def backward(
        self,
        weights: Sequence[Tensor],
        batch: Batch,
        fixed: Fixed,
        saved: Sequence[Tensor],
        inner: InnerGradient,
        d_normed: Tensor,
        d_weights: Sequence[Tensor],
        d: Gradients,
    ) -> None:
        """Fills `d`; `weights` and `d_weights` become those before the mini-batch."""


def by_batch(t: Tensor, K: int) -> Tensor:
    """[G, T, ...] to [T / K, G, K, ...]."""
    return t.unflatten(1, (-1, K)).transpose(0, 1)


def by_frame(t: Tensor) -> Tensor:
    """Inverse of `by_batch`."""
    return t.transpose(0, 1).flatten(1, 2)


def make_batches(inputs: Inputs, bias: float) -> Batch:
    """All mini-batches."""
    tau = inputs.tau
    K = len(tau)
    q, k, target, lam = (by_batch(t, K) for t in inputs[:4])
    kq = torch.cat([k, q], dim=2)
    k, q = kq.split(K, dim=2)
    E = torch.where(seen(tau), -lam[:, :, None, :], 0.0) * tau[:, None]
    e = (lam * -tau[-1])[..., None]
    similar = reach(q, k, bias)
    return Batch(kq, k, e * k, target, E, similar, E * similar, e)


def seen(tau: Tensor) -> Tensor:
    """Which frames of its mini-batch a query sees: itself and those before it, bool [K, K]."""
    return torch.ones(len(tau), len(tau), dtype=torch.bool, device=tau.device).tril()


def reach(queries: Tensor, keys: Tensor, bias: float) -> Tensor:
    """How similar each query is to each key, before step sizes: [..., K, K]."""
    similarity = queries @ keys.mT
    return similarity.add_(1.0) if bias else similarity


def write_bias(b: Tensor, e: Tensor, gradients: Tensor, fixed: Fixed, sign: float) -> None:
    """Add `sign * e^T gradients` to the bias, in place, if biases are updated: the weights of a constant input one."""
    if fixed.bias:
        b.baddbmm_(e.mT, gradients, alpha=sign)


def add_bias_gradient(db: Tensor, dz: Tensor) -> None:
    """Sum over the rows, in place."""
    db.add_(dz.sum(1, keepdim=True))
