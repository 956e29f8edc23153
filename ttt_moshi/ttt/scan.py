"""The fast form for whole mini-batches: one autograd function over the whole sequence, with an analytic backward.

Equal to `block_step` on every mini-batch (proven in tests), but nothing of a step is kept for the backward pass except
its low-rank factors. The weights of every step are found again while walking backwards, by adding the updates to the
last ones ("rebuild"), or by recomputing from weights kept every so many mini-batches ("checkpoint": less memory, about
a fifth more time).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import islice
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ttt_moshi.ttt import fused, linear_step, mlp_step
from ttt_moshi.ttt.block import Frames, Norm, Rule
from ttt_moshi.ttt.norm_step import InnerGradient
from ttt_moshi.ttt.scan_types import Batch, Fixed, Gradients, Inputs, Step, by_batch, by_frame, make_batches, seen
from ttt_moshi.ttt.state import Weights

Policy = Literal["rebuild", "checkpoint"]

CPU_CACHE = 2**21
"""Bytes of weights that walk through time together on a CPU, to stay in its cache: 4 heads of an MLP at f 128."""

AMPLIFIED = 8.0
"""How much walking backwards may enlarge rounding errors where the memory fades: they grow as it shrank."""

GROUP = 64
"""Mini-batches whose weightless parts are computed together; more would only need more memory."""


class _Walk(NamedTuple):
    """How a sequence is walked through."""

    K: int
    bias: float
    heads: int
    """G slices handled together"""
    group: int
    """mini-batches handled together; "checkpoint" keeps the weights between two groups"""
    rebuild: bool


def scan(
    frames: Frames,
    weights: Weights,
    norm: Norm,
    rule: Rule,
    policy: Policy = "rebuild",
    start: Weights | None = None,
) -> tuple[Tensor, Weights]:
    """Whole mini-batches from the start of one: out [B, H, T, f] and the weights after the last.

    Args:
        frames: T of them, a multiple of K.
        weights: fast weights and slow biases of every stream; gradients flow to both.
        policy: what is kept for the backward pass, "rebuild" (factors: 9f numbers a frame and head for the MLP, 2f
            for the linear network) or "checkpoint" (some weights). Where the memory fades so far within the
            sequence that weights cannot be found backwards, "rebuild" keeps some, too.
        start: what the fast weights fade to (`rule.half_lives`), without the axis of streams; gradients flow to it.

    Raises:
        ValueError: T is not a multiple of K, or the policy is unknown.
    """
    q, k, target, lam = frames
    B, H, T, f = q.shape
    K = rule.mini_batch_size
    if T % K or not T:
        raise ValueError(f"scan works on whole mini-batches of {K} frames, got {T} frames")
    if policy not in ("rebuild", "checkpoint"):
        raise ValueError(f"policy must be 'rebuild' or 'checkpoint', got {policy!r}")
    flat = [w.flatten(0, 1) for w in weights if w is not None]
    step = _step(flat)
    count = T // K
    group, within, retain = min(count, GROUP), count, []
    starts = [] if start is None else [w for w in start if w is not None]
    if starts:
        assert rule.half_lives is not None
        within = math.floor(math.log2(AMPLIFIED) * min(rule.half_lives) / K)
        retain = [rule.retain(H, q).expand(H, 1, 1).repeat(B, 1, 1)]
    if policy == "checkpoint" or within < count:
        # Weights kept + factors recomputed at a time is least where both are equal.
        of_weights = sum(w[0].numel() for w in flat[::2])
        of_factors = sum(rows * K * width for rows, width in step.saved_shapes(flat))
        group = max(1, min(count, within, round(math.sqrt(count * of_weights / of_factors))))
    walk = _Walk(
        K=K,
        bias=1.0 if rule.update_biases else 0.0,
        heads=_heads_in_cache(flat) if q.device.type == "cpu" else B * H,
        group=group,
        rebuild=policy == "rebuild" and within >= count,
    )
    gamma, beta = (p.expand(B, H, 1, f).flatten(0, 1) for p in norm)
    q, k, target, lam = (t.flatten(0, 1) for t in frames)
    inputs = Inputs(q, k, target, lam, gamma, beta, rule.tau(q))
    out, *after = _Scan.apply(walk, len(flat), *inputs, *flat, *retain, *starts)
    if not rule.update_biases:
        after[1::2] = flat[1::2]
    after = [w.unflatten(0, (B, H)) for w in after] + [None] * (4 - len(after))
    return out.unflatten(0, (B, H)), Weights(*after)


def _heads_in_cache(weights: list[Tensor]) -> int:
    return max(1, CPU_CACHE // sum(w[0].numel() * w.element_size() for w in weights[::2]))


def _step(weights: Sequence[Tensor]) -> Step:
    return mlp_step if len(weights) == 4 else linear_step


def _room(step: Step, weights: Sequence[Tensor], count: int, G: int, K: int) -> list[Tensor]:
    """Space for what the steps of `count` mini-batches leave for the backward pass."""
    return [weights[0].new_empty(count, G, rows * K, width) for rows, width in step.saved_shapes(weights)]


def _groups(count: int, size: int) -> list[slice]:
    """Heads or mini-batches in groups, in order."""
    return [slice(start, min(start + size, count)) for start in range(0, count, size)]


class _Fading(NamedTuple):
    """What the weights of some G slices fade to, after every mini-batch. Slow biases do not."""

    bias: float
    retain: Tensor | None
    """share that is left, [G, 1, 1]; None where nothing fades"""
    starts: list[Tensor]
    """[G, ...] of each weight; empty where nothing fades"""

    @staticmethod
    def of(walk: _Walk, fades: Sequence[Tensor], slices: slice, device: torch.device) -> _Fading:
        if not fades:
            return _Fading(walk.bias, None, [])
        retain, *starts = fades
        heads = torch.arange(slices.start, slices.stop, device=device) % len(starts[0])
        return _Fading(walk.bias, retain[slices], [s.index_select(0, heads) for s in starts])

    def _each(self, *tensors: Sequence[Tensor]) -> list[tuple[Tensor, ...]]:
        return [each for n, each in enumerate(zip(self.starts, *tensors, strict=False)) if self.bias or n % 2 == 0]

    def apply(self, weights: Sequence[Tensor]) -> None:
        """In place."""
        if self.retain is None:
            return
        for start, w in self._each(weights):
            w.lerp_(start, 1.0 - self.retain)

    def take_back(self, weights: Sequence[Tensor], d_weights: Sequence[Tensor], d_starts: Sequence[Tensor]) -> None:
        """The weights before `apply`, and their gradient, in place; the gradient of `starts` is added to."""
        if self.retain is None:
            return
        gone = 1.0 - self.retain
        for start, w, d_w, d_start in self._each(weights, d_weights, d_starts):
            w.addcmul_(start, gone, value=-1.0).div_(self.retain)
            d_start.addcmul_(d_w, gone)
            d_w.mul_(self.retain)


def _walk_forwards(
    walk: _Walk,
    step: Step,
    inputs: Inputs,
    weights: list[Tensor],
    fades: Sequence[Tensor],
    factors: list[Tensor],
    anchors: list[Tensor],
    out: Tensor,
) -> None:
    """`weights` become those after it; `factors`, `anchors` (weights between groups) and `out` are filled."""
    K = walk.K
    for heads in _groups(len(out), walk.heads):
        now = [w[heads] for w in weights]
        fixed = Fixed(inputs.gamma[heads], inputs.beta[heads], walk.bias)
        fading = _Fading.of(walk, fades, heads, out.device)
        for number, group in enumerate(_groups(out.shape[1] // K, walk.group)):
            for anchor, w in zip(anchors, now, strict=False):
                anchor[number, heads] = w
            batches = make_batches(inputs.part(heads, slice(group.start * K, group.stop * K)), walk.bias)
            for n, batch in enumerate(batches.unbind(), group.start):
                saved = [t[n % len(t), heads] for t in factors]
                out[heads, n * K : (n + 1) * K] = step.forward(now, batch, fixed, saved)
                fading.apply(now)


class _Scan(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, walk: _Walk, num_weights: int, *tensors: Tensor) -> tuple[Tensor, ...]:
        """`tensors` are those of `Inputs`, the weights, and where they fade what each head retains and the starts."""
        inputs, rest = Inputs(*tensors[: len(Inputs._fields)]), tensors[len(Inputs._fields) :]
        weights, fades = rest[:num_weights], rest[num_weights:]
        step = _step(weights)
        G, T, _ = inputs.q.shape
        count = T // walk.K
        training = any(ctx.needs_input_grad)
        out = torch.empty_like(inputs.q, memory_format=torch.contiguous_format)
        after = [w.clone(memory_format=torch.contiguous_format) for w in weights]
        factors = _room(step, weights, count if training and walk.rebuild else 1, G, walk.K)
        anchors = []
        if training and not walk.rebuild:
            anchors = [w.new_empty(math.ceil(count / walk.group), *w.shape) for w in weights]
        if not anchors and fused.usable(inputs.q, weights, walk.K, fading=bool(fades)):
            out = fused.forward(inputs, after, factors, walk.bias)
        else:
            _walk_forwards(walk, step, inputs, after, fades, factors, anchors, out)
        if training:
            ctx.set_materialize_grads(False)
            ctx.walk, ctx.device_type = walk, out.device.type
            ctx.num_weights, ctx.num_fades = num_weights, len(fades)
            ends = after + factors if walk.rebuild else anchors
            ctx.save_for_backward(*inputs, *fades, *ends)
        return out, *after

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_out: Tensor | None, *d_after: Tensor | None) -> tuple[Tensor | None, ...]:
        # Where `backward()` is called inside autocast, its products would be rounded, and their types would not agree.
        with torch.autocast(ctx.device_type, enabled=False):
            return _gradients(ctx, d_out, d_after)


def _gradients(ctx: Any, d_out: Tensor | None, d_after: Sequence[Tensor | None]) -> tuple[Tensor | None, ...]:
    """The whole backward pass, in the order of the arguments of `_Scan.forward`."""
    walk: _Walk = ctx.walk
    tensors = iter(ctx.saved_tensors)
    inputs = Inputs(*islice(tensors, len(Inputs._fields)))
    fades = list(islice(tensors, ctx.num_fades))
    ends, factors = list(islice(tensors, ctx.num_weights)), list(tensors)
    step, K, tau = _step(ends), walk.K, inputs.tau
    G, T, _ = inputs.q.shape
    recomputed = [] if walk.rebuild else _room(step, [w[0] for w in ends], walk.group, G, K)
    # Biases that are not updated come out as they went in: what follows the scan is no part of their gradient here.
    used = [d if walk.bias or n % 2 == 0 else None for n, d in enumerate(d_after)]
    d_weights = [
        w.new_zeros(G, *w.shape[-2:]) if d is None else d.clone(memory_format=torch.contiguous_format)
        for w, d in zip(ends, used, strict=True)
    ]
    if d_out is None:
        d_out = torch.zeros_like(inputs.q)
    d_frames = [torch.empty_like(t, memory_format=torch.contiguous_format) for t in inputs[:4]]
    d_gamma, d_beta = torch.zeros_like(inputs.gamma), torch.zeros_like(inputs.beta)
    d_starts = [torch.zeros_like(d) for d in d_weights] if fades else []
    for heads in _groups(G, walk.heads):
        fixed = Fixed(inputs.gamma[heads], inputs.beta[heads], walk.bias)
        fading = _Fading.of(walk, fades, heads, d_out.device)
        d_now, d_starts_now = [d[heads] for d in d_weights], [d[heads] for d in d_starts]
        now = [w[heads].clone() for w in ends] if walk.rebuild else []
        for number, group in reversed(list(enumerate(_groups(T // K, walk.group)))):
            frames = slice(group.start * K, group.stop * K)
            batches = make_batches(inputs.part(heads, frames), walk.bias)
            if walk.rebuild:
                saved = [t[group, heads] for t in factors]
            else:
                now = [w[number, heads].clone() for w in ends]
                saved = [t[: group.stop - group.start, heads] for t in recomputed]
                for n, batch in enumerate(batches.unbind()):
                    step.forward(now, batch, fixed, [t[n] for t in saved])
                    fading.apply(now)
            d_own = by_batch(d_out[heads, frames], K)
            found = _walk_back(step, now, batches, fixed, fading, saved, d_own, d_now, d_starts_now, tau)
            for whole, part in zip(d_frames, found[:4], strict=True):
                whole[heads, frames] = by_frame(part)
            d_gamma[heads] += found[4]
            d_beta[heads] += found[5]
    d_fades: list[Tensor | None] = []
    if fades:
        d_fades = [None, *(d.unflatten(0, (-1, len(s))).sum(0) for d, s in zip(d_starts, fades[1:], strict=True))]
    return None, None, *d_frames, d_gamma, d_beta, None, *d_weights, *d_fades


def _walk_back(
    step: Step,
    weights: list[Tensor],
    batches: Batch,
    fixed: Fixed,
    fading: _Fading,
    saved: list[Tensor],
    d_out: Tensor,
    d_weights: list[Tensor],
    d_starts: list[Tensor],
    tau: Tensor,
) -> tuple[Tensor, ...]:
    """Gradients of q, k, target [N, G, K, f], lam [N, G, K], gamma, beta [G, 1, f] of a group of N mini-batches.

    `weights` and `d_weights` are those after the group and become those before it; `d_starts` is added to.
    """
    K = len(tau)
    inner = InnerGradient.of(step.predicted(saved, K).contiguous(), batches.target, fixed.gamma, fixed.beta)
    d = Gradients.room(batches)
    each = zip(batches.unbind(), zip(*saved, strict=True), inner.unbind(), d_out * fixed.gamma, d.unbind(), strict=True)
    for batch, own, inner_own, d_normed, d_own in reversed(list(each)):
        fading.take_back(weights, d_weights, d_starts)
        step.backward(weights, batch, fixed, own, inner_own, d_normed, d_weights, d_own)
    d_target, d_gamma, d_beta = inner.outer_gradients(d.d_hat, batches.target, fixed.gamma, fixed.beta)
    d_gamma += (d_out * d.normed_bar).sum((0, 2))[:, None]
    d_beta += d_out.sum((0, 2))[:, None]
    d_reach = d.S * batches.E
    dk, dq = d.kq.split(K, dim=2)
    dq = dq + d_out + d_reach @ batches.k
    dk = dk + batches.e * d.written + d_reach.mT @ batches.q
    dE = d.E.addcmul_(d.S, batches.reach)
    de = d.e + (batches.k * d.written).sum(-1)
    d_lam = -(torch.where(seen(tau), dE, 0.0) * tau[:, None]).sum(-2) - de * tau[-1]
    return dq, dk, d_target, d_lam, d_gamma, d_beta
