"""One mini-batch of the two-layer inner network: forward and analytic backward, on plain tensors (no autograd).

All tensors are [G, K, ...] with G = streams x heads. Names follow the formulas: a hat-less letter belongs to the keys
(what is written), `_bar` to the queries (what is read), `d` in front is the gradient of the outer loss. Step sizes are
negative here, so that everything is added.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ttt_moshi.ttt.functional import (
    gelu_curvature,
    gelu_rate,
    gelu_sigmoid,
    gelu_slope,
    inner_gradient,
    norm_backward,
    norm_forward,
)
from ttt_moshi.ttt.norm_step import InnerGradient
from ttt_moshi.ttt.scan_types import Batch, Fixed, Gradients, add_bias_gradient, reach, write_bias


def saved_shapes(weights: Sequence[Tensor]) -> list[tuple[int, int]]:
    """What `forward` leaves for `backward`: mini-batches of rows, and their width, of each tensor."""
    f, h = weights[0].shape[-2:]
    return [(2, h), (1, f)]


def predicted(saved: Sequence[Tensor], K: int) -> Tensor:
    """What the inner loss of the keys is taken of, from the tensors that `forward` left: [..., K, f]."""
    return saved[1]


def forward(weights: Sequence[Tensor], batch: Batch, fixed: Fixed, saved: Sequence[Tensor]) -> Tensor:
    """Outputs [G, K, f]; `weights` become those after the mini-batch.

    `saved` is filled with [z1, z1_bar] (G, 2K, h) and z2 (G, K, f).
    """
    W1, b1, W2, b2 = weights
    e, E = batch.e, batch.E
    z1, z1_bar = saved[0].split(batch.k.shape[1], dim=1)
    torch.bmm(batch.kq, W1, out=saved[0]).add_(b1)  # keys and queries share one pass over W1
    s = gelu_sigmoid(z1)
    a1 = z1 * s
    z2 = torch.baddbmm(b2, a1, W2, out=saved[1])
    g2 = inner_gradient(z2, batch.target, fixed.gamma, fixed.beta)
    g1 = torch.bmm(g2, W2.mT).mul_(gelu_slope(z1, s, gelu_rate(z1)))
    z1_bar += torch.bmm(batch.S, g1)
    a1_bar = gelu_sigmoid(z1_bar).mul_(z1_bar)
    z2_bar = torch.baddbmm(b2, a1_bar, W2).baddbmm_(E * reach(a1_bar, a1, fixed.bias), g2)
    W1.baddbmm_(batch.ek.mT, g1)
    W2.baddbmm_(a1.mT, e * g2)
    write_bias(b1, e, g1, fixed, 1.0)
    write_bias(b2, e, g2, fixed, 1.0)
    return norm_forward(z2_bar)[0].mul_(fixed.gamma).add_(fixed.beta).add_(batch.q)


def backward(
    weights: Sequence[Tensor],
    batch: Batch,
    fixed: Fixed,
    saved: Sequence[Tensor],
    inner: InnerGradient,
    d_normed: Tensor,
    d_weights: Sequence[Tensor],
    d: Gradients,
) -> None:
    """From the gradient of the standardised outputs, fill `d`.

    `weights` are those after the mini-batch and become those before it (the updates are taken back); so do their
    gradients, `d_weights`.
    """
    W1, b1, W2, b2 = weights
    dW1, db1, dW2, db2 = d_weights
    E, e, S1, g2 = batch.E, batch.e, batch.S, inner.g
    G, K, f = batch.k.shape
    # dW2 is one product of three blocks of rows: [a1, a1_bar, du]^T [dz2, dz2_bar, g2], each computed in its place.
    left, right = W2.new_empty(G, 3 * K, W2.shape[1]), W2.new_empty(G, 3 * K, f)
    a1, a1_bar, du = left.split(K, dim=1)
    dz2, dz2_bar, g2_too = right.split(K, dim=1)
    g2_too.copy_(g2)

    # Forward quantities again, and the weights before the mini-batch: W2 first, since g1 is found through it.
    z1 = saved[0][:, :K]
    s, rate = gelu_sigmoid(saved[0]), gelu_rate(saved[0])
    torch.mul(saved[0], s, out=left[:, : 2 * K])
    slope, slope_bar = gelu_slope(saved[0], s, rate).split(K, dim=1)
    curvature = gelu_curvature(z1, a1, s[:, :K], rate[:, :K])
    eg2 = e * g2
    W2.baddbmm_(a1.mT, eg2, alpha=-1.0)
    write_bias(b2, e, g2, fixed, -1.0)
    reach2 = reach(a1_bar, a1, fixed.bias)
    S2 = E * reach2
    z2_bar = torch.baddbmm(b2, a1_bar, W2).baddbmm_(S2, g2)
    normed_bar, mean, inverse_std = norm_forward(z2_bar)
    d.normed_bar.copy_(normed_bar)
    dz2_bar.copy_(norm_backward(d_normed, z2_bar, mean, inverse_std))
    back = torch.bmm(right[:, K:], W2.mT)
    da1_bar, u = back.split(K, dim=1)
    g1 = u * slope
    W1.baddbmm_(batch.ek.mT, g1, alpha=-1.0)
    write_bias(b1, e, g1, fixed, -1.0)

    # Through the reading.
    dS2 = torch.bmm(dz2_bar, g2.mT)
    torch.mul(dS2, reach2, out=d.E)
    M2 = dS2.mul_(E)
    both_dz1 = torch.empty_like(back)
    dz1, dz1_bar = both_dz1.split(K, dim=1)
    torch.mul(torch.bmm(M2, a1).add_(da1_bar), slope_bar, out=dz1_bar)
    torch.bmm(dz1_bar, g1.mT, out=d.S)

    # Through the writing: the update of the weights, and the rows that the queries looked at.
    torch.bmm(g1, dW1.mT, out=d.written)
    dg1, p2 = torch.bmm(batch.ek, dW1), torch.bmm(a1, dW2)
    if fixed.bias:
        dg1.addcmul_(e, db1)
        p2 += db2
    torch.sum(p2 * g2, -1, out=d.e)
    if fixed.bias:
        d.e.add_((g1 * db1).sum(-1))
    dg1.baddbmm_(S1.mT, dz1_bar)
    dg2 = p2.mul_(e).baddbmm_(S2.mT, dz2_bar)
    da1 = torch.bmm(eg2, dW2.mT).baddbmm_(M2.mT, a1_bar)

    # Through the inner gradients.
    torch.mul(dg1, slope, out=du)
    dg2.baddbmm_(du, W2)
    dz2.copy_(inner.backward(dg2, fixed.gamma, d.d_hat))
    da1.baddbmm_(dz2, W2.mT)
    torch.addcmul(da1.mul_(slope), dg1.mul_(u), curvature, out=dz1)
    torch.bmm(both_dz1, W1.mT, out=d.kq)

    dW1.baddbmm_(batch.kq.mT, both_dz1)
    dW2.baddbmm_(left.mT, right)
    add_bias_gradient(db1, both_dz1)
    add_bias_gradient(db2, right[:, : 2 * K])
