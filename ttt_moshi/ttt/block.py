"""The block step: the one arithmetic of training tails, prefill and streaming (dual form of arXiv 2407.04620).

Inside a mini-batch of K frames all inner gradients are taken at the fast weights W of its start, so frame i reads

    out_i = q_i + LN(g_{W_i}(q_i)),    W_i = W - tau_i * sum_{j <= i} lam_j * dl_j/dW

and the next mini-batch starts at W_K (where old things are forgotten: at W_0 + retain (W_K - W_0), W_0 the trained
start). W_i never exists: the updates are low-rank, and frame i looks at the rows (k_j, g_j) of its own mini-batch
through a lower-triangular matrix instead. A stream may be cut into calls anywhere; what is carried between them is W
and the rows since the last boundary. A bias is a weight of a constant input one, hence the `+ bias` terms.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from ttt_moshi.ttt.functional import gelu, gelu_backward, inner_gradient, layer_norm
from ttt_moshi.ttt.state import Memory, Rows, Weights


@dataclass(frozen=True)
class Rule:
    """How a mini-batch writes."""

    mini_batch_size: int
    update_biases: bool
    reciprocal_positions: bool
    half_lives: tuple[float, float] | None = None
    """frames after which half of what was written is forgotten, of the first and of the last head; None: never"""

    def tau(self, like: Tensor) -> Tensor:
        """Scale of all updates as seen by position 1..K of a mini-batch, [K]."""
        positions = torch.arange(1, self.mini_batch_size + 1, device=like.device, dtype=like.dtype)
        return positions.reciprocal() if self.reciprocal_positions else torch.ones_like(positions)

    def retain(self, heads: int, like: Tensor) -> Tensor:
        """Share of what each head holds that is left after a mini-batch, [H, 1, 1]; the rest fades to the start."""
        assert self.half_lives is not None
        return log_retained(self.half_lives, self.mini_batch_size, heads, like).exp()[:, None, None]

    @property
    def last_tau(self) -> float:
        """Scale of the updates that the next mini-batch starts from."""
        return 1.0 / self.mini_batch_size if self.reciprocal_positions else 1.0


def log_retained(half_lives: tuple[float, float], frames: int, heads: int, like: Tensor) -> Tensor:
    """Logarithm of what is left after so many frames, [H]: half-lives spread log-uniformly from the first head to the
    last. Made where it is used, on `like`'s device: nothing is copied to it.
    """
    first, last = (math.log(half_life) for half_life in half_lives)
    spread = torch.linspace(first, last, heads, device=like.device, dtype=like.dtype)
    return torch.exp(-spread) * (-math.log(2.0) * frames)


class Norm(NamedTuple):
    """Scale and offset of the inner LayerNorm, [H, 1, f] each."""

    gamma: Tensor
    beta: Tensor


class Frames(NamedTuple):
    """What the scan reads and writes: q, k, target [B, H, T, f] and lam [B, H, T].

    `target` is what LN(g_W(k)) should be, `lam` the step size of each frame.
    """

    q: Tensor
    k: Tensor
    target: Tensor
    lam: Tensor

    def between(self, start: int, stop: int) -> Frames:
        """Frames start..stop-1."""
        return Frames(*(t[:, :, start:stop] for t in self))


def block_step(
    frames: Frames, memory: Memory, norm: Norm, rule: Rule, take: Tensor | None = None, in_place: bool = False
) -> tuple[Tensor, Memory]:
    """Feed up to K frames to every stream, none of them past the end of its running mini-batch.

    Args:
        frames: m <= K of them.
        take: number of frames that count, int64 [B], at most min(m, K - phase); None: all m.
            Outputs beyond `take` are meaningless; streams with 0 do not change.
        in_place: write into the weights and rows of `memory` (no autograd).

    Returns:
        out [B, H, m, f], and the new memory.
    """
    q, k, target, lam = frames
    weights, rows, phase, start = memory
    K, m = rule.mini_batch_size, q.shape[2]
    W1, b1, W2, b2 = weights
    position = phase[:, None] + torch.arange(m, device=q.device)  # [B, m]
    after = phase + m if take is None else phase + take

    z1, z1_query = (_times(torch.cat([k, q], dim=2), W1) + b1).split(m, dim=2)
    if W2 is None:
        new = Rows(k, None, inner_gradient(z1, target, *norm), None, lam)
    else:
        assert b2 is not None
        a1 = gelu(z1)
        g2 = inner_gradient(_times(a1, W2) + b2, target, *norm)
        new = Rows(k, a1, gelu_backward(_times(g2, W2.mT), z1), g2, lam)
    rows = _append(rows, new, phase, take, in_place)

    seen = (torch.arange(K, device=q.device) <= position[..., None])[:, None]  # [B, 1, m, K]
    step = torch.where(seen, rows.lam[:, :, None, :], 0.0)
    if rule.reciprocal_positions:
        step = step * rule.tau(q)[position.clamp(max=K - 1)][:, None, :, None]
    z = z1_query - _times(_reach(q, rows.k, step, rule), rows.g1)
    if W2 is not None:
        assert b2 is not None and rows.a1 is not None and rows.g2 is not None
        a = gelu(z)
        z = _times(a, W2) + b2 - _times(_reach(a, rows.a1, step, rule), rows.g2)
    out = q + layer_norm(z, *norm)

    full = after == K
    weights = commit(weights, rows, full, rule, start, in_place)
    return out, Memory(weights, rows, torch.where(full, 0, after), start)


def _times(x: Tensor, W: Tensor) -> Tensor:
    """x @ W, batched over streams and heads."""
    return torch.bmm(x.flatten(0, 1), W.flatten(0, 1)).unflatten(0, x.shape[:2])


def _reach(queries: Tensor, keys: Tensor, step: Tensor, rule: Rule) -> Tensor:
    """How much of each row's gradient each query sees, [B, H, m, K]."""
    similarity = _times(queries, keys.mT)
    return step * (similarity + 1.0 if rule.update_biases else similarity)


def commit(
    weights: Weights, rows: Rows, full: Tensor, rule: Rule, start: Weights | None = None, in_place: bool = False
) -> Weights:
    """Write the rows of the streams where `full` (bool [B]) is true into their weights, which then fade to `start`; the
    other streams do not change."""
    if known_false(full):
        return weights
    step = torch.where(full[:, None, None], rows.lam * rule.last_tau, 0.0)[..., None]  # [B, H, K, 1]
    g1, g2 = rows.g1, rows.g2
    W1, b1, W2, b2 = weights
    W1 = _subtract(W1, step * rows.k, g1, in_place)
    if rule.update_biases:
        b1 = _subtract(b1, step, g1, in_place)
    if W2 is not None:
        assert rows.a1 is not None and g2 is not None and b2 is not None
        W2 = _subtract(W2, rows.a1, step * g2, in_place)
        if rule.update_biases:
            b2 = _subtract(b2, step, g2, in_place)
    weights = Weights(W1, b1, W2, b2)
    return weights if start is None else _fade(weights, start, full, rule, in_place)


def _fade(weights: Weights, start: Weights, full: Tensor, rule: Rule, in_place: bool) -> Weights:
    W1 = weights.W1
    share = full.to(W1.dtype).view(-1, 1, 1, 1) * (1.0 - rule.retain(W1.shape[1], W1))

    def faded(W: Tensor | None, towards: Tensor | None, fast: bool) -> Tensor | None:
        if W is None or towards is None or not fast:
            return W
        return W.lerp_(towards, share) if in_place else torch.lerp(W, towards, share)

    fast = (True, rule.update_biases, True, rule.update_biases)
    return Weights(*map(faded, weights, start, fast))  # type: ignore[arg-type]


def known_false(mask: Tensor) -> bool:
    """Whether the work for `mask` can be left out. Looking costs nothing on a CPU; it would stall another device."""
    return mask.device.type == "cpu" and not torch.compiler.is_compiling() and not bool(mask.any())


def _subtract(W: Tensor, left: Tensor, right: Tensor, in_place: bool) -> Tensor:
    """W - left^T right, batched over streams and heads."""
    flat = W.flatten(0, 1)
    factors = left.flatten(0, 1).mT, right.flatten(0, 1)
    if in_place:
        flat.baddbmm_(*factors, alpha=-1.0)
        return W
    return torch.baddbmm(flat, *factors, alpha=-1.0).unflatten(0, W.shape[:2])


def _append(rows: Rows, new: Rows, phase: Tensor, take: Tensor | None, in_place: bool) -> Rows:
    """Put the first `take` of the new frames into the slots from `phase` on."""
    m, K = new.lam.shape[2], rows.lam.shape[2]
    if m == 1:
        pairs = zip(rows, new, strict=True)
        one = partial(_append_one, phase=phase, take=take, in_place=in_place)
        return Rows(*(cache if cache is None else one(cache, fresh) for cache, fresh in pairs))  # type: ignore[arg-type]
    source = torch.arange(K, device=phase.device) - phase[:, None]  # [B, K]: new frame for each slot
    is_new = (source >= 0) & (source < (m if take is None else take[:, None]))
    source = source.clamp(0, m - 1)

    def several(cache: Tensor, fresh: Tensor) -> Tensor:
        extra = [1] * (cache.dim() - 3)
        index = source.view(-1, 1, K, *extra).expand_as(cache)
        return torch.where(is_new.view(-1, 1, K, *extra), fresh.gather(2, index), cache)

    pairs = zip(rows, new, strict=True)
    return Rows(*(cache if cache is None else several(cache, fresh) for cache, fresh in pairs))  # type: ignore[arg-type]


def _append_one(cache: Tensor, fresh: Tensor, phase: Tensor, take: Tensor | None, in_place: bool) -> Tensor:
    """One new frame for the streams whose `take` is 1."""
    if len(phase) == 1 and take is None:  # the rows of one stream lie side by side: copying whole rows is faster
        return cache.index_copy_(2, phase, fresh) if in_place else cache.index_copy(2, phase, fresh)
    extra = [1] * (cache.dim() - 1)
    slot = phase.view(-1, *extra).expand_as(fresh)
    if take is not None:
        fresh = torch.where((take > 0).view(-1, *extra), fresh, cache.gather(2, slot))
    return cache.scatter_(2, slot, fresh) if in_place else cache.scatter(2, slot, fresh)
