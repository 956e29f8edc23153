"""The staging image: one buffer that is, byte for byte, the shard file to be written.

It is laid out and touched once and reused by every save; staging is then a plain copy into it, which is all that
training waits for. On a GPU the buffer is pinned and the copy runs on a side stream.
"""

from __future__ import annotations

import json
from collections.abc import Mapping

import torch

from ttt_moshi.checkpoint.files import PAGE
from ttt_moshi.checkpoint.output import aligned
from ttt_moshi.checkpoint.rows import Rows, as_bytes, local_shape
from ttt_moshi.checkpoint.tensorfile import DTYPE_NAMES, DTYPES, Plan, plan


def shard_plan(rows: Mapping[str, Rows]) -> Plan:
    """Layout of this rank's shard. The header's metadata names the rows of the whole tensor that each entry holds."""
    held = {name: part for name, part in rows.items() if part.mine and part.local.numel()}
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
        self._stream = torch.cuda.Stream() if pinned else None
        self._copied: torch.cuda.Event | None = None

    def stage(self, rows: Mapping[str, Rows]) -> None:
        """Copy the tensors in. On a GPU the copies are only queued; see `wait_device` and `wait_host`."""
        if self._stream is None:
            for name, view in self.views.items():
                view.copy_(rows[name].local)
            return
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            for name, view in self.views.items():
                view.copy_(rows[name].local, non_blocking=True)
            self._copied = self._stream.record_event()

    def wait_device(self) -> None:
        """Let later GPU work of the current stream start only after the copies. Does not block the host."""
        if self._copied is not None:
            torch.cuda.current_stream().wait_event(self._copied)

    def wait_host(self) -> None:
        """Block until the image holds the copies."""
        if self._copied is not None:
            self._copied.synchronize()
