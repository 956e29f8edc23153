"""One mini-batch of the linear inner network: forward and analytic backward; see `mlp_step` for the conventions."""

from __future__ import annotations

import torch
from torch import Tensor

from ttt_moshi.ttt.functional import inner_gradient, norm_backward, norm_forward
from ttt_moshi.ttt.norm_step import inner_gradient_backward
from ttt_moshi.ttt.scan_types import Batch, Gradients, add_bias_gradient, update


def widths(weights: list[Tensor]) -> tuple[int, ...]:
    """Widths of the factors that `forward` returns."""
    f = weights[0].shape[1]
    return f, f


def forward(weights: list[Tensor], batch: Batch, with_output: bool) -> tuple[Tensor | None, tuple[Tensor, ...]]:
    """Outputs [G, K, f] (None unless wanted) and the factors z, g; `weights` become those after the batch."""
    W, b = weights
    K = batch.k.shape[1]
    z = torch.baddbmm(b, batch.kq if with_output else batch.k, W)
    z, z_query = z[:, :K], z[:, K:]
    g = inner_gradient(z, batch.target, batch.gamma, batch.beta)
    out = None
    if with_output:
        z_bar = torch.baddbmm(z_query, batch.E * (torch.bmm(batch.q, batch.k.mT) + batch.bias), g, alpha=-1.0)
        out = norm_forward(z_bar)[0].mul_(batch.gamma).add_(batch.beta).add_(batch.q)
    update(weights, batch, batch.k, g, -1.0)
    return out, (z, g)


def rebuild(weights: list[Tensor], batch: Batch, factors: tuple[Tensor, ...]) -> None:
    """Undo the update of `forward`: `weights` after the mini-batch become those before it."""
    update(weights, batch, batch.k, factors[1], 1.0)


def backward(
    weights: list[Tensor], batch: Batch, factors: tuple[Tensor, ...], d_out: Tensor, d_weights: list[Tensor]
) -> Gradients:
    """Gradients of the mini-batch's inputs.

    `weights` are those before it; `d_weights`, gradients of those after it, become gradients of those before it.
    """
    W, b = weights
    dW, db = d_weights
    z, g = factors
    q, k, E, e, gamma = batch.q, batch.k, batch.E, batch.e, batch.gamma
    K = k.shape[1]

    reach = torch.bmm(q, k.mT) + batch.bias
    S = E * reach
    z_bar = torch.baddbmm(b, q, W).baddbmm_(S, g, alpha=-1.0)
    normed_bar, mean, inverse_std = norm_forward(z_bar)
    dz_bar = norm_backward(d_out * gamma, z_bar, mean, inverse_std)
    d_gamma, d_beta = (d_out * normed_bar).sum(1, keepdim=True), d_out.sum(1, keepdim=True)
    dS = torch.bmm(dz_bar, g.mT).neg_()
    M, dE = dS * E, dS * reach

    p = torch.bmm(k, dW)
    if batch.bias:
        p += db
    de = -(p * g).sum(-1)
    dk = torch.baddbmm(torch.bmm(g, dW.mT).mul_(-e), M.mT, q)
    dg = p.mul_(-e).baddbmm_(S.mT, dz_bar, alpha=-1.0)
    dz, d_target, d_gamma_inner, d_beta_inner = inner_gradient_backward(dg, g, z, batch.target, gamma, batch.beta)

    both_dz = torch.cat([dz, dz_bar], dim=1)
    d_kq = torch.bmm(both_dz, W.mT)
    dk += d_kq[:, :K]
    dq = d_kq[:, K:].add_(d_out).baddbmm_(M, k)
    dW.baddbmm_(batch.kq.mT, both_dz)
    add_bias_gradient(db, both_dz)
    return Gradients(dq, dk, d_target, dE, de, d_gamma.add_(d_gamma_inner), d_beta.add_(d_beta_inner))
