"""One row of the streaming states of generator, model and codec: read, written and emptied by name.

A conversation is a row. Read out of a batch of any size it fits into a batch of any other size.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any, NamedTuple

import torch
from moshi.modules.streaming import StreamingModule
from moshi.modules.transformer import RingKVCache
from moshi.utils.compile import CUDAGraphed
from torch import Tensor, nn

from ttt_moshi.inference.errors import InferenceError

# Attributes of streaming states that are no state: made anew from the model, constant, or of the process.
_RECREATED = (CUDAGraphed, ExitStack, nn.Module, torch.device, torch.dtype, type(None), int)
_CONSTANT = ("exec_mask", "initial", "condition_sum", "condition_cross", "cfg_is_masked_until")


class Leaf(NamedTuple):
    """A tensor of the streaming state that holds something of every row."""

    name: str
    tensor: Tensor
    axis: int
    """of the rows"""
    ring: RingKVCache | None
    """the ring buffer that this is the content of; no more than what it has been given is worth keeping"""
    first: int
    """row of the ring buffer with which `tensor` begins"""


Parts = list[tuple[str, StreamingModule, slice]]
"""names, modules and the rows of them that are those of the conversations"""


def leaves(parts: Parts) -> Iterator[Leaf]:
    """Every tensor that a conversation consists of, in a fixed order.

    Args:
        parts: in streaming mode.

    Raises:
        InferenceError: a state of a kind that is unknown here, of a newer moshi.
    """
    for part, module, rows in parts:
        for place, state in module.get_streaming_state().items():
            for leaf in _inside(state, f"{part}/{place}"):
                own = leaf.tensor[rows] if leaf.axis == 0 else leaf.tensor[:, rows]
                yield leaf._replace(tensor=own, first=rows.start)


def read_row(parts: Parts, row: int) -> dict[str, Tensor]:
    """Copies of one row's tensors, on the CPU, without the axis of rows."""
    found = {}
    for leaf in leaves(parts):
        content = leaf.tensor.select(leaf.axis, row)
        if leaf.ring is not None:
            content = content[:, :, : _filled(leaf.ring, leaf.first + row)]
        found[leaf.name] = content.detach().clone(memory_format=torch.contiguous_format).cpu()
    return found


def write_row(parts: Parts, row: int, tensors: dict[str, Tensor]) -> None:
    """Inverse of `read_row`, in place: CUDA graphs replay on fixed addresses. Check with `fits` before."""
    for leaf in leaves(parts):
        content, saved = leaf.tensor.select(leaf.axis, row), tensors[leaf.name]
        if leaf.ring is not None:
            content.zero_()
            content = content[:, :, : saved.shape[2]]
        content.copy_(saved)


def fits(parts: Parts, tensors: dict[str, Tensor]) -> bool:
    """Whether `tensors` are a row of these states: the same names, shapes and types."""
    wanted = {leaf.name: leaf for leaf in leaves(parts)}
    return wanted.keys() == tensors.keys() and all(_fits(leaf, tensors[name]) for name, leaf in wanted.items())


def empty_rings(parts: Parts, row: int) -> None:
    """Zeros in one row of every ring buffer.

    A reset only moves their ends. What is left would be masked out, but nothing times NaN is NaN.
    """
    for leaf in leaves(parts):
        if leaf.ring is not None:
            leaf.tensor.select(leaf.axis, row).zero_()


def _fits(leaf: Leaf, saved: Tensor) -> bool:
    place = leaf.tensor.select(leaf.axis, 0)
    wanted, got = list(place.shape), list(saved.shape)
    if leaf.ring is not None and len(got) == len(wanted) and got[2] <= wanted[2]:
        wanted[2] = got[2]
    return got == wanted and saved.dtype == place.dtype


def _filled(ring: RingKVCache, row: int) -> int:
    return min(int(ring.end_offset[row]), ring.capacity)


def _inside(holder: Any, name: str) -> Iterator[Leaf]:
    for attribute, value in vars(holder).items():
        inner = f"{name}/{attribute}"
        if attribute in _CONSTANT or isinstance(value, _RECREATED):
            continue
        if isinstance(value, Tensor):
            ring = holder if isinstance(holder, RingKVCache) and attribute == "cache" else None
            yield Leaf(inner, value, 1 if ring is not None else 0, ring, 0)
        elif callable(value):
            continue
        elif hasattr(value, "__dict__"):
            yield from _inside(value, inner)
        else:
            raise InferenceError(f"the streaming state holds {inner} of type {type(value).__name__}, unknown here")
