"""The definition, written as slowly and plainly as possible: the oracle that every other form is tested against.

One frame at a time, the inner gradient by autograd, explicit weights W_i for every frame (primal form, arXiv
2407.04620). Works in any float type; use float64 to judge others.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ttt_moshi.ttt.config import LN_EPS


def predict(weights: list[Tensor], u: Tensor, gamma: Tensor, beta: Tensor) -> Tensor:
    """LN(g_W(u)) for one frame: u [B, H, 1, f], weights [W1, b1] or [W1, b1, W2, b2]."""
    z = u @ weights[0] + weights[1]
    if len(weights) == 4:
        z = F.gelu(z, approximate="tanh") @ weights[2] + weights[3]
    mean = z.mean(-1, keepdim=True)
    variance = ((z - mean) ** 2).mean(-1, keepdim=True)
    return gamma * (z - mean) / torch.sqrt(variance + LN_EPS) + beta


def reference_scan(
    q: Tensor,
    k: Tensor,
    target: Tensor,
    lam: Tensor,
    weights: list[Tensor],
    gamma: Tensor,
    beta: Tensor,
    mini_batch_size: int,
    update_biases: bool,
    reciprocal_positions: bool,
    create_graph: bool = False,
    retain: Tensor | float = 1.0,
    start: list[Tensor] | None = None,
) -> tuple[Tensor, list[Tensor]]:
    """All frames from the start of a mini-batch.

    Args:
        q, k, target: [B, H, T, f]; lam: [B, H, T].
        weights: [W1, b1] or [W1, b1, W2, b2], each [B, H, ...].
        gamma, beta: [H, 1, f].
        create_graph: everything stays differentiable.
        retain, start: after each mini-batch, this share (one number, or [H, 1, 1]) of the distance of the fast weights
            from `start` is left.

    Returns:
        out [B, H, T, f], and the weights as the frame after the last one would read them (W_i of the last frame).
    """
    fast = [w if create_graph and w.requires_grad else w.detach().requires_grad_() for w in weights]
    sums = [torch.zeros_like(w) for w in fast]
    current, outputs = fast, []
    for t in range(q.shape[2]):
        i = t % mini_batch_size + 1
        if i == 1:
            fast = current if create_graph else [w.detach().requires_grad_() for w in current]
            sums = [torch.zeros_like(w) for w in fast]
        with torch.enable_grad():
            loss = 0.5 * ((predict(fast, k[:, :, t : t + 1], gamma, beta) - target[:, :, t : t + 1]) ** 2).sum()
            gradients = torch.autograd.grad(loss, fast, create_graph=create_graph)
        sums = [s + lam[:, :, t, None, None] * g for s, g in zip(sums, gradients, strict=True)]
        tau = 1.0 / i if reciprocal_positions else 1.0
        current = [
            w - tau * s if update_biases or n % 2 == 0 else w for n, (w, s) in enumerate(zip(fast, sums, strict=True))
        ]
        u = q[:, :, t : t + 1]
        outputs.append(u + predict(current, u, gamma, beta))
        if i == mini_batch_size and start is not None:
            current = [
                s + retain * (w - s) if update_biases or n % 2 == 0 else w
                for n, (w, s) in enumerate(zip(current, start, strict=True))
            ]
    result = torch.cat(outputs, dim=2)
    return (result, current) if create_graph else (result.detach(), [w.detach() for w in current])


def reference_delta(
    q: Tensor, k: Tensor, v: Tensor, beta: Tensor, retain: Tensor, W: Tensor, start: Tensor
) -> tuple[Tensor, Tensor]:
    """The gated delta rule, frame by frame: what is left of the old is corrected by the share beta of its error.

    Args:
        q, k, v: [B, H, T, f]; beta, retain: [B, H, T].
        W: fast weights before the first frame, [B, H, f, f]; start: what they fade to, [H, f, f].

    Returns:
        q_t W_t of every frame, [B, H, T, f], and the last W.
    """
    outputs = []
    for t in range(q.shape[2]):
        key, query = k[:, :, t, :, None], q[:, :, t, None]
        W = start + retain[:, :, t, None, None] * (W - start)
        error = v[:, :, t, None] - key.mT @ W
        W = W + beta[:, :, t, None, None] * key * error
        outputs.append(query @ W)
    return torch.cat(outputs, dim=2), W
