"""The fast form for whole mini-batches: one autograd function over the whole sequence, with an analytic backward.

Equal to `block_step` on every mini-batch (proven in tests), but nothing of a step is kept for the backward pass except
its low-rank factors. The weights of every step are found again while walking backwards, by adding the updates to the
last ones ("rebuild"), or by recomputing from weights kept every so many mini-batches ("checkpoint": less memory, about
a fifth more time).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ttt_moshi.ttt import fused, linear_step, mlp_step
from ttt_moshi.ttt.block import Frames, Norm, Rule
from ttt_moshi.ttt.norm_step import InnerGradient
from ttt_moshi.ttt.scan_types import Batch, Fixed, Gradients, by_batch, by_frame, make_batches, seen
from ttt_moshi.ttt.state import Weights

Policy = Literal["rebuild", "checkpoint"]

CPU_CACHE = 2**21
"""Bytes of weights that walk through time together on a CPU, to stay in its cache: 4 heads of an MLP at f 128."""

AMPLIFIED = 8.0
"""How much walking backwards may enlarge rounding errors where the memory fades: they grow as it shrank."""

GROUP = 64
"""Mini-batches whose weightless parts are computed together; more would only need more memory."""


class _Plan(NamedTuple):
    """How a sequence is walked through."""

    K: int
    bias: float
    heads: int
    """G slices handled together"""
    group: int
    """mini-batches handled together; "checkpoint" keeps the weights between two groups"""
    rebuild: bool
    keep: float
    """share of the distance from the initial weights that is left after a mini-batch"""


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
        start: what the fast weights fade to (`rule.keep`), without the axis of streams; gradients flow to it.

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
    group = min(count, GROUP)
    within = count if start is None else math.floor(math.log(AMPLIFIED) / -math.log(rule.keep))
    if policy == "checkpoint" or within < count:
        # Weights kept + factors recomputed at a time is least where both are equal.
        of_weights = sum(w[0].numel() for w in flat[::2])
        of_factors = sum(rows * K * width for rows, width in step.kept(flat))
        group = max(1, min(count, within, round(math.sqrt(count * of_weights / of_factors))))
    plan = _Plan(
        K=K,
        bias=1.0 if rule.update_biases else 0.0,
        heads=_heads_in_cache(flat) if q.device.type == "cpu" else B * H,
        group=group,
        rebuild=policy == "rebuild" and within >= count,
        keep=rule.keep,
    )
    starts = [] if start is None else [w for w in start if w is not None]
    gamma, beta = (p.expand(B, H, 1, f).flatten(0, 1) for p in norm)
    out, *after = _Scan.apply(
        plan, *(t.flatten(0, 1) for t in (q, k, target, lam)), gamma, beta, rule.tau(q), len(flat), *flat, *starts
    )
    if not rule.update_biases:
        after[1::2] = flat[1::2]
    after = [w.unflatten(0, (B, H)) for w in after] + [None] * (4 - len(after))
    return out.unflatten(0, (B, H)), Weights(*after)


def _heads_in_cache(weights: list[Tensor]) -> int:
    return max(1, CPU_CACHE // sum(w[0].numel() * w.element_size() for w in weights[::2]))


def _step(weights: list[Tensor]) -> Any:
    return mlp_step if len(weights) == 4 else linear_step


def _room(step: Any, weights: Sequence[Tensor], count: int, G: int, K: int) -> list[Tensor]:
    """Space for what the steps of `count` mini-batches leave for the backward pass."""
    return [weights[0].new_empty(count, G, rows * K, width) for rows, width in step.kept(weights)]


def _groups(count: int, size: int) -> list[slice]:
    """Heads or mini-batches in groups, in order."""
    return [slice(start, min(start + size, count)) for start in range(0, count, size)]


class _Fading(NamedTuple):
    """What the weights of some G slices fade to, after every mini-batch. Slow biases do not."""

    plan: _Plan
    starts: list[Tensor]
    """[G, ...] of each weight; empty where nothing fades"""

    @staticmethod
    def of(plan: _Plan, starts: Sequence[Tensor], slices: slice, device: torch.device) -> _Fading:
        if not starts:
            return _Fading(plan, [])
        heads = torch.arange(slices.start, slices.stop, device=device) % len(starts[0])
        return _Fading(plan, [s.index_select(0, heads) for s in starts])

    def _each(self, *tensors: Sequence[Tensor]) -> list[tuple[Tensor, ...]]:
        return [each for n, each in enumerate(zip(self.starts, *tensors, strict=False)) if self.plan.bias or n % 2 == 0]

    def apply(self, weights: Sequence[Tensor]) -> None:
        """In place."""
        for start, w in self._each(weights):
            w.lerp_(start, 1.0 - self.plan.keep)

    def take_back(self, weights: Sequence[Tensor], d_weights: Sequence[Tensor], d_starts: Sequence[Tensor]) -> None:
        """The weights before `apply`, and their gradient, in place; the gradient of `starts` is added to."""
        gone = 1.0 - self.plan.keep
        for start, w, d_w, d_start in self._each(weights, d_weights, d_starts):
            w.sub_(start, alpha=gone).div_(self.plan.keep)
            d_start.add_(d_w, alpha=gone)
            d_w.mul_(self.plan.keep)


def _walk(
    plan: _Plan,
    step: Any,
    inputs: Sequence[Tensor],
    tau: Tensor,
    weights: list[Tensor],
    starts: Sequence[Tensor],
    factors: list[Tensor],
    kept: list[Tensor],
    out: Tensor,
) -> None:
    """The forward pass; `weights` become those after it, `factors`, `kept` and `out` are filled."""
    K = plan.K
    *frames, gamma, beta = inputs
    for heads in _groups(len(out), plan.heads):
        now = [w[heads] for w in weights]
        fixed, fading = Fixed(gamma[heads], beta[heads], plan.bias), _Fading.of(plan, starts, heads, out.device)
        for number, group in enumerate(_groups(out.shape[1] // K, plan.group)):
            for store, w in zip(kept, now, strict=False):
                store[number, heads] = w
            batches = make_batches([t[heads, group.start * K : group.stop * K] for t in frames], tau, plan.bias)
            for n, batch in enumerate(batches.unbind(), group.start):
                keep = [t[n % len(t), heads] for t in factors]
                out[heads, n * K : (n + 1) * K] = step.forward(now, batch, fixed, keep)
                fading.apply(now)


class _Scan(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        plan: _Plan,
        q: Tensor,
        k: Tensor,
        target: Tensor,
        lam: Tensor,
        gamma: Tensor,
        beta: Tensor,
        tau: Tensor,
        num_weights: int,
        *weights_and_starts: Tensor,
    ) -> tuple[Tensor, ...]:
        weights, starts = weights_and_starts[:num_weights], weights_and_starts[num_weights:]
        step = _step(list(weights))
        G, T, _ = q.shape
        count = T // plan.K
        training = any(ctx.needs_input_grad)
        out = torch.empty_like(q, memory_format=torch.contiguous_format)
        after = [w.clone(memory_format=torch.contiguous_format) for w in weights]
        factors = _room(step, weights, count if training and plan.rebuild else 1, G, plan.K)
        kept = []
        if training and not plan.rebuild:
            kept = [w.new_empty(math.ceil(count / plan.group), *w.shape) for w in weights]
        if not kept and fused.usable(q, weights, plan.K, fading=bool(starts)):
            out = fused.forward(q, k, target, lam, gamma, beta, tau, after, factors, plan.K, plan.bias)
        else:
            _walk(plan, step, (q, k, target, lam, gamma, beta), tau, after, starts, factors, kept, out)
        if training:
            ctx.set_materialize_grads(False)
            ctx.plan = plan
            ctx.num_weights, ctx.num_starts = num_weights, len(starts)
            ends = after + factors if plan.rebuild else kept
            ctx.save_for_backward(q, k, target, lam, gamma, beta, tau, *starts, *ends)
        return out, *after

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_out: Tensor | None, *d_after: Tensor | None) -> tuple[Tensor | None, ...]:
        plan: _Plan = ctx.plan
        saved = ctx.saved_tensors
        inputs, starts, saved = saved[:7], saved[7 : 7 + ctx.num_starts], saved[7 + ctx.num_starts :]
        ends, factors = saved[: ctx.num_weights], saved[ctx.num_weights :]
        q, k, target, lam, gamma, beta, tau = inputs
        step = _step(list(ends))
        recomputed = [] if plan.rebuild else _room(step, [w[0] for w in ends], plan.group, len(q), plan.K)
        # Biases that are not updated come out as they went in: what follows the scan is no part of their gradient here.
        used = [d if plan.bias or n % 2 == 0 else None for n, d in enumerate(d_after)]
        d_weights = [
            w.new_zeros(gamma.shape[0], *w.shape[-2:]) if d is None else d.clone(memory_format=torch.contiguous_format)
            for w, d in zip(ends, used, strict=True)
        ]
        if d_out is None:
            d_out = torch.zeros_like(q)
        dq, dk, d_target = (torch.empty_like(t, memory_format=torch.contiguous_format) for t in (q, k, target))
        d_lam = torch.empty_like(lam, memory_format=torch.contiguous_format)
        d_gamma, d_beta = torch.zeros_like(gamma), torch.zeros_like(beta)
        d_starts = [torch.zeros_like(d) for d in d_weights] if starts else []
        for heads in _groups(len(q), plan.heads):
            fixed, fading = Fixed(gamma[heads], beta[heads], plan.bias), _Fading.of(plan, starts, heads, q.device)
            d_now = [d[heads] for d in d_weights]
            now = [w[heads].clone() for w in ends] if plan.rebuild else []
            for number, group in reversed(list(enumerate(_groups(q.shape[1] // plan.K, plan.group)))):
                frames = slice(group.start * plan.K, group.stop * plan.K)
                batches = make_batches([t[heads, frames] for t in inputs[:4]], tau, plan.bias)
                if plan.rebuild:
                    keep = [t[group, heads] for t in factors]
                else:
                    now = [w[number, heads].clone() for w in ends]
                    keep = [t[: group.stop - group.start, heads] for t in recomputed]
                    for n, batch in enumerate(batches.unbind()):
                        step.forward(now, batch, fixed, [t[n] for t in keep])
                        fading.apply(now)
                d_own = by_batch(d_out[heads, frames], plan.K)
                found = _walk_back(
                    step, now, batches, fixed, fading, keep, d_own, d_now, [d[heads] for d in d_starts], tau
                )
                for whole, part in zip((dq, dk, d_target, d_lam), found[:4], strict=True):
                    whole[heads, frames] = by_frame(part)
                d_gamma[heads] += found[4]
                d_beta[heads] += found[5]
        d_starts = [d.unflatten(0, (-1, len(s))).sum(0) for d, s in zip(d_starts, starts, strict=True)]
        return None, dq, dk, d_target, d_lam, d_gamma, d_beta, None, None, *d_weights, *d_starts


def _walk_back(
    step: Any,
    weights: list[Tensor],
    batches: Batch,
    fixed: Fixed,
    fading: _Fading,
    keep: list[Tensor],
    d_out: Tensor,
    d_weights: list[Tensor],
    d_starts: list[Tensor],
    tau: Tensor,
) -> tuple[Tensor, ...]:
    """Gradients of q, k, target [N, G, K, f], lam [N, G, K], gamma, beta [G, 1, f] of a group of N mini-batches.

    `weights` and `d_weights` are those after the group and become those before it; `d_starts` is added to.
    """
    K = len(tau)
    inner = InnerGradient.of(step.predicted(keep, K).contiguous(), batches.target, fixed.gamma, fixed.beta)
    d = Gradients.room(batches)
    each = zip(batches.unbind(), zip(*keep, strict=True), inner.unbind(), d_out * fixed.gamma, d.unbind(), strict=True)
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
