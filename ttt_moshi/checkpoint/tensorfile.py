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

import torch

from ttt_moshi.checkpoint.files import PAGE

DTYPES: dict[str, torch.dtype] = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}
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
    return math.prod(shape) * DTYPES[dtype].itemsize


def plan(tensors: Mapping[str, tuple[str, tuple[int, ...]]], metadata: Mapping[str, str]) -> Plan:
    """Place tensors, given as (dtype name, shape), in a file.

    Wider dtypes come first, so that every tensor is aligned to its element without gaps; names break ties.
    """
    order = sorted(tensors, key=lambda name: (-DTYPES[tensors[name][0]].itemsize, name))
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
