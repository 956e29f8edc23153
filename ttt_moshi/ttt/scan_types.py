"""What the two inner networks' mini-batch steps take and give, and the updates they share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class Batch(NamedTuple):
    """One mini-batch; G = streams x heads."""

    q: Tensor
    """[G, K, f]"""
    k: Tensor
    """[G, K, f]"""
    kq: Tensor
    """keys, then queries: [G, 2K, f]"""
    target: Tensor
    """[G, K, f]"""
    E: Tensor
    """step sizes as seen by each query, lower triangular: [G, K, K]"""
    e: Tensor
    """step sizes of the update at the end: [G, K, 1]"""
    gamma: Tensor
    """[G, 1, f]"""
    beta: Tensor
    """[G, 1, f]"""
    bias: float
    """1 where the biases are updated too (they are the weights of one more, constant input), else 0"""


def make_batches(K: int, bias: float, inputs: Sequence[Tensor], tau: Tensor) -> list[Batch]:
    """The mini-batches, in order, of inputs q, k, target [G, T, f], lam [G, T], gamma, beta [G, 1, f]; tau [K]."""
    gamma, beta = inputs[4:]
    q, k, target, lam = (t.unflatten(1, (-1, K)) for t in inputs[:4])
    kq = torch.cat([k, q], dim=2)
    seen = torch.ones(K, K, dtype=torch.bool, device=q.device).tril()
    E = torch.where(seen, lam[:, :, None, :], 0.0) * tau[:, None]
    e = (lam * tau[-1])[..., None]
    return [
        Batch(kq[:, n, K:], kq[:, n, :K], kq[:, n], target[:, n], E[:, n], e[:, n], gamma, beta, bias)
        for n in range(q.shape[1])
    ]


class Gradients(NamedTuple):
    """Gradients of the fields of `Batch` of the same name (`e` as [G, K])."""

    q: Tensor
    k: Tensor
    target: Tensor
    E: Tensor
    e: Tensor
    gamma: Tensor
    beta: Tensor


def reach(queries: Tensor, keys: Tensor, batch: Batch) -> Tensor:
    """How similar each query is to each key, before step sizes: [G, K, K]."""
    similarity = torch.bmm(queries, keys.mT)
    return similarity.add_(1.0) if batch.bias else similarity


def update(weights: list[Tensor], batch: Batch, inputs: Tensor, gradients: Tensor, sign: float) -> None:
    """Add `sign * (e inputs)^T gradients` to the matrix, and to its bias where biases are updated, in place."""
    W, b = weights
    W.baddbmm_((batch.e * inputs).mT, gradients, alpha=sign)
    if batch.bias:
        b.baddbmm_(batch.e.mT, gradients, alpha=sign)


def add_bias_gradient(db: Tensor, dz: Tensor) -> None:
    """Sum over the rows, in place."""
    db.add_(dz.sum(1, keepdim=True))
