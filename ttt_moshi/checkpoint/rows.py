"""Which rows of a tensor this rank holds, and which rank writes them.

Plain tensors are equal on all ranks; rank 0 writes them. A DTensor may be replicated or sharded on dimension 0 over any
dimension of its mesh, unevenly and down to no rows at all.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, Replicate, Shard

from ttt_moshi.checkpoint.errors import CheckpointError
from ttt_moshi.checkpoint.tensorfile import local_shape, row_count


@dataclass(frozen=True)
class Rows:
    """Rows `start` to `stop` of a tensor of global `shape`. A scalar counts as one row."""

    local: Tensor
    shape: tuple[int, ...]
    start: int
    stop: int
    is_writer: bool  # whether this rank is the one that writes them


def rows_of(name: str, tensor: Tensor, rank: int) -> Rows:
    """The part of `tensor` on this rank. Raises CheckpointError for placements that rows cannot describe."""
    shape = tuple(tensor.shape)
    if not isinstance(tensor, DTensor):
        return Rows(tensor.detach(), shape, 0, row_count(shape), rank == 0)
    start, stop, is_writer = 0, row_count(shape), True
    mesh = tensor.device_mesh
    coordinate = mesh.get_coordinate()
    if coordinate is None:
        raise CheckpointError(f"tensor {name!r} lives on ranks that do not include rank {rank}")
    for dimension, placement in enumerate(tensor.placements):
        if isinstance(placement, Replicate):
            is_writer = is_writer and coordinate[dimension] == 0
        elif type(placement) is Shard and placement.dim == 0:
            chunk = -(-(stop - start) // mesh.size(dimension))  # as torch.chunk cuts: the last ranks may get nothing
            begin = min(start + coordinate[dimension] * chunk, stop)
            start, stop = begin, min(begin + chunk, stop)
        else:
            raise CheckpointError(f"tensor {name!r} is placed as {placement}; only rows can be sharded")
    local = tensor.to_local().detach()
    if tuple(local.shape) != local_shape(shape, start, stop):
        raise CheckpointError(f"tensor {name!r}: rank {rank} holds {tuple(local.shape)}, not rows {start} to {stop}")
    return Rows(local, shape, start, stop, is_writer)


def byte_view(tensor: Tensor) -> Tensor:
    """The bytes of a contiguous tensor as a flat one of uint8, without a copy."""
    return tensor.reshape(-1).view(torch.uint8) if tensor.numel() else torch.empty(0, dtype=torch.uint8)


def as_bytes(tensor: Tensor) -> memoryview:
    """The bytes of a contiguous CPU tensor, without a copy."""
    return memoryview(byte_view(tensor).numpy().data).cast("B") if tensor.numel() else memoryview(b"")
