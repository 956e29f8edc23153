"""Several processes share one evaluation; one process alone is the ordinary case."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist

from ttt_moshi.errors import UserError
from ttt_moshi.evaluation.errors import EvaluationError, EvaluationStopped
from ttt_moshi.moshi.device import choose_device

T = TypeVar("T")

# torchrun ends all processes when one of them ends, so nobody has to guess from the time that another is gone.
_PATIENCE = timedelta(days=1)


@dataclass(frozen=True)
class Ranks:
    """This process's place among those that share the work."""

    rank: int = 0
    size: int = 1

    @property
    def is_main(self) -> bool:
        """Whether this is the process that writes and shows results."""
        return self.rank == 0

    def share(self, items: Sequence[T]) -> list[T]:
        """The part of the items that is this process's: every item is somebody's, and nobody else's."""
        return list(items[self.rank :: self.size])

    def gather(self, value: T) -> list[T]:
        """Everybody's value, in the order of ranks. Call it on all ranks."""
        if self.size == 1:
            return [value]
        values: list[T] = [value] * self.size
        dist.all_gather_object(values, value)
        return values

    def together(self, work: Callable[[], T]) -> T:
        """What `work()` returns here. Where it fails on one rank with an error for a person, or is stopped, it fails on
        all of them, so that none waits for one that has given up. Call it on all ranks."""
        if self.size == 1:
            return work()
        failure, stopped, result = None, False, None
        try:
            result = work()
        except UserError as error:
            failure = str(error)
        except EvaluationStopped:
            stopped = True
        outcomes = self.gather((failure, stopped))
        if any(stopped for _, stopped in outcomes):
            raise EvaluationStopped
        reasons = [reason for reason, _ in outcomes if reason is not None]
        if reasons:
            raise EvaluationError(reasons[0])
        return result  # type: ignore[return-value]

    def on_main(self, work: Callable[[], T]) -> T:
        """What `work()` returns on rank 0, on all ranks: for what costs something or may come out otherwise each time.
        Where it fails, it fails on all as in `together`. Call it on all ranks."""
        found = self.together(lambda: work() if self.is_main else None)
        return self.gather(found)[0]  # type: ignore[return-value]

    def stop_if(self, asked: bool) -> None:
        """Raises `EvaluationStopped` on all ranks when one of them was asked to stop. Call it on all ranks."""
        if any(self.gather(asked)):
            raise EvaluationStopped


@contextmanager
def joined(device: str) -> Iterator[tuple[Ranks, str]]:
    """The ranks that torchrun started, and this process's device; without torchrun this process alone.

    Args:
        device: `auto` takes a GPU where there is one; under torchrun every process takes the GPU of its local rank.

    Raises:
        MoshiError: a device that is not here.
        EvaluationError: a device that the processes of torchrun cannot have.
    """
    device = choose_device(device)
    if "LOCAL_RANK" not in os.environ:
        if device.startswith("cuda:"):
            torch.cuda.set_device(device)
        yield Ranks(), device
        return
    local = int(os.environ["LOCAL_RANK"])
    if device == "cuda":
        if local >= torch.cuda.device_count():
            raise EvaluationError(
                f"process {local} has no GPU: there are {torch.cuda.device_count()}; "
                "start as many processes as there are GPUs, or give --device cpu"
            )
        device = f"cuda:{local}"
        torch.cuda.set_device(local)
    elif device != "cpu":
        raise EvaluationError(
            f"`--device {device}` is one device for all processes of torchrun; leave it out, and each takes its own"
        )
    dist.init_process_group("gloo" if device == "cpu" else "cpu:gloo,cuda:nccl", timeout=_PATIENCE)
    try:
        yield Ranks(dist.get_rank(), dist.get_world_size()), device
    finally:
        dist.destroy_process_group()
