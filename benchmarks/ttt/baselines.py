"""What the TTT layer is measured against: the usual ways to write TTT-MLP in PyTorch, written here for comparison.

`naive_scan` is the dual form as the published tutorial code states it (arXiv 2407.04620), differentiated by autograd:
the step sizes as a K x K matrix per head and mini-batch, norms and their gradient as single operations. With `group` it
adds what public training code adds: recompute of groups of mini-batches. The two accumulator streams keep the running
sum of the inner gradients, as public decoding code does, instead of the rows they came from.

All compute the same function as `ttt_moshi.ttt` in the speech recipe (flat step sizes, slow biases); the benchmark
checks that before it measures.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

EPS = 1e-6


def ln_forward(z: Tensor, gamma: Tensor, beta: Tensor) -> Tensor:
    mean = z.mean(-1, keepdim=True)
    std = torch.sqrt(z.var(-1, keepdim=True, unbiased=False) + EPS)
    return gamma * ((z - mean) / std) + beta


def ln_l2_backward(z: Tensor, target: Tensor, gamma: Tensor, beta: Tensor) -> Tensor:
    f = z.shape[-1]
    mean = z.mean(-1, keepdim=True)
    std = torch.sqrt(z.var(-1, keepdim=True, unbiased=False) + EPS)
    normed = (z - mean) / std
    d = (gamma * normed + beta - target) * gamma
    inner = f * d - d.sum(-1, keepdim=True) - normed * (d * normed).sum(-1, keepdim=True)
    return inner / (f * std)


def gelu_slope(z: Tensor) -> Tensor:
    c = math.sqrt(2 / math.pi)
    t = torch.tanh(c * z * (1 + 0.044715 * z * z))
    return 0.5 * z * ((1 - t * t) * (c + 3 * 0.044715 * c * z * z)) + 0.5 * (1 + t)


def naive_mini_batch(
    W1: Tensor,
    b1: Tensor,
    W2: Tensor,
    b2: Tensor,
    q: Tensor,
    k: Tensor,
    target: Tensor,
    lam: Tensor,
    gamma: Tensor,
    beta: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """One mini-batch: [B, H, K, f] inputs, lam [B, H, K]; the new W1 and W2, and the output."""
    K = q.shape[2]
    eta = torch.tril(lam[:, :, None, :].expand(-1, -1, K, K).contiguous())
    z1 = k @ W1 + b1
    x2 = F.gelu(z1, approximate="tanh")
    z2 = x2 @ W2 + b2
    g2 = ln_l2_backward(z2, target, gamma, beta)
    g1 = g2 @ W2.transpose(-2, -1) * gelu_slope(z1)
    attention1 = torch.tril(q @ k.transpose(-2, -1))
    z1_bar = q @ W1 - (eta * attention1) @ g1 + b1
    x2_bar = F.gelu(z1_bar, approximate="tanh")
    attention2 = torch.tril(x2_bar @ x2.transpose(-2, -1))
    z2_bar = x2_bar @ W2 - (eta * attention2) @ g2 + b2
    last = eta[:, :, -1, :, None]
    W1 = W1 - (last * k).transpose(-1, -2) @ g1
    W2 = W2 - (last * x2).transpose(-1, -2) @ g2
    return W1, W2, q + ln_forward(z2_bar, gamma, beta)


def naive_scan(
    inputs: list[Tensor], weights: list[Tensor], norm: list[Tensor], K: int, group: int | None = None
) -> Tensor:
    """All mini-batches by autograd; `group`: recompute so many mini-batches at a time in the backward pass."""
    W1, b1, W2, b2 = weights
    pieces = list(zip(*(t.split(K, dim=2) for t in inputs), strict=True))

    def some(W1: Tensor, W2: Tensor, start: int, stop: int) -> tuple[Tensor, Tensor, Tensor]:
        outputs = []
        for piece in pieces[start:stop]:
            W1, W2, out = naive_mini_batch(W1, b1, W2, b2, *piece, *norm)
            outputs.append(out)
        return W1, W2, torch.cat(outputs, dim=2)

    outputs = []
    size = group or len(pieces)
    for start in range(0, len(pieces), size):
        arguments = (W1, W2, start, start + size)
        W1, W2, out = checkpoint(some, *arguments, use_reentrant=False) if group else some(*arguments)
        outputs.append(out)
    return torch.cat(outputs, dim=2)


class Accumulators(NamedTuple):
    """Streaming state of the accumulator form: weights at the boundary, and the gradient sums since."""

    W1: Tensor
    W2: Tensor
    sum1: Tensor
    sum2: Tensor


def accumulator_token(
    state: Accumulators, biases: tuple[Tensor, Tensor], token: list[Tensor], norm: list[Tensor], last: bool, lean: bool
) -> tuple[Tensor, Accumulators]:
    """One frame. `lean` uses in-place rank-one updates and no weights of the frame's own; else as the formulas read."""
    q, k, target, lam = token
    b1, b2 = biases
    W1, W2, sum1, sum2 = state
    z1 = k @ W1 + b1
    x2 = F.gelu(z1, approximate="tanh")
    z2 = x2 @ W2 + b2
    g2 = ln_l2_backward(z2, target, *norm)
    g1 = g2 @ W2.transpose(-2, -1) * gelu_slope(z1)
    rate = lam[..., None]
    if lean:
        sum1.flatten(0, 1).baddbmm_((rate * k).flatten(0, 1).mT, g1.flatten(0, 1))
        sum2.flatten(0, 1).baddbmm_((rate * x2).flatten(0, 1).mT, g2.flatten(0, 1))
        z1_bar = q @ W1 + b1 - q @ sum1
        x2_bar = F.gelu(z1_bar, approximate="tanh")
        z2_bar = x2_bar @ W2 + b2 - x2_bar @ sum2
        if last:
            W1.sub_(sum1)
            W2.sub_(sum2)
            sum1.zero_()
            sum2.zero_()
        return q + ln_forward(z2_bar, *norm), state
    sum1 = sum1 + rate * (k.transpose(-2, -1) @ g1)
    sum2 = sum2 + rate * (x2.transpose(-2, -1) @ g2)
    own1, own2 = W1 - sum1, W2 - sum2
    x2_bar = F.gelu(q @ own1 + b1, approximate="tanh")
    out = q + ln_forward(x2_bar @ own2 + b2, *norm)
    if last:
        return out, Accumulators(own1, own2, torch.zeros_like(sum1), torch.zeros_like(sum2))
    return out, Accumulators(W1, W2, sum1, sum2)
