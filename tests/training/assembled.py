"""A run's parts in this process, as if something had been learned already."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from ttt_moshi.config import TrainArgs
from ttt_moshi.training.assemble import Parts, assemble
from ttt_moshi.training.distributed import World, join_world


@contextmanager
def assembled(args: TrainArgs) -> Iterator[tuple[Parts, World]]:
    """The parts of a run, and the group of one process that it is."""
    with join_world() as world:
        yield assemble(args, world), world


def make_heard(parts: Parts, *endings: str) -> None:
    """Fills the parameters whose names end so: trained layers write to their output; fresh ones do not, and would hide
    every error."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, parameter in parts.model.named_parameters():
            if name.endswith(endings):
                local = parameter.to_local()
                local.copy_(torch.randn(local.shape, generator=generator) * 0.1)
