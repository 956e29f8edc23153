"""One mini-batch of the linear inner network: forward and analytic backward; see `mlp_step` for the conventions."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ttt_moshi.ttt.functional import inner_gradient, norm_backward, norm_forward
from ttt_moshi.ttt.norm_step import InnerGradient
from ttt_moshi.ttt.scan_types import Batch, Fixed, Gradients, add_bias_gradient, write_bias


def saved_shapes(weights: Sequence[Tensor]) -> list[tuple[int, int]]:
    """What `forward` leaves for `backward`: mini-batches of rows, and their width, of each tensor."""
    return [(2, weights[0].shape[-1])]


def predicted(saved: Sequence[Tensor], K: int) -> Tensor:
    """What the inner loss of the keys is taken of, from the tensors that `forward` left: [..., K, f]."""
    return saved[0][..., :K, :]


def forward(weights: Sequence[Tensor], batch: Batch, fixed: Fixed, saved: Sequence[Tensor]) -> Tensor:
    """Outputs [G, K, f]; `weights` become those after the mini-batch.

    `saved` is filled with [z, z_bar] (G, 2K, f).
    """
    W, b = weights
    z, z_bar = saved[0].split(batch.k.shape[1], dim=1)
    torch.bmm(batch.kq, W, out=saved[0]).add_(b)  # keys and queries share one pass over W
    g = inner_gradient(z, batch.target, fixed.gamma, fixed.beta)
    z_bar += torch.bmm(batch.S, g)
    W.baddbmm_(batch.ek.mT, g)
    write_bias(b, batch.e, g, fixed, 1.0)
    return norm_forward(z_bar)[0].mul_(fixed.gamma).add_(fixed.beta).add_(batch.q)


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
    W, b = weights
    dW, db = d_weights
    e, g = batch.e, inner.g
    K = batch.k.shape[1]
    z_bar = saved[0][:, K:].contiguous()
    both_dz = torch.empty_like(saved[0])
    dz, dz_bar = both_dz.split(K, dim=1)
    W.baddbmm_(batch.ek.mT, g, alpha=-1.0)
    write_bias(b, e, g, fixed, -1.0)
    normed_bar, mean, inverse_std = norm_forward(z_bar)
    d.normed_bar.copy_(normed_bar)
    dz_bar.copy_(norm_backward(d_normed, z_bar, mean, inverse_std))
    torch.bmm(dz_bar, g.mT, out=d.S)
    d.E.zero_()

    torch.bmm(g, dW.mT, out=d.written)
    dg = torch.bmm(batch.ek, dW)
    d.e.zero_()
    if fixed.bias:
        dg.addcmul_(e, db)
        torch.sum(g * db, -1, out=d.e)
    dg.baddbmm_(batch.S.mT, dz_bar)
    dz.copy_(inner.backward(dg, fixed.gamma, d.d_hat))
    torch.bmm(both_dz, W.mT, out=d.kq)
    dW.baddbmm_(batch.kq.mT, both_dz)
    add_bias_gradient(db, both_dz)
