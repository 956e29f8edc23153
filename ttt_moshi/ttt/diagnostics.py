"""What happens inside TTT layers while a model runs, as data. Nothing of it costs anything unless asked for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, fields
from itertools import count
from typing import Any

import torch
from torch import Tensor, nn

from ttt_moshi.ttt.block import Frames, Norm, Rule
from ttt_moshi.ttt.delta import DeltaFrames, delta_scan
from ttt_moshi.ttt.delta_network import DeltaNetwork
from ttt_moshi.ttt.functional import gelu, gelu_backward, inner_gradient, layer_norm
from ttt_moshi.ttt.inner import InnerNetwork
from ttt_moshi.ttt.layer import TTTLayer
from ttt_moshi.ttt.mini_batch import MiniBatchNetwork
from ttt_moshi.ttt.sequence import run_from
from ttt_moshi.ttt.state import Weights


@dataclass
class Diagnostics:
    """One call of one layer; means over all streams and frames of the call, float32, on the layer's device.

    Losses are mean squares of `LN(g_W(k)) - target`, of the delta rule of `k W - target` (its stretches are of 16
    frames). [H] each, except `gate_contribution`.
    """

    loss_initial: Tensor
    """at the initial weights"""
    loss_before: Tensor
    """at the fast weights before each stretch of K frames was written"""
    loss_after: Tensor
    """at the fast weights after it was written"""
    drift: Tensor
    """|W - W0| / |W0| at the end"""
    write_strength: Tensor
    """share of a frame's residual that its own write removes, to first order at W0: lam |dl/dW|^2 / 2l"""
    gate_contribution: Tensor
    """|y - x| / |x| of the whole layer, []"""

    def summary(self) -> dict[str, float]:
        """Means over the heads, as numbers (this waits for the device)."""
        return {field.name: float(getattr(self, field.name).mean()) for field in fields(self)}


@contextmanager
def watch(layers: Mapping[str, TTTLayer]) -> Iterator[dict[str, list[Diagnostics]]]:
    """Record every call of the layers made inside the `with` block, by the layers' names.

    A recorded call does its inner forward pass about twice more. Calls inside activation recompute are recorded again.
    """
    found: dict[str, list[Diagnostics]] = {name: [] for name in layers}
    with ExitStack() as stack:
        for name, layer in layers.items():
            pending: list[dict[str, Tensor]] = []
            # First of the hooks after forward: the parameters of a sharded layer are still whole then.
            inner_hook = layer.inner.register_forward_hook(_inner_hook(pending), prepend=True)
            stack.callback(inner_hook.remove)
            layer_hook = layer.register_forward_hook(_layer_hook(pending, found[name]), prepend=True, with_kwargs=True)
            stack.callback(layer_hook.remove)
        yield found


class StreamLosses:
    """The inner loss of every stream while it goes on, summed up where the model runs until somebody asks.

    Of layers that stream one frame at a time (`TTTLayer.stream`): made before their first frame, so that CUDA graphs
    record the sums too. Costs two more inner forward passes for every frame that is looked at.

    Args:
        layers: by any index.
        streams: how many there are.
        every: looks at every so many frames only; 1 where CUDA graphs are recorded.
    """

    def __init__(self, layers: Mapping[int, TTTLayer], streams: int, every: int = 1) -> None:
        self.layers = tuple(layers)
        self._inners = [layer.inner for layer in layers.values()]
        # float32 [layers, streams, 3]: losses at the initial weights, at those that were found, and frames.
        self._sums = torch.zeros(len(layers), streams, 3, device=_device(layers))
        self._every = every
        self._hooks: list[Any] = []
        self.listen()

    def listen(self) -> None:
        """Adds up from now on."""
        pairs = zip(self._inners, self._sums, strict=True)
        self._hooks = [inner.register_forward_pre_hook(_adder(into, self._every)) for inner, into in pairs]

    def pause(self) -> None:
        """Takes no notice of the layers until `listen`."""
        for hook in self._hooks:
            hook.remove()
        self._hooks = []

    def take(self, stream: int) -> Tensor:
        """Mean losses since the last call, float32 [layers, 2]: at the initial weights, and at those that the frames
        found. NaN where nothing was heard. Nothing waits for the device."""
        sums = self._sums[:, stream].clone()
        self._sums[:, stream] = 0.0
        return sums[:, :2] / sums[:, 2:]


def _device(layers: Mapping[int, TTTLayer]) -> torch.device:
    return next((layer.inner.W1.device for layer in layers.values()), torch.device("cpu"))


def _adder(into: Tensor, every: int) -> Any:
    """Adds the losses of a streaming frame to `into` [B, 3]; the arguments are those of `InnerNetwork.forward`."""

    calls = count()

    @torch.no_grad()
    def add(module: nn.Module, arguments: tuple[Any, ...]) -> None:
        x, q, k, v, valid, state, exec_mask, _, in_place, _ = arguments
        if not in_place or x.shape[1] > 1:  # given frames, which are read at once
            return
        if next(calls) % every:
            return
        if isinstance(module, DeltaNetwork):
            frames = module.frames(x, q, k, v, state.k)
            losses = [(frames.k @ W - frames.v).square() for W in (module.W1, state.W1)]
        else:
            assert isinstance(module, MiniBatchNetwork)
            parts, norm = module.frames(x, q, k, v, valid, state.phase)
            initial = Weights(module.W1, module.b1, module.W2, module.b2)
            losses = [_loss(weights, parts, norm) for weights in (initial, module.memory(state).weights)]
        new = torch.stack([*(loss.flatten(1).mean(1) for loss in losses), torch.ones_like(into[:, 2])], dim=1)
        into.add_(new if exec_mask is None else torch.where(exec_mask[:, None], new, 0.0))

    return add


def _inner_hook(pending: list[dict[str, Tensor]]) -> Any:
    def hook(module: nn.Module, arguments: tuple[Any, ...], output: Any) -> None:
        if not pending:  # the second pass over a prefix is not recorded
            pending.append(_inside(module, *arguments))  # type: ignore[arg-type]

    return hook


def _layer_hook(pending: list[dict[str, Tensor]], into: list[Diagnostics]) -> Any:
    def hook(module: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any], output: tuple[Tensor, Any]) -> None:
        x = (arguments[0] if arguments else named["x"]).detach().float()
        y = output[0].detach().float()
        into.append(Diagnostics(**pending.pop(), gate_contribution=(y - x).norm() / x.norm()))

    return hook


@torch.no_grad()
def _inside(
    inner: InnerNetwork,
    x: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    valid: Tensor,
    state: Any = None,
    exec_mask: Tensor | None = None,
    reset: Tensor | None = None,
    in_place: bool = False,
    relative: bool = False,
) -> dict[str, Tensor]:
    """The arguments are those of `InnerNetwork.forward`."""
    if in_place:
        raise ValueError("TTT diagnostics need calls of forward: after stream() the state that it began from is gone")
    state = inner.begin(x.shape[0], state, reset, relative)
    if isinstance(inner, DeltaNetwork):
        return _inside_delta(inner, inner.frames(x, q, k, v, state.k), state.W1)
    assert isinstance(inner, MiniBatchNetwork)
    frames, norm = inner.frames(x, q, k, v, valid, state.phase)
    memory, initial = inner.memory(state), inner.memory(inner.initial_state(1)).weights
    before, after = [], []
    for start in range(0, x.shape[1], inner.rule.mini_batch_size):
        part = frames.between(start, start + inner.rule.mini_batch_size)
        before.append(_loss(memory.weights, part, norm))
        _, memory = run_from(part, memory, norm, inner.rule)
        after.append(_loss(memory.weights, part, norm))
    matrices = [(memory.weights.W1, initial.W1)]
    if memory.weights.W2 is not None and initial.W2 is not None:
        matrices.append((memory.weights.W2, initial.W2))
    moved = torch.stack([(now - then).square().sum((-2, -1)) for now, then in matrices]).sum(0)
    size = torch.stack([then.square().sum((-2, -1)) for _, then in matrices]).sum(0)
    return {
        "loss_initial": _loss(initial, frames, norm).mean((0, 2)),
        "loss_before": torch.cat(before, dim=2).mean((0, 2)),
        "loss_after": torch.cat(after, dim=2).mean((0, 2)),
        "drift": (moved / size).sqrt().mean(0),
        "write_strength": _write_strength(initial, frames, norm, inner.rule).mean((0, 2)),
    }


def _inside_delta(inner: DeltaNetwork, frames: DeltaFrames, W: Tensor) -> dict[str, Tensor]:
    def loss(W: Tensor, part: DeltaFrames) -> Tensor:
        return (part.k @ W - part.v).square().mean(-1)

    start, stretch = inner.W1, inner.config.mini_batch_size
    initial = loss(start, frames).mean((0, 2))
    before, after = [], []
    for first in range(0, frames.q.shape[2], stretch):
        span = slice(first, first + stretch)
        part = DeltaFrames(*(None if t is None else t[:, :, span] for t in frames))  # type: ignore[arg-type]
        before.append(loss(W, part))
        _, W = delta_scan(part, W, start)
        after.append(loss(W, part))
    return {
        "loss_initial": initial,
        "loss_before": torch.cat(before, dim=2).mean((0, 2)),
        "loss_after": torch.cat(after, dim=2).mean((0, 2)),
        "drift": ((W - start).square().sum((-2, -1)) / start.square().sum((-2, -1))).sqrt().mean(0),
        "write_strength": frames.beta.mean((0, 2)),
    }


def _loss(weights: Weights, frames: Frames, norm: Norm) -> Tensor:
    """[B, H, T]."""
    z = frames.k @ weights.W1 + weights.b1
    if weights.W2 is not None and weights.b2 is not None:
        z = gelu(z) @ weights.W2 + weights.b2
    return (layer_norm(z, *norm) - frames.target).square().mean(-1)


def _write_strength(weights: Weights, frames: Frames, norm: Norm, rule: Rule) -> Tensor:
    """[B, H, T]. The gradient of a weight matrix by one frame is an outer product: its norm is the product of two."""
    bias = float(rule.update_biases)

    def squared(x: Tensor) -> Tensor:
        return x.square().sum(-1)

    z1 = frames.k @ weights.W1 + weights.b1
    if weights.W2 is None or weights.b2 is None:
        slope = (squared(frames.k) + bias) * squared(inner_gradient(z1, frames.target, *norm))
    else:
        a1 = gelu(z1)
        g2 = inner_gradient(a1 @ weights.W2 + weights.b2, frames.target, *norm)
        g1 = gelu_backward(g2 @ weights.W2.mT, z1)
        slope = (squared(frames.k) + bias) * squared(g1) + (squared(a1) + bias) * squared(g2)
    twice_loss = _loss(weights, frames, norm) * frames.k.shape[-1]
    return rule.last_tau * frames.lam * slope / twice_loss
