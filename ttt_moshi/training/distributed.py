"""One code path for `python train.py` and `torchrun`: a process group always exists, of one rank or of many."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from ttt_moshi.errors import UserError

T = TypeVar("T")


@dataclass(frozen=True)
class World:
    """This process's place among the ranks.

    Args:
        rank: index of this process, 0 to size - 1.
        size: number of processes.
        device: where this process computes.
        mesh: one-dimensional mesh over all ranks, for sharding.
        patience: seconds that this process waits for another before it gives up.
    """

    rank: int
    size: int
    device: torch.device
    mesh: DeviceMesh
    patience: float

    @property
    def is_main(self) -> bool:
        """Whether this is rank 0, which writes logs and commits checkpoints."""
        return self.rank == 0

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        """The element-wise sum over all ranks."""
        if self.size > 1:
            dist.all_reduce(values)
        return values

    def any(self, flag: bool) -> bool:
        """Whether some rank says so. All ranks call it."""
        return (self.size == 1 and flag) or (self.size > 1 and bool(self.sum(self._flag(flag)) > 0))

    def barrier(self) -> None:
        """Waits for every rank."""
        if self.size > 1:
            dist.barrier()

    def gather(self, value: T) -> list[T]:
        """Everybody's value, in the order of ranks. All ranks call it."""
        if self.size == 1:
            return [value]
        values: list[T] = [value] * self.size
        dist.all_gather_object(values, value)
        return values

    def together(self, work: Callable[[], T]) -> T:
        """What `work()` returns here; what a person can mend on one rank is raised on all, so that none waits for it.

        All ranks call it.
        """
        result, failure = None, None
        try:
            result = work()
        except (UserError, OSError) as error:
            failure = error
        if self.any(failure is not None):
            reasons = self.gather(None if failure is None else str(failure))
            if failure is not None:
                raise failure
            rank, reason = next((rank, reason) for rank, reason in enumerate(reasons) if reason is not None)
            raise UserError(f"process {rank}: {reason}")
        return result  # type: ignore[return-value]

    def from_main(self, work: Callable[[], T]) -> T:
        """What `work()` returns on rank 0, which alone does it, on all ranks; its error too. All ranks call it."""
        return self.gather(self.together(lambda: work() if self.is_main else None))[0]  # type: ignore[return-value]

    def _flag(self, value: bool) -> torch.Tensor:
        return torch.tensor([float(value)], device=self.device)


class Turns:
    """Ranks that work for very different times, such as on recordings to encode, and then meet.

    A collective would give up after a fixed time, however busy the others are. Here a rank waits for as long as there
    is news of the others' work, and no longer than `world.patience` without any.
    """

    def __init__(self, world: World, name: str) -> None:
        self._world, self._name = world, name
        self._store = dist.PrefixStore(name, dist.distributed_c10d._get_default_store()) if world.size > 1 else None
        self._reports = 0

    def report(self) -> None:
        """Says that this rank is getting on."""
        self._reports += 1
        self._say(f"at work {self._reports}")

    def finish(self, failure: UserError | OSError | None) -> None:
        """Waits until all have finished. Raises `failure`, or another rank's as UserError."""
        self._say("done" if failure is None else f"failed {failure}")
        if failure is not None:
            raise failure
        if self._store is None:
            return
        heard: dict[int, str] = {}
        changed = time.monotonic()
        while any(state != "done" for state in heard.values()) or len(heard) < self._world.size:
            for rank in range(self._world.size):
                state = self._store.get(str(rank)).decode() if self._store.check([str(rank)]) else "starting"
                if state.startswith("failed "):
                    raise UserError(f"process {rank}: {state.removeprefix('failed ')}")
                if heard.get(rank) != state:
                    heard[rank], changed = state, time.monotonic()
            if time.monotonic() - changed > self._world.patience:
                late = [str(rank) for rank, state in heard.items() if state != "done"]
                raise UserError(
                    f"no news of {self._name} from process {', '.join(late)} for {self._world.patience / 60:g} minutes "
                    "(`patience_minutes`); it may be dead"
                )
            time.sleep(0.05)

    def _say(self, state: str) -> None:
        if self._store is not None:
            self._store.set(str(self._world.rank), state)


@contextmanager
def join_world(patience: float = 1800.0) -> Iterator[World]:
    """Enters the process group that torchrun describes, or a group of one when there is no torchrun.

    Args:
        patience: seconds after which a collective operation that some rank does not join fails.
    """
    cuda = torch.cuda.is_available()
    backend = "nccl" if cuda else "gloo"
    timeout = timedelta(seconds=patience)
    if "LOCAL_RANK" in os.environ:
        local = int(os.environ["LOCAL_RANK"])
        if cuda and local >= torch.cuda.device_count():
            raise UserError(
                f"process {local} of this machine has no GPU: there are {torch.cuda.device_count()}; start as many "
                "processes as there are GPUs"
            )
        if cuda:
            torch.cuda.set_device(local)
    how: dict[str, Any] = {}
    if "LOCAL_RANK" not in os.environ:
        how = {"store": dist.HashStore(), "rank": 0, "world_size": 1}
    device = torch.device("cuda", torch.cuda.current_device()) if cuda else torch.device("cpu")
    with _silent():
        dist.init_process_group(backend, timeout=timeout, **how)
    try:
        size = dist.get_world_size()
        with _silent():
            mesh = init_device_mesh(device.type, (size,))
        yield World(dist.get_rank(), size, device, mesh, patience)
    finally:
        dist.destroy_process_group()


@contextmanager
def _silent() -> Iterator[None]:
    """Without what Gloo writes to the standard output: one line a rank and group, that nobody can switch off."""
    sys.stdout.flush()
    kept, nowhere = os.dup(1), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 1)
        yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)
        os.close(nowhere)
