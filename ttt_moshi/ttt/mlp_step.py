"""One mini-batch of the two-layer inner network: forward and analytic backward, on plain tensors (no autograd).

All tensors are [G, K, ...] with G = streams x heads. Names follow the formulas: a hat-less letter belongs to the keys
(what is written), `_bar` to the queries (what is read), `d` in front is the gradient of the outer loss.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ttt_moshi.ttt.functional import gelu, gelu_backward, gelu_slopes, inner_gradient, norm_backward, norm_forward
from ttt_moshi.ttt.norm_step import inner_gradient_backward
from ttt_moshi.ttt.scan_types import Batch, Gradients, add_bias_gradient, reach, update


def kept(weights: list[Tensor]) -> list[tuple[int, int]]:
    """What `forward` leaves for `backward`: mini-batches of rows, and their width, of each tensor."""
    f, h = weights[0].shape[1:]
    return [(2, h), (1, f)]


def forward(weights: list[Tensor], batch: Batch, keep: list[Tensor]) -> Tensor:
    """Outputs [G, K, f]; `weights` become those after the mini-batch.

    `keep` is filled with [z1, z1_bar] (G, 2K, h) and z2 (G, K, f).
    """
    W1, b1, W2, b2 = weights
    K = batch.k.shape[1]
    z1, z1_bar = keep[0].split(K, dim=1)
    torch.baddbmm(b1, batch.kq, W1, out=keep[0])  # keys and queries share one pass over W1
    a1 = gelu(z1)
    z2 = torch.baddbmm(b2, a1, W2, out=keep[1])
    g2 = inner_gradient(z2, batch.target, batch.gamma, batch.beta)
    g1 = gelu_backward(torch.bmm(g2, W2.mT), z1)
    z1_bar.baddbmm_(batch.E * reach(batch.q, batch.k, batch), g1, alpha=-1.0)
    a1_bar = gelu(z1_bar)
    z2_bar = torch.baddbmm(b2, a1_bar, W2).baddbmm_(batch.E * reach(a1_bar, a1, batch), g2, alpha=-1.0)
    update([W1, b1], batch, batch.k, g1, -1.0)
    update([W2, b2], batch, a1, g2, -1.0)
    return norm_forward(z2_bar)[0].mul_(batch.gamma).add_(batch.beta).add_(batch.q)


def backward(
    weights: list[Tensor], batch: Batch, keep: list[Tensor], d_out: Tensor, d_weights: list[Tensor]
) -> Gradients:
    """Gradients of the mini-batch's inputs.

    `weights` are those after it and become those before it (the updates are added back); so do their gradients,
    `d_weights`.
    """
    W1, b1, W2, b2 = weights
    dW1, db1, dW2, db2 = d_weights
    q, k, E, e, gamma = batch.q, batch.k, batch.E, batch.e, batch.gamma
    G, K, f = k.shape
    z1, z1_bar = keep[0].split(K, dim=1)
    z2 = keep[1]
    g2 = inner_gradient(z2, batch.target, gamma, batch.beta)
    # dW2 is one product of three blocks of rows: [a1, a1_bar, du]^T [dz2, dz2_bar, g2], each computed in its place.
    left, right = W2.new_empty(G, 3 * K, W2.shape[1]), W2.new_empty(G, 3 * K, f)
    a1, a1_bar, du = left.split(K, dim=1)
    right[:, 2 * K :] = g2

    # Forward quantities again, and the weights before the mini-batch: W2 first, since g1 is found through it.
    slope, curvature = gelu_slopes(z1, value=a1)
    torch.ops.aten.gelu.out(z1_bar, approximate="tanh", out=a1_bar)
    update([W2, b2], batch, a1, g2, 1.0)
    reach1, reach2 = reach(q, k, batch), reach(a1_bar, a1, batch)
    S1, S2 = E * reach1, E * reach2
    z2_bar = torch.baddbmm(b2, a1_bar, W2).baddbmm_(S2, g2, alpha=-1.0)
    normed_bar, mean, inverse_std = norm_forward(z2_bar)
    dz2_bar = norm_backward(d_out * gamma, z2_bar, mean, inverse_std)
    right[:, K : 2 * K] = dz2_bar
    back = torch.bmm(right[:, K:], W2.mT)
    da1_bar, u = back.split(K, dim=1)
    g1 = gelu_backward(u, z1)
    update([W1, b1], batch, k, g1, 1.0)

    # Through the reading.
    d_gamma, d_beta = (d_out * normed_bar).sum(1, keepdim=True), d_out.sum(1, keepdim=True)
    dS2 = torch.bmm(dz2_bar, g2.mT).neg_()
    M2, dE = dS2 * E, dS2 * reach2
    both_dz1 = torch.empty_like(back)
    dz1, dz1_bar = both_dz1.split(K, dim=1)
    torch.ops.aten.gelu_backward.grad_input(da1_bar.baddbmm_(M2, a1), z1_bar, approximate="tanh", grad_input=dz1_bar)
    dS1 = torch.bmm(dz1_bar, g1.mT).neg_()
    M1 = dS1 * E
    dE.addcmul_(dS1, reach1)

    # Through the writing: the update of the weights, and the rows that the queries looked at.
    p1, p2 = torch.bmm(k, dW1), torch.bmm(a1, dW2)
    if batch.bias:
        p1 += db1
        p2 += db2
    de = -((p1 * g1).sum(-1) + (p2 * g2).sum(-1))
    dk = torch.bmm(g1, dW1.mT).mul_(-e).baddbmm_(M1.mT, q)
    da1 = torch.bmm(g2, dW2.mT).mul_(-e).baddbmm_(M2.mT, a1_bar)
    dg1 = p1.mul_(-e).baddbmm_(S1.mT, dz1_bar, alpha=-1.0)
    dg2 = p2.mul_(-e).baddbmm_(S2.mT, dz2_bar, alpha=-1.0)

    # Through the inner gradients.
    torch.mul(dg1, slope, out=du)
    dg2.baddbmm_(du, W2)
    dz2, d_target, d_gamma_inner, d_beta_inner = inner_gradient_backward(dg2, g2, z2, batch.target, gamma, batch.beta)
    right[:, :K] = dz2
    da1.baddbmm_(dz2, W2.mT)
    torch.addcmul(da1.mul_(slope), dg1.mul_(u), curvature, out=dz1)
    dk_dq = torch.bmm(both_dz1, W1.mT)
    dk += dk_dq[:, :K]
    dq = dk_dq[:, K:].add_(d_out).baddbmm_(M1, k)

    dW1.baddbmm_(batch.kq.mT, both_dz1)
    dW2.baddbmm_(left.mT, right)
    add_bias_gradient(db1, both_dz1)
    add_bias_gradient(db2, right[:, : 2 * K])
    return Gradients(dq, dk, d_target, dE, de, d_gamma.add_(d_gamma_inner), d_beta.add_(d_beta_inner))
