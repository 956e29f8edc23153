"""Writing large files: past the page cache where the file system allows it, hashing the memory and not the disk.

One large fsync of dirty page cache is slow and erratic; direct writes are fast and steady. Where O_DIRECT is refused,
at opening or at the first write, the same bytes go through the page cache with early write-back.
"""

from __future__ import annotations

from pathlib import Path

import torch
from blake3 import blake3
from torch import Tensor

from ttt_moshi.checkpoint.files import PAGE, REFUSED, Files, naming, open_direct, write_fully
from ttt_moshi.checkpoint.memory import aligned_memory
from ttt_moshi.checkpoint.rows import as_bytes

PIECE = 16 << 20  # bytes of one write; large enough for full disk speed


class Output:
    """One file of known size that is filled at given offsets. Leaving the `with` block makes its bytes durable.

    `direct` asks for direct writes; the file system is probed by the first of them.
    """

    def __init__(self, files: Files, path: Path, size: int, direct: bool, reserve: bool = True):
        self._files, self._path, self.size = files, path, size
        self._fd, self.direct = open_direct(files.create, path, direct)
        if reserve and size:
            try:
                with naming(path):
                    files.allocate(self._fd, size)
            except BaseException:
                files.close(self._fd)
                raise

    def write(self, data: memoryview, offset: int) -> None:
        """Write at `offset`. In direct mode offset and memory are page-aligned; the length is whole pages."""
        if self.direct:
            try:
                with naming(self._path):
                    write_fully(self._files, self._fd, data, offset)
                return
            except OSError as error:
                if error.errno not in REFUSED:
                    raise
            self._files.close(self._fd)
            self.direct = False
            self._fd = self._files.create(self._path)
        with naming(self._path):
            write_fully(self._files, self._fd, data, offset)
        self._files.push(self._fd, offset, len(data))

    def __enter__(self) -> Output:
        return self

    def __exit__(self, kind: object, *details: object) -> None:
        try:
            if kind is None:
                with naming(self._path):
                    self._files.truncate(self._fd, self.size)
                    self._files.sync(self._fd)
        finally:
            self._files.close(self._fd)


def aligned(size: int) -> Tensor:
    """`aligned_memory` as a CPU tensor of uint8."""
    return torch.frombuffer(aligned_memory(size), dtype=torch.uint8)


class Stream:
    """Sequential writing of tensors through one page-aligned buffer, so that memory is bounded whatever the size."""

    def __init__(self, output: Output, offset: int = 0):
        self._output, self._offset, self._filled = output, offset, 0
        self._buffer = aligned(min(PIECE, output.size))
        self._memory = as_bytes(self._buffer)

    def seek(self, offset: int) -> None:
        """Continue at another place of the file (buffered mode only)."""
        if offset != self._offset + self._filled:
            self._flush(self._filled)
            self._offset = offset

    def add_bytes(self, data: bytes) -> str:
        """Append raw bytes; their digest."""
        return self.add(torch.frombuffer(bytearray(data), dtype=torch.uint8), torch.uint8)

    def add(self, tensor: Tensor, dtype: torch.dtype) -> str:
        """Append a tensor's elements converted to `dtype`, piece by piece; the digest of the bytes written."""
        flat, position, hasher = tensor.reshape(-1), 0, blake3()
        while position < flat.numel():
            count = min((len(self._buffer) - self._filled) // dtype.itemsize, flat.numel() - position)
            end = self._filled + count * dtype.itemsize
            self._buffer[self._filled : end].view(dtype).copy_(flat[position : position + count])
            hasher.update(self._memory[self._filled : end])
            self._filled, position = end, position + count
            if len(self._buffer) - self._filled < dtype.itemsize:
                self._flush(self._filled)
        return hasher.hexdigest()

    def finish(self) -> None:
        """Write what is left; in direct mode as whole pages, which the file's final truncation cuts."""
        self._flush(-(-self._filled // PAGE) * PAGE if self._output.direct else self._filled)

    def _flush(self, length: int) -> None:
        if self._filled:
            self._output.write(self._memory[:length], self._offset)
            self._offset, self._filled = self._offset + self._filled, 0
