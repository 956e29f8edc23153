"""The staging image: one buffer that is, byte for byte, the shard file to be written.

It is laid out and touched once and reused by every save; staging is then a plain copy into it, which is all that
training waits for. Writing starts while the copy is under way and follows it. On a GPU the buffer is pinned and the
copy runs on a side stream.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from threading import Condition

import torch

from ttt_moshi.checkpoint.dtypes import DTYPE_NAMES, DTYPES
from ttt_moshi.checkpoint.errors import CheckpointError
from ttt_moshi.checkpoint.files import PAGE
from ttt_moshi.checkpoint.output import aligned
from ttt_moshi.checkpoint.rows import Rows, as_bytes
from ttt_moshi.checkpoint.tensorfile import Plan, local_shape, plan


def shard_plan(rows: Mapping[str, Rows]) -> Plan:
    """Layout of this rank's shard. The header's metadata names the rows of the whole tensor that each entry holds."""
    held = {name: part for name, part in rows.items() if part.is_writer and part.local.numel()}
    tensors = {n: (DTYPE_NAMES[p.local.dtype], local_shape(p.shape, p.start, p.stop)) for n, p in held.items()}
    places = {n: {"shape": list(p.shape), "rows": [p.start, p.stop]} for n, p in held.items()}
    return plan(tensors, {"format": "ttt_moshi.shard.1", "rows": json.dumps(places, sort_keys=True)})


class Image:
    """A shard file in memory. `views` are the tensors inside it; `memory` is all of it, in whole pages."""

    def __init__(self, layout: Plan, pinned: bool):
        self.layout = layout
        length = max(-(-layout.size // PAGE) * PAGE, PAGE)
        self._bytes = torch.zeros(length, dtype=torch.uint8, pin_memory=True) if pinned else aligned(length)
        self.memory = as_bytes(self._bytes)
        self.memory[: len(layout.header)] = layout.header
        self.views = {
            name: self._bytes[entry.begin : entry.end].view(DTYPES[entry.dtype]).view(entry.shape)
            for name, entry in layout.entries.items()
        }
        self._progress = Condition()
        self._staged = 0  # bytes from the start that are in place; -1 if staging failed
        self._stream = torch.cuda.Stream() if pinned else None
        self._copied: torch.cuda.Event | None = None

    def empty(self) -> None:
        """From now on nothing counts as staged: whoever waits for it waits for the next `stage`."""
        self._copied = None
        self._reach(0)

    def stage(self, rows: Mapping[str, Rows], copied: Callable[[], None]) -> None:
        """Copy the tensors in, then call `copied` and let who waits for the last byte go on.

        On a GPU the copies are only queued; see `wait_device` and `wait_host`.
        """
        if self._stream is None:
            for name, view in self.views.items():
                self._reach(self.layout.entries[name].begin)
                view.copy_(rows[name].local)
        else:
            self._stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(self._stream):
                for name, view in self.views.items():
                    view.copy_(rows[name].local, non_blocking=True)
                self._copied = self._stream.record_event()
        copied()
        self._reach(len(self.memory))

    def fail(self) -> None:
        """Staging will not be finished: whoever waits for it gives up."""
        self._reach(-1)

    def _reach(self, staged: int) -> None:
        with self._progress:
            self._staged = staged
            self._progress.notify_all()

    def wait_device(self) -> None:
        """Let later GPU work of the current stream start only after the copies. Does not block the host."""
        if self._copied is not None:
            torch.cuda.current_stream().wait_event(self._copied)

    def wait_host(self, end: int) -> None:
        """Block until the first `end` bytes of the image are what to save. Raises CheckpointError if staging failed."""
        with self._progress:
            self._progress.wait_for(lambda: not 0 <= self._staged < end)
        if self._staged < 0:
            raise CheckpointError("the state could not be copied")
        if self._copied is not None:
            self._copied.synchronize()
