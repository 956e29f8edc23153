"""One mini-batch of the linear inner network: forward and analytic backward; see `mlp_step` for the conventions."""

from __future__ import annotations

import torch
from torch import Tensor

from ttt_moshi.ttt.functional import inner_gradient, norm_backward, norm_forward
from ttt_moshi.ttt.norm_step import inner_gradient_backward
from ttt_moshi.ttt.scan_types import Batch, Gradients, add_bias_gradient, reach, update


def kept(weights: list[Tensor]) -> list[tuple[int, int]]:
    """What `forward` leaves for `backward`: mini-batches of rows, and their width, of each tensor."""
    return [(2, weights[0].shape[1]), (1, weights[0].shape[1])]


def forward(weights: list[Tensor], batch: Batch, keep: list[Tensor]) -> Tensor:
    """Outputs [G, K, f]; `weights` become those after the mini-batch.

    `keep` is filled with [z, z_bar] (G, 2K, f) and g (G, K, f).
    """
    W, b = weights
    z, z_bar = keep[0].split(batch.k.shape[1], dim=1)
    torch.baddbmm(b, batch.kq, W, out=keep[0])  # keys and queries share one pass over W
    g = keep[1].copy_(inner_gradient(z, batch.target, batch.gamma, batch.beta))
    z_bar.baddbmm_(batch.E * reach(batch.q, batch.k, batch), g, alpha=-1.0)
    update(weights, batch, batch.k, g, -1.0)
    return norm_forward(z_bar)[0].mul_(batch.gamma).add_(batch.beta).add_(batch.q)


def backward(
    weights: list[Tensor], batch: Batch, keep: list[Tensor], d_out: Tensor, d_weights: list[Tensor]
) -> Gradients:
    """Gradients of the mini-batch's inputs.

    `weights` are those after it and become those before it (the updates are added back); so do their gradients,
    `d_weights`.
    """
    W, _ = weights
    dW, db = d_weights
    q, k, E, e, gamma = batch.q, batch.k, batch.E, batch.e, batch.gamma
    K = k.shape[1]
    (z, z_bar), g = keep[0].split(K, dim=1), keep[1]

    update(weights, batch, k, g, 1.0)
    similar = reach(q, k, batch)
    normed_bar, mean, inverse_std = norm_forward(z_bar)
    dz_bar = norm_backward(d_out * gamma, z_bar, mean, inverse_std)
    d_gamma, d_beta = (d_out * normed_bar).sum(1, keepdim=True), d_out.sum(1, keepdim=True)
    dS = torch.bmm(dz_bar, g.mT).neg_()
    M, dE = dS * E, dS * similar

    p = torch.bmm(k, dW)
    if batch.bias:
        p += db
    de = -(p * g).sum(-1)
    dk = torch.bmm(g, dW.mT).mul_(-e).baddbmm_(M.mT, q)
    dg = p.mul_(-e).baddbmm_((E * similar).mT, dz_bar, alpha=-1.0)
    dz, d_target, d_gamma_inner, d_beta_inner = inner_gradient_backward(dg, g, z, batch.target, gamma, batch.beta)

    both_dz = torch.cat([dz, dz_bar], dim=1)
    d_kq = torch.bmm(both_dz, W.mT)
    dk += d_kq[:, :K]
    dq = d_kq[:, K:].add_(d_out).baddbmm_(M, k)
    dW.baddbmm_(batch.kq.mT, both_dz)
    add_bias_gradient(db, both_dz)
    return Gradients(dq, dk, d_target, dE, de, d_gamma.add_(d_gamma_inner), d_beta.add_(d_beta_inner))
