"""What a layer can do before any outer training: recall, ripple, stability, reach of the gradient."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ttt_moshi.ttt import TTTConfig
from ttt_moshi.ttt.block import Frames, Norm, Rule
from ttt_moshi.ttt.functional import rms_norm, standardise
from ttt_moshi.ttt.mini_batch import MiniBatchNetwork
from ttt_moshi.ttt.networks import make_inner
from ttt_moshi.ttt.reference import predict
from ttt_moshi.ttt.sequence import run_fresh
from ttt_moshi.ttt.state import Memory

HEADS = 8


def network(
    preset: str, base_lr: float, K: int = 16, f: int = 128, inner: str = "mlp", seed: int = 0
) -> MiniBatchNetwork:
    """An inner network as it is initialised."""
    torch.manual_seed(seed)
    config = TTTConfig(HEADS * f, HEADS, mini_batch_size=K, inner=inner, preset=preset, base_lr=base_lr)  # type: ignore[arg-type]
    net = MiniBatchNetwork(config).requires_grad_(False)
    net.reset_parameters()
    return net


def keys(net: MiniBatchNetwork, *shape: int) -> Tensor:
    """Random keys, of the length that the recipe gives them."""
    k = torch.randn(*shape, net.config.head_dim)
    if net.config.recipe.qk_norm == "none":
        return k
    unit = k / k.norm(dim=-1, keepdim=True)
    return unit * math.sqrt(net.config.head_dim) if net.config.recipe.qk_norm == "rms" else unit


def start(net: MiniBatchNetwork) -> tuple[Memory, Norm, Rule]:
    """Memory of nothing heard."""
    return net.memory(net.initial_state(1)), Norm(net.ttt_norm_weight[:, None], net.ttt_norm_bias[:, None]), net.rule


def steps(net: MiniBatchNetwork, T: int) -> Tensor:
    """Step sizes at initialisation: the gate's sigmoid is one half."""
    return torch.full((1, HEADS, T), 0.5 * net.config.rate_scale)


def recall(preset: str, base_lr: float, pairs: int = 64, passes: int = 1) -> float:
    """Q1: loss on key-value pairs after hearing them, 1 = nothing learned. Targets are independent of the keys."""
    net = network(preset, base_lr)
    k, target = keys(net, 1, HEADS, pairs), torch.randn(1, HEADS, pairs, net.config.head_dim)
    memory, norm, rule = start(net)
    for _ in range(passes):
        _, memory = run_fresh(Frames(k, k, target, steps(net, pairs)), memory, norm, rule)
    used = [w for w in memory.weights if w is not None]
    before = [w for w in start(net)[0].weights if w is not None]
    error = (predict(used, k, *norm) - target).square().mean()
    return float(error / (predict(before, k, *norm) - target).square().mean())


def left(inner: str, pairs: int, K: int = 16, f: int = 128, silent: int = 0) -> float:
    """Loss on key-value pairs after hearing them once in the default recipe, 1 = nothing learned; and after `silent`
    further frames that all nearly look alike.
    """
    before, after, wanted = heard_once(inner, pairs, K, f, silent)
    return float((after - wanted).square().mean() / (before - wanted).square().mean())


def heard_once(
    inner: str, pairs: int, K: int = 16, f: int = 128, silent: int = 0, seed: int = 0
) -> tuple[Tensor, Tensor, Tensor]:
    """What is made of the keys of so many pairs before and after hearing these once (and `silent` frames that all
    nearly look alike), and what should be: [1, HEADS, pairs, f] each.
    """
    torch.manual_seed(seed)
    k, target = torch.randn(1, HEADS, pairs, f), torch.randn(1, HEADS, pairs, f)
    quiet = torch.randn(1, HEADS, 1, f) + 0.1 * torch.randn(1, HEADS, silent, f)
    heard = torch.cat([k, quiet], dim=2)
    wanted = torch.cat([target, torch.randn(1, HEADS, 1, f).expand_as(quiet)], dim=2)
    config = TTTConfig(HEADS * f, HEADS, mini_batch_size=16 if inner == "delta" else K, inner=inner)  # type: ignore[arg-type]
    net = make_inner(config).requires_grad_(False)
    net.reset_parameters()
    # Queries are the keys; the inputs of the gates are zero, so every step has its initial size.
    x, valid = torch.zeros(1, heard.shape[2], HEADS * f), torch.ones(1, heard.shape[2], dtype=torch.bool)
    # The recipe makes its target of v - k, standardised.
    _, state = net(x, heard, heard, wanted + rms_norm(heard), valid)
    biases = [] if inner == "delta" else [net.b1]
    before, after = [net.W1, *biases], [state.W1[0], *biases]
    if inner == "mlp":
        before, after = [*before, net.W2, net.b2], [*after, state.W2[0], net.b2]
    if inner == "delta":
        zero = torch.zeros(HEADS, 1, f)
        before, after = [*before, zero], [*after, zero]
    keys = rms_norm(k)
    return predict(before, keys, *net.norm), predict(after, keys, *net.norm), standardise(target)


def ripple(preset: str, base_lr: float, T: int = 4096) -> float:
    """Q2: how far a frame's own mini-batch moves its output, strongest position over weakest."""
    net = network(preset, base_lr)
    K = net.config.mini_batch_size
    memory, norm, rule = start(net)
    k = keys(net, 1, HEADS, T)
    target = torch.randn(1, HEADS, T, net.config.head_dim)
    moved = []
    for begin in range(0, T, K):
        frames = Frames(
            k[:, :, begin : begin + K], k[:, :, begin : begin + K], target[:, :, begin : begin + K], steps(net, K)
        )
        still = predict([w for w in memory.weights if w is not None], frames.k, *norm)
        out, memory = run_fresh(frames, memory, norm, rule)
        moved.append((out - frames.q - still).square().mean((0, 1, 3)))
    by_position = torch.stack(moved).mean(0).sqrt()
    return float(by_position.max() / by_position.min())


def stability(factor: float, kind: str, T: int = 30_000) -> dict[str, float]:
    """Q3: largest output and growth of the weights over T frames, with `factor` times the default step size."""
    net = network("speech", factor, f=64)
    k, target = keys(net, 1, HEADS, T), torch.randn(1, HEADS, T, net.config.head_dim)
    if kind == "constant":
        k, target = k[:, :, :1].expand_as(k).contiguous(), target[:, :, :1].expand_as(target).contiguous()
    elif kind == "speech-like":  # stretches of activity and of near silence, slowly changing inside
        active = (torch.arange(T) // 40 % 3 > 0).float()[:, None]
        slow = torch.randn(1, HEADS, T // 20 + 1, k.shape[-1]).repeat_interleave(20, dim=2)[:, :, :T]
        k = k * 0.3 + slow
        k = math.sqrt(k.shape[-1]) * k / k.norm(dim=-1, keepdim=True)
        quiet = k[:, :, :1]
        k, target = active * k + (1 - active) * quiet, active * target
    memory, norm, rule = start(net)
    norms = [w.norm() for w in (memory.weights.W1, memory.weights.W2) if w is not None]
    out, after = run_fresh(Frames(k, k, target, steps(net, T)), memory, norm, rule)
    grown = [w.norm() for w in (after.weights.W1, after.weights.W2) if w is not None]
    return {
        "max_abs_out": float(out.abs().max()),
        "growth": max(float(g / n) for g, n in zip(grown, norms, strict=True)),
        "finite": float(out.isfinite().all()),
    }


def gradient_reach(near: int = 64, far: int = 2000) -> float:
    """Q4: gradient of an output at a target `far` frames back, over the one `near` frames back."""
    net = network("speech", 1.0, f=64)
    T = far + 16
    k, target = keys(net, 1, HEADS, T), torch.randn(1, HEADS, T, net.config.head_dim)
    target.requires_grad_()
    memory, norm, rule = start(net)
    out, _ = run_fresh(Frames(k, k, target, steps(net, T)), memory, norm, rule)
    (gradient,) = torch.autograd.grad(out[:, :, -8:].square().sum(), target)
    size = gradient.square().sum((0, 1, 3)).sqrt()

    def around(distance: int) -> float:
        middle = T - 1 - distance
        return float(size[max(middle - 8, 0) : middle + 8].mean())

    return around(far) / around(near)


def measure(T: int = 30_000) -> dict[str, Any]:
    """Everything, at the sizes that the bars are for."""
    growth = {
        f"{factor:g}x, {kind}": stability(factor, kind, T)
        for factor in (1.0, 3.0, 10.0)
        for kind in ("independent", "constant", "speech-like")
    }
    return {
        "recall": {
            "speech, base_lr 1": recall("speech", 1.0),
            "speech, base_lr 1, 8 passes": recall("speech", 1.0, passes=8),
            "video_causal, base_lr 0.1": recall("video_causal", 0.1),
            "video_causal, base_lr 1": recall("video_causal", 1.0),
        },
        "silence": {
            f"{name}, {when}": left(inner, 64, K=K, silent=silent)
            for name, inner, K in (
                ("mlp, K = 1", "mlp", 1),
                ("mlp, K = 16", "mlp", 16),
                ("mlp, K = 64", "mlp", 64),
                ("linear, K = 16", "linear", 16),
                ("delta", "delta", 16),
            )
            for when, silent in (("64 pairs", 0), ("and 64 frames of silence", 64))
        },
        "capacity": {
            f"{name}, {pairs} pairs": left(inner, pairs, f=f)
            for name, inner, f in (
                ("mlp", "mlp", 128),
                ("linear", "linear", 128),
                ("delta", "delta", 128),
                ("delta, state as large as the mlp's", "delta", 362),
            )
            for pairs in (16, 32, 64, 128, 256)
        },
        "ripple": {"speech": ripple("speech", 1.0), "paper_lm (1/i)": ripple("paper_lm", 1.0)},
        "stability": growth,
        "gradient_reach": gradient_reach(),
    }
