"""What a TTT layer remembers between calls: fast weights at the last mini-batch boundary, and the rows since."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from typing import NamedTuple

import torch
from torch import Tensor


class Weights(NamedTuple):
    """Weights of the inner network, one set per stream and head. `W2`, `b2` are None for the linear one.

    Shapes: W1 [B, H, f, h] (linear: [B, H, f, f]), b1 [B, H, 1, h], W2 [B, H, h, f], b2 [B, H, 1, f].
    """

    W1: Tensor
    b1: Tensor
    W2: Tensor | None
    b2: Tensor | None


class Rows(NamedTuple):
    """Frames of the running mini-batch, K slots each, valid up to the stream's phase.

    Shapes: k [B, H, K, f]; a1, g1 [B, H, K, h]; g2 [B, H, K, f]; lam [B, H, K]. For the linear network `a1` and
    `g2` are None and `g1` is [B, H, K, f].
    """

    k: Tensor
    a1: Tensor | None
    g1: Tensor
    g2: Tensor | None
    lam: Tensor


class Memory(NamedTuple):
    """Everything that the scan functions carry from frame to frame."""

    weights: Weights
    """fast weights at the last mini-batch boundary (and the slow biases)"""
    rows: Rows
    """the frames since"""
    phase: Tensor
    """how many these are, int64 [B], in [0, K)"""
    start: Weights | None = None
    """what the fast weights fade to, without the axis of streams; None where nothing is forgotten"""


@dataclass
class TTTState:
    """State of a batch of streams; every tensor has the stream as its first axis, and is float32 but `phase`.

    `b1`, `b2` are None where the inner biases are slow parameters; `W2`, `a1`, `g2` are None for the linear network;
    the delta rule has nothing but `W1`, and `k` of one frame where the next one writes with it.
    """

    W1: Tensor
    b1: Tensor | None = None
    W2: Tensor | None = None
    b2: Tensor | None = None
    k: Tensor | None = None
    a1: Tensor | None = None
    g1: Tensor | None = None
    g2: Tensor | None = None
    lam: Tensor | None = None
    phase: Tensor | None = None
    """frames in the running mini-batch, int64 [B], in [0, K)"""

    @property
    def batch_size(self) -> int:
        """Number of streams."""
        return self.W1.shape[0]

    @property
    def rows(self) -> Rows:
        """The frames of the running mini-batch."""
        assert self.k is not None and self.g1 is not None and self.lam is not None
        return Rows(self.k, self.a1, self.g1, self.g2, self.lam)

    def tensors(self) -> dict[str, Tensor]:
        """Name to tensor, in a fixed order, without those that the configuration does not have."""
        found = ((f.name, getattr(self, f.name)) for f in fields(self))
        return {name: tensor for name, tensor in found if tensor is not None}

    def map(self, function: Callable[[Tensor], Tensor]) -> TTTState:
        """A new state with `function` applied to every tensor."""
        mapped = {name: function(tensor) for name, tensor in self.tensors().items()}
        return TTTState(**{f.name: mapped.get(f.name) for f in fields(self)})  # type: ignore[arg-type]

    def detach(self) -> TTTState:
        """The same tensors, cut from the graph."""
        return self.map(torch.Tensor.detach)

    def clone(self) -> TTTState:
        """Copies of the tensors, still in the graph."""
        return self.map(torch.Tensor.clone)

    def to(self, device: torch.device | str) -> TTTState:
        """The state on `device`."""
        return self.map(lambda tensor: tensor.to(device))

    def select(self, mask: Tensor, other: TTTState) -> TTTState:
        """Rows of `other` where `mask` (bool [B]) is true, rows of this state elsewhere. `other` may have one row."""
        theirs = other.tensors()
        mine = self.tensors()
        chosen = {name: torch.where(_rowwise(mask, mine[name]), theirs[name], mine[name]) for name in mine}
        return TTTState(**{f.name: chosen.get(f.name) for f in fields(self)})  # type: ignore[arg-type]

    def minus(self, initial: TTTState) -> TTTState:
        """The state with fast weights counted from those of `initial` (one row): zero before anything was written."""
        return self._combined(initial, torch.sub)

    def plus(self, initial: TTTState) -> TTTState:
        """Inverse of `minus`."""
        return self._combined(initial, torch.add)

    def _combined(self, initial: TTTState, function: Callable[[Tensor, Tensor], Tensor]) -> TTTState:
        names = [name for name in Weights._fields if getattr(self, name) is not None]
        return replace(self, **{name: function(getattr(self, name), getattr(initial, name)) for name in names})

    @torch.no_grad()
    def copy_(self, other: TTTState) -> TTTState:
        """Overwrite the tensors in place, keeping their addresses."""
        for name, tensor in self.tensors().items():
            source = getattr(other, name)
            if source is not tensor:
                tensor.copy_(source)
        return self

    @torch.no_grad()
    def reset_(self, mask: Tensor, initial: TTTState) -> TTTState:
        """Start the rows where `mask` (bool [B]) is true again from `initial`, in place, without looking at the mask.

        `initial` is `layer.init_state(...)` of one row or of the whole batch.
        """
        return self.copy_(self.select(mask.to(self.W1.device), initial))

    def state_dict(self) -> dict[str, Tensor]:
        """The tensors by name, cut from the graph."""
        return {name: tensor.detach() for name, tensor in self.tensors().items()}

    @classmethod
    def from_state_dict(cls, tensors: Mapping[str, Tensor]) -> TTTState:
        """Inverse of `state_dict`.

        Raises:
            ValueError: a tensor is missing, unknown, or not of the right type; the message names it.
        """
        names = [f.name for f in fields(cls)]
        unknown = sorted(set(tensors) - set(names))
        rows = {"g1", "lam", "phase"}
        needed = {"W1"} | (rows | {"k"} if rows & set(tensors) else set())
        missing = sorted(needed - set(tensors))
        if unknown or missing:
            raise ValueError(f"not a TTT state: unknown tensors {unknown}, missing tensors {missing}")
        for name, tensor in tensors.items():
            wanted = torch.int64 if name == "phase" else torch.float32
            if tensor.dtype != wanted:
                raise ValueError(f"TTT state tensor {name!r} must be {wanted}, got {tensor.dtype}")
        return cls(**{name: tensors.get(name) for name in names})  # type: ignore[arg-type]

    @property
    def num_bytes(self) -> int:
        """Size of all tensors together."""
        return sum(tensor.numel() * tensor.element_size() for tensor in self.tensors().values())


def _rowwise(mask: Tensor, like: Tensor) -> Tensor:
    return mask.view(-1, *[1] * (like.dim() - 1))
