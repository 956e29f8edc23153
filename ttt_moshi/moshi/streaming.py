"""What a model carries from one clip of a recording to the next, so that consecutive clips equal one long forward.

The official streaming state is made for inference: its ring buffer overwrites keys in place, so it can neither be
differentiated nor hold the keys that the first frames of a clip still see. What is carried here is a value: every clip
takes one and returns a new one. It holds the last `context - 1` keys and values of every attention, the memory of every
TTT layer, and the last frames of codes, which the delays between codebooks still need. Its shapes never change, so
cost and memory do not depend on how far into a recording a clip is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch
from moshi.modules.transformer import KVCacheResult
from torch import Tensor
from torch.nn import functional

from ttt_moshi.moshi.errors import MoshiError
from ttt_moshi.ttt import TTTConfig, TTTState
from ttt_moshi.ttt.networks import make_inner


@dataclass(frozen=True)
class LayerCarry:
    """What one temporal layer carries.

    Args:
        keys, values: [B, H, context - 1, head_dim] of the frames before the clip, rotated, newest last.
        memory: state of the TTT layer relative to its trained initial weights, None without one. Being relative, an
            empty memory is all zeros, and the initial weights keep receiving a gradient when it is detached.
    """

    keys: Tensor
    values: Tensor
    memory: TTTState | None

    def map(self, function: Callable[[Tensor], Tensor]) -> LayerCarry:
        """A new carry with `function` applied to every tensor."""
        memory = None if self.memory is None else self.memory.map(function)
        return LayerCarry(function(self.keys), function(self.values), memory)


@dataclass(frozen=True)
class StreamState:
    """Where each row of a batch is in its recording, and what the model carries for it.

    Args:
        frames: int64 [B], frames of the row's recording that were read; 0 starts one, whatever the rest holds.
        codes: int64 [B, K, max_delay + 1], the last of those frames.
        layers: one carry per temporal layer.
    """

    frames: Tensor
    codes: Tensor
    layers: tuple[LayerCarry, ...]

    @property
    def batch_size(self) -> int:
        """Number of rows."""
        return self.frames.shape[0]

    def map(self, function: Callable[[Tensor], Tensor]) -> StreamState:
        """A new state with `function` applied to every tensor."""
        layers = tuple(layer.map(function) for layer in self.layers)
        return StreamState(function(self.frames), function(self.codes), layers)

    def detach(self) -> StreamState:
        """The same values, cut from the graph: gradients of later clips stop here."""
        return self.map(torch.Tensor.detach)

    def to(self, device: torch.device | str) -> StreamState:
        """The state on `device`."""
        return self.map(lambda tensor: tensor.to(device))

    def reset(self, mask: Tensor) -> StreamState:
        """The state with the rows where `mask` (bool [B]) is true at the start of a new recording."""
        keep = ~mask.to(self.frames.device)

        def zero(tensor: Tensor) -> Tensor:
            return torch.where(keep.view(-1, *[1] * (tensor.dim() - 1)), tensor, 0)

        return self.map(zero)

    def after(self, codes: Tensor) -> StreamState:
        """The state moved on by `codes` (int64 [B, K, T]) without reading them: what layers carry stays as it is."""
        T = codes.shape[2]
        return replace(self, frames=self.frames + T, codes=torch.cat([self.codes, codes], dim=2)[:, :, T:].clone())

    def seen_through(self, context: int) -> StreamState:
        """The state for an attention window of `context` frames: keys that are older are left out, and where a
        recording is shorter there are none, as at its start."""

        def cut(tensor: Tensor) -> Tensor:
            missing = context - 1 - tensor.shape[2]
            # Where it is negative, what is too much is cut. Padding with nothing would copy.
            return functional.pad(tensor, (0, 0, missing, 0)) if missing else tensor

        layers = tuple(replace(layer, keys=cut(layer.keys), values=cut(layer.values)) for layer in self.layers)
        return replace(self, layers=layers)

    def with_memory_of(self, donor: StreamState) -> StreamState:
        """This state with the TTT memories of another one: what each row remembers is then somebody else's."""
        pairs = zip(self.layers, donor.layers, strict=True)
        return replace(self, layers=tuple(replace(mine, memory=theirs.memory) for mine, theirs in pairs))

    def state_dict(self) -> dict[str, Tensor]:
        """Every tensor by name, cut from the graph: `frames`, `codes`, `layers.3.keys`, `layers.3.memory.W1`, ...

        They are the live tensors, not copies: filling them in place restores the state.
        """
        tensors = {"frames": self.frames, "codes": self.codes}
        for index, layer in enumerate(self.layers):
            tensors[f"layers.{index}.keys"] = layer.keys.detach()
            tensors[f"layers.{index}.values"] = layer.values.detach()
            if layer.memory is not None:
                for name, tensor in layer.memory.state_dict().items():
                    tensors[f"layers.{index}.memory.{name}"] = tensor
        return tensors

    @classmethod
    def from_state_dict(cls, tensors: Mapping[str, Tensor]) -> StreamState:
        """Inverse of `state_dict`.

        Raises:
            MoshiError: a tensor is missing or unknown; the message names it.
        """
        remaining = dict(tensors)
        layers: list[LayerCarry] = []
        try:
            frames, codes = remaining.pop("frames"), remaining.pop("codes")
            while any(name.startswith(f"layers.{len(layers)}.") for name in remaining):
                prefix = f"layers.{len(layers)}."
                keys, values = remaining.pop(prefix + "keys"), remaining.pop(prefix + "values")
                names = [name for name in remaining if name.startswith(prefix + "memory.")]
                parts = {name.removeprefix(prefix + "memory."): remaining.pop(name) for name in names}
                layers.append(LayerCarry(keys, values, TTTState.from_state_dict(parts) if parts else None))
        except KeyError as error:
            raise MoshiError(f"not a stream state: tensor {error} is missing") from error
        if remaining:
            raise MoshiError(f"not a stream state: unknown tensors {sorted(remaining)}")
        return cls(frames, codes, tuple(layers))


def empty_memory(config: TTTConfig, batch_size: int, device: torch.device | str) -> TTTState:
    """The memory of streams that have heard nothing, relative to the initial weights: all zeros."""
    shapes = make_inner(config, device="meta").initial_state(batch_size)
    return shapes.map(lambda tensor: torch.zeros(tensor.shape, dtype=tensor.dtype, device=device))


class WindowCache:
    """Keys and values of one attention during one clip, speaking the protocol of the official ring buffer.

    Unlike that one it never writes in place and keeps every key that a frame of the clip can see.
    """

    def __init__(self, keys: Tensor, values: Tensor, offsets: Tensor):
        self.keys = keys  # [B, H, context - 1, head_dim], then with the clip's appended
        self.values = values
        self.offsets = offsets
        self._length = keys.shape[2]

    def complete(self, k: Tensor, v: Tensor, exec_mask: Tensor) -> KVCacheResult:
        """Adds the clip's keys and values [B, H, T, D] and returns all that its frames may look at.

        Positions before the row's recording come out negative, which the attention's mask excludes.
        """
        self.keys = torch.cat([self.keys.to(k), k], dim=2)
        self.values = torch.cat([self.values.to(v), v], dim=2)
        columns = torch.arange(self.keys.shape[2], device=k.device) - self._length
        return KVCacheResult(self.keys, self.values, columns + self.offsets[:, None])

    def tail(self) -> tuple[Tensor, Tensor]:
        """The newest keys and values, for the next clip."""
        start = self.keys.shape[2] - self._length
        # Copies, so that the next clip does not keep this one's whole window alive.
        return self.keys[:, :, start:].clone(), self.values[:, :, start:].clone()


class ChunkPass:
    """One pass over one clip: what each layer finds, and where it puts what it carries on.

    A plain class and not a dataclass: FSDP rebuilds dataclasses among a module's arguments, and results would be put
    into a copy.
    """

    def __init__(self, stream: StreamState):
        self.offsets = stream.frames
        self._incoming = stream.layers
        self._outgoing: list[LayerCarry | None] = [None] * len(stream.layers)

    def window(self, index: int) -> WindowCache:
        """The keys and values that the attention of layer `index` sees before the clip."""
        carry = self._incoming[index]
        return WindowCache(carry.keys, carry.values, self.offsets)

    def memory(self, index: int) -> TTTState | None:
        """The TTT memory that layer `index` carried out of the clip before, relative to its initial weights."""
        return self._incoming[index].memory

    def deliver(self, index: int, carry: LayerCarry) -> None:
        """Keeps what layer `index` carries out of this clip.

        Only the first delivery counts: activation checkpointing runs a layer again in the backward pass, and nobody
        waits for what it computes then.
        """
        if self._outgoing[index] is None:
            self._outgoing[index] = carry

    def outgoing(self) -> tuple[LayerCarry, ...]:
        """What all layers carry out of this clip."""
        return tuple(carry for carry in self._outgoing if carry is not None)


def delayed(
    codes: Tensor, history: Tensor, frames: Tensor, delays: list[int], initial: Tensor
) -> tuple[Tensor, Tensor]:
    """The model's input and target codes at the positions of one clip.

    Position i (counted from the clip's first frame n) predicts frame n + i - delay of each stream and has just read
    the frame before that. What would lie before the recording is the initial token.

    Args:
        codes: int64 [B, K, T], the clip.
        history: int64 [B, K, max_delay + 1], the frames before it.
        frames: int64 [B], index n of the clip's first frame.
        initial: int64 [1, K, 1], the initial tokens.

    Returns:
        inputs and targets, int64 [B, K, T] each.
    """
    T = codes.shape[-1]
    known = torch.cat([history, codes], dim=2)
    position = frames[:, None] + torch.arange(T, device=codes.device)  # [B, T]
    both = []
    for shift in (1, 0):
        streams = []
        for k, delay in enumerate(delays):
            start = history.shape[2] - delay - shift
            streams.append(torch.where(position >= delay + shift, known[:, k, start : start + T], initial[:, k]))
        both.append(torch.stack(streams, dim=1))
    return both[0], both[1]
