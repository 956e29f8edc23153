"""One mini-batch of the two-layer inner network: forward and analytic backward, on plain tensors (no autograd).

All tensors are [G, K, ...] with G = streams x heads. Names follow the formulas: a hat-less letter belongs to the keys
(what is written), `_bar` to the queries (what is read), `d` in front is the gradient of the outer loss.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ttt_moshi.ttt.functional import gelu, gelu_backward, gelu_slopes, inner_gradient, norm_backward, norm_forward
from ttt_moshi.ttt.norm_step import inner_gradient_backward
from ttt_moshi.ttt.scan_types import Batch, Gradients, add_bias_gradient, update


def widths(weights: list[Tensor]) -> tuple[int, ...]:
    """Widths of the factors that `forward` returns."""
    f, h = weights[0].shape[1:]
    return h, h, f


def forward(weights: list[Tensor], batch: Batch, with_output: bool) -> tuple[Tensor | None, tuple[Tensor, ...]]:
    """Outputs [G, K, f] (None unless wanted) and the factors z1, g1, g2; `weights` become those after the batch."""
    W1, b1, W2, b2 = weights
    q, k, E = batch.q, batch.k, batch.E
    K = k.shape[1]
    # Keys and queries share one pass over W1.
    z1 = torch.baddbmm(b1, batch.kq if with_output else k, W1)
    z1, z1_query = (z1[:, :K], z1[:, K:])
    a1 = gelu(z1)
    z2 = torch.baddbmm(b2, a1, W2)
    g2 = inner_gradient(z2, batch.target, batch.gamma, batch.beta)
    g1 = gelu_backward(torch.bmm(g2, W2.mT), z1)
    out = None
    if with_output:
        z1_bar = torch.baddbmm(z1_query, E * (torch.bmm(q, k.mT) + batch.bias), g1, alpha=-1.0)
        a1_bar = gelu(z1_bar)
        z2_bar = torch.baddbmm(b2, a1_bar, W2)
        z2_bar.baddbmm_(E * (torch.bmm(a1_bar, a1.mT) + batch.bias), g2, alpha=-1.0)
        out = norm_forward(z2_bar)[0].mul_(batch.gamma).add_(batch.beta).add_(q)
    update([W1, b1], batch, k, g1, -1.0)
    update([W2, b2], batch, a1, g2, -1.0)
    return out, (z1, g1, g2)


def rebuild(weights: list[Tensor], batch: Batch, factors: tuple[Tensor, ...]) -> None:
    """Undo the update of `forward`: `weights` after the mini-batch become those before it."""
    W1, b1, W2, b2 = weights
    z1, g1, g2 = factors
    update([W1, b1], batch, batch.k, g1, 1.0)
    update([W2, b2], batch, gelu(z1), g2, 1.0)


def backward(
    weights: list[Tensor], batch: Batch, factors: tuple[Tensor, ...], d_out: Tensor, d_weights: list[Tensor]
) -> Gradients:
    """Gradients of the mini-batch's inputs.

    `weights` are those before it; `d_weights`, gradients of those after it, become gradients of those before it.
    """
    W1, b1, W2, b2 = weights
    dW1, db1, dW2, db2 = d_weights
    z1, g1, g2 = factors
    q, k, E, e, gamma = batch.q, batch.k, batch.E, batch.e, batch.gamma
    K = k.shape[1]

    # Forward quantities that were not kept.
    a1, slope, curvature = gelu_slopes(z1)
    reach1 = torch.bmm(q, k.mT) + batch.bias
    S1 = E * reach1
    z1_bar = torch.baddbmm(b1, q, W1).baddbmm_(S1, g1, alpha=-1.0)
    both_a = torch.cat([a1, gelu(z1_bar)], dim=1)
    a1_bar = both_a[:, K:]
    reach2 = torch.bmm(a1_bar, a1.mT) + batch.bias
    S2 = E * reach2
    both_z2 = torch.baddbmm(b2, both_a, W2)
    z2, z2_bar = both_z2[:, :K], both_z2[:, K:].baddbmm_(S2, g2, alpha=-1.0)

    # Through the reading.
    normed_bar, mean, inverse_std = norm_forward(z2_bar)
    dz2_bar = norm_backward(d_out * gamma, z2_bar, mean, inverse_std)
    d_gamma, d_beta = (d_out * normed_bar).sum(1, keepdim=True), d_out.sum(1, keepdim=True)
    dS2 = torch.bmm(dz2_bar, g2.mT).neg_()
    M2, dE = dS2 * E, dS2 * reach2
    back = torch.bmm(torch.cat([g2, dz2_bar], dim=1), W2.mT)
    u, da1_bar = back[:, :K], back[:, K:].baddbmm_(M2, a1)
    dz1_bar = gelu_backward(da1_bar, z1_bar)
    dS1 = torch.bmm(dz1_bar, g1.mT).neg_()
    M1 = dS1 * E
    dE.addcmul_(dS1, reach1)

    # Through the writing: the update of the weights, and the rows that the queries looked at.
    p1, p2 = torch.bmm(k, dW1), torch.bmm(a1, dW2)
    if batch.bias:
        p1 += db1
        p2 += db2
    de = -((p1 * g1).sum(-1) + (p2 * g2).sum(-1))
    dk = torch.baddbmm(torch.bmm(g1, dW1.mT).mul_(-e), M1.mT, q)
    da1 = torch.baddbmm(torch.bmm(g2, dW2.mT).mul_(-e), M2.mT, a1_bar)
    dg1 = p1.mul_(-e).baddbmm_(S1.mT, dz1_bar, alpha=-1.0)
    dg2 = p2.mul_(-e).baddbmm_(S2.mT, dz2_bar, alpha=-1.0)

    # Through the inner gradients.
    du = dg1 * slope
    dg2.baddbmm_(du, W2)
    dz2, d_target, d_gamma_inner, d_beta_inner = inner_gradient_backward(dg2, g2, z2, batch.target, gamma, batch.beta)
    da1.baddbmm_(dz2, W2.mT)
    dz1 = da1.mul_(slope).addcmul_(dg1.mul_(u), curvature)
    both_dz1 = torch.cat([dz1, dz1_bar], dim=1)
    d_kq = torch.bmm(both_dz1, W1.mT)
    dk += d_kq[:, :K]
    dq = d_kq[:, K:].add_(d_out).baddbmm_(M1, k)

    dW1.baddbmm_(batch.kq.mT, both_dz1)
    dW2.baddbmm_(torch.cat([both_a, du], dim=1).mT, torch.cat([dz2, dz2_bar, g2], dim=1))
    add_bias_gradient(db1, both_dz1)
    add_bias_gradient(db2, dz2 + dz2_bar)
    return Gradients(dq, dk, d_target, dE, de, d_gamma.add_(d_gamma_inner), d_beta.add_(d_beta_inner))
