"""The safetensors container: planning a whole file before a byte of it exists.

A file is 8 bytes of header length (little endian), the JSON header padded with spaces so that the data begins on a
page, then the tensors without gaps. Any safetensors reader accepts it.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ttt_moshi.checkpoint.files import PAGE

ITEM_BYTES = {
    **{"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1, "F8_E5M2": 1},
    **{"I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1},
}
HEADER_LIMIT = 100_000_000  # the safetensors library refuses longer headers


@dataclass(frozen=True)
class Entry:
    """One tensor in a file. `begin` and `end` are byte offsets from the start of the file."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


@dataclass(frozen=True)
class Plan:
    """A file whose bytes are all placed: header first, then `entries` in order of `begin`."""

    header: bytes
    entries: dict[str, Entry]
    size: int


def nbytes(dtype: str, shape: Sequence[int]) -> int:
    """Bytes of a contiguous tensor."""
    return math.prod(shape) * ITEM_BYTES[dtype]


def row_count(shape: Sequence[int]) -> int:
    """Rows of a tensor of this shape; a scalar counts as one."""
    return shape[0] if len(shape) else 1


def local_shape(shape: Sequence[int], start: int, stop: int) -> tuple[int, ...]:
    """Shape of rows `start` to `stop`."""
    return (stop - start, *shape[1:]) if len(shape) else ()


def plan(tensors: Mapping[str, tuple[str, tuple[int, ...]]], metadata: Mapping[str, str]) -> Plan:
    """Place tensors, given as (dtype name, shape), in a file.

    Wider dtypes come first, so that every tensor is aligned to its element without gaps; names break ties.
    """
    order = sorted(tensors, key=lambda name: (-ITEM_BYTES[tensors[name][0]], name))
    header: dict[str, object] = {"__metadata__": dict(metadata)}
    offsets, position = {}, 0
    for name in order:
        dtype, shape = tensors[name]
        offsets[name] = (position, position + nbytes(dtype, shape))
        position = offsets[name][1]
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets[name])}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    start = -(-(8 + len(text)) // PAGE) * PAGE
    head = struct.pack("<Q", start - 8) + text.ljust(start - 8)
    entries = {n: Entry(*tensors[n], start + offsets[n][0], start + offsets[n][1]) for n in order}
    return Plan(head, entries, start + position)
