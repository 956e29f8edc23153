"""One code path for `python train.py` and `torchrun`: a process group always exists, of one rank or of many."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh


@dataclass(frozen=True)
class World:
    """This process's place among the ranks.

    Args:
        rank: index of this process, 0 to size - 1.
        size: number of processes.
        device: where this process computes.
        mesh: one-dimensional mesh over all ranks, for sharding.
    """

    rank: int
    size: int
    device: torch.device
    mesh: DeviceMesh

    @property
    def is_main(self) -> bool:
        """Whether this is rank 0, which writes logs and commits checkpoints."""
        return self.rank == 0

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        """The element-wise sum over all ranks."""
        if self.size > 1:
            dist.all_reduce(values)
        return values

    def barrier(self) -> None:
        """Waits for every rank."""
        if self.size > 1:
            dist.barrier()


@contextmanager
def join_world() -> Iterator[World]:
    """Enters the process group that torchrun describes, or a group of one when there is no torchrun."""
    cuda = torch.cuda.is_available()
    backend = "nccl" if cuda else "gloo"
    if "LOCAL_RANK" in os.environ:
        if cuda:
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        dist.init_process_group(backend)
    else:
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
    device = torch.device("cuda", torch.cuda.current_device()) if cuda else torch.device("cpu")
    try:
        size = dist.get_world_size()
        yield World(dist.get_rank(), size, device, init_device_mesh(device.type, (size,)))
    finally:
        dist.destroy_process_group()
