"""How fast the bare disk is, beside which saves and verifications are measured: direct, in large pieces, durable."""

from __future__ import annotations

import os
import time
from pathlib import Path

from ttt_moshi.checkpoint.files import DIRECT, Files
from ttt_moshi.checkpoint.output import PIECE, Output, aligned
from ttt_moshi.checkpoint.rows import as_bytes


def write_speed(path: Path, size: int) -> float:
    """Bytes per second of direct writes of a new file of `size` random bytes, with a final fsync."""
    memory = as_bytes(aligned(PIECE).random_())
    began = time.perf_counter()
    with Output(Files(), path, size, direct=True) as output:
        for offset in range(0, size, PIECE):
            output.write(memory[: min(PIECE, size - offset)], offset)
    return size / (time.perf_counter() - began)


def read_speed(path: Path, size: int) -> float:
    """Bytes per second of direct reads, or of reads past a dropped page cache where the disk has no direct ones."""
    memory = as_bytes(aligned(PIECE))
    forget(path)
    try:
        fd = os.open(path, os.O_RDONLY | DIRECT)
    except OSError:
        fd = os.open(path, os.O_RDONLY)
    began = time.perf_counter()
    for offset in range(0, size, PIECE):
        os.preadv(fd, [memory[: min(PIECE, size - offset)]], offset)
    os.close(fd)
    return size / (time.perf_counter() - began)


def forget(path: Path) -> None:
    """Drop a file, or all files of a folder, from the page cache."""
    files = Files()
    for file in [path] if path.is_file() else [child for child in path.rglob("*") if child.is_file()]:
        fd = files.open(file)
        files.forget(fd)
        files.close(fd)
