"""Reading tensors back: straight into the memory that wants them, hashing on the way, any rows from any shards."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from blake3 import blake3
from torch import Tensor

from ttt_moshi.checkpoint.errors import DamagedCheckpoint
from ttt_moshi.checkpoint.files import Files
from ttt_moshi.checkpoint.rows import as_bytes, local_shape, row_count
from ttt_moshi.checkpoint.tensorfile import DTYPES, nbytes

READ_PIECE = 1 << 20  # bytes read and then hashed while they are still in the processor's cache
READERS = 4  # threads that read and hash tensors at once


def read_exactly(files: Files, fd: int, buffer: memoryview, offset: int, where: str) -> None:
    """Fill `buffer`. Raises DamagedCheckpoint where the file ends too early or the disk cannot read it."""
    done = 0
    while done < len(buffer):
        try:
            count = files.read_into(fd, buffer[done:], offset + done)
        except OSError as error:
            raise DamagedCheckpoint(f"{where}: the disk cannot read byte {offset + done} ({error.strerror})") from error
        if count == 0:
            raise DamagedCheckpoint(f"{where}: the file ends at byte {offset + done}")
        done += count


def checked_document(files: Files, path: Path, record: Mapping[str, Any], where: str) -> bytes:
    """A small file, checked against its size and digest in the manifest."""
    try:
        data = files.read(path)
    except FileNotFoundError as error:
        raise DamagedCheckpoint(f"{where}: the file is missing") from error
    if len(data) != record["size"]:
        raise DamagedCheckpoint(f"{where}: {len(data)} bytes instead of {record['size']}")
    if blake3(data).hexdigest() != record["blake3"]:
        raise DamagedCheckpoint(f"{where}: the content does not match its digest")
    return data


class TensorSource:
    """The tensors of one folder as its manifest describes them: name -> dtype, shape and parts in files."""

    def __init__(self, files: Files, folder: Path, tensors: Mapping[str, Mapping[str, Any]]):
        self._files, self._folder, self.tensors = files, folder, tensors

    def full(self, name: str) -> Tensor:
        """A whole tensor in new CPU memory."""
        entry = self.tensors[name]
        out = torch.empty(entry["shape"], dtype=DTYPES[entry["dtype"]])
        self.rows_into(name, 0, row_count(entry["shape"]), out)
        return out

    def rows_into(self, name: str, start: int, stop: int, out: Tensor) -> None:
        """Rows `start` to `stop` into `out`, a contiguous CPU tensor of the saved dtype.

        Every part that is touched is read and checked whole, because its digest covers it whole; a part of which all
        rows are wanted is read straight into its place.
        """
        entry = self.tensors[name]
        row_bytes = nbytes(entry["dtype"], local_shape(entry["shape"], 0, 1))
        target = as_bytes(out)
        for part in entry["parts"]:
            first, last = part["rows"]
            begin, end = max(first, start), min(last, stop)
            if begin >= end:
                continue
            wanted = target[(begin - start) * row_bytes : (end - start) * row_bytes]
            self._read(name, part, wanted, (begin - first) * row_bytes)

    def digest(self, name: str) -> str:
        """BLAKE3 of the whole tensor's bytes, over its parts in order of rows, each checked on the way."""
        whole = blake3()
        for part in sorted(self.tensors[name]["parts"], key=lambda part: part["rows"]):
            self._read(name, part, None, whole=whole)
        return whole.hexdigest()

    def _read(
        self, name: str, part: Mapping[str, Any], target: memoryview | None, skip: int = 0, whole: Any = None
    ) -> None:
        """Read and check a part. `target` gets its bytes from `skip` on; `whole` is a hasher that gets all."""
        where, (begin, end) = f"{part['file']}: tensor {name!r}", part["bytes"]
        direct = target is not None and len(target) == end - begin
        hasher, passing = blake3(), memoryview(bytearray(0 if direct else READ_PIECE))
        try:
            fd = self._files.open(self._folder / part["file"])
        except FileNotFoundError as error:
            raise DamagedCheckpoint(f"{part['file']}: the file is missing") from error
        try:
            for offset in range(0, end - begin, READ_PIECE):
                length = min(READ_PIECE, end - begin - offset)
                piece = target[offset : offset + length] if target is not None and direct else passing[:length]
                read_exactly(self._files, fd, piece, begin + offset, where)
                hasher.update(piece)
                if whole is not None:
                    whole.update(piece)
                if target is not None and not direct:
                    low, high = max(offset, skip), min(offset + length, skip + len(target))
                    if low < high:
                        target[low - skip : high - skip] = piece[low - offset : high - offset]
        finally:
            self._files.close(fd)
        if hasher.hexdigest() != part["blake3"]:
            raise DamagedCheckpoint(f"{where} does not match its digest")
