"""What PyTorch raises where memory is short or another process is gone, in words for a person."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist

from ttt_moshi.errors import UserError
from ttt_moshi.training.distributed import World

# What Gloo says when the other end of a connection is gone; it has no exception of its own.
_GONE = ("gloo", "Connection closed by peer", "Connection reset by peer", "Broken pipe", "Timed out waiting")


def explain(error: BaseException, world: World | None = None) -> str | None:
    """One sentence for an error that is no fault of the program; None for every other.

    Args:
        world: the ranks, where they work together already.
    """
    first = str(error).split("\n")[0]
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)) or "can't allocate memory" in first:
        return (
            f"out of memory ({_cut(first) or 'no more was given'}): lower batch_size or duration_sec, or set "
            "gradient_checkpointing; `ttt-moshi train --estimate` prints what a configuration needs."
        )
    lost = isinstance(error, dist.DistError) or (
        isinstance(error, RuntimeError) and any(word in first for word in _GONE)
    )
    if lost and world is not None and world.size > 1:
        return f"another process of the run ended or cannot be reached any more ({_cut(first)})."
    return None


@contextmanager
def explained() -> Iterator[None]:
    """Turns a lack of memory while a run is assembled into a UserError."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        reason = explain(error)
        if reason is None:
            raise
        raise UserError(reason) from error


def _cut(text: str) -> str:
    return text if len(text) <= 160 else text[:157] + "..."
