"""Reading tensors back and checking every byte on the way: any rows from any shards, into the memory that wants them.

Several streams run at once: while some wait for the disk, others hash and copy. Files are read past the page cache
where the file system allows it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from blake3 import blake3
from torch import Tensor

from ttt_moshi.checkpoint.errors import DamagedCheckpoint
from ttt_moshi.checkpoint.files import PAGE, Files
from ttt_moshi.checkpoint.output import REFUSED, aligned
from ttt_moshi.checkpoint.rows import as_bytes, byte_view, local_shape, row_count
from ttt_moshi.checkpoint.tensorfile import DTYPES, nbytes

PIECE = 4 << 20  # bytes of one read
STREAMS = 8  # tensors that are read and hashed at once, so many that disk and processors rarely wait for one another


def read_exactly(files: Files, fd: int, buffer: memoryview, offset: int, where: str, needed: int | None = None) -> None:
    """Fill `buffer`, of which `needed` bytes (None: all) must be there.

    Raises DamagedCheckpoint where the file ends too early or the disk cannot read it.
    """
    done = 0
    while done < (len(buffer) if needed is None else needed):
        try:
            count = files.read_into(fd, buffer[done:], offset + done)
        except OSError as error:
            if error.errno in REFUSED:
                raise
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


@dataclass
class Reading:
    """One tensor to be read, as its manifest entry describes it, and what came of it.

    Rows `start` to `stop` (None: the last) go into `out`, a contiguous tensor of the saved dtype on any device;
    `fresh` makes a CPU tensor for them when its turn comes. With neither, the tensor is only checked. Every part that
    is touched is read and checked whole, because its digest covers it whole.

    Afterwards `damage` says what is wrong. `digest` is that of the whole tensor if it was only checked and is sound.
    """

    name: str
    entry: Mapping[str, Any]
    out: Tensor | None = None
    start: int = 0
    stop: int | None = None
    fresh: bool = False
    digest: str = ""
    damage: DamagedCheckpoint | None = None

    def parts(self) -> list[Mapping[str, Any]]:
        """The manifest's records of the parts that are touched, in order of rows."""
        stop = row_count(self.entry["shape"]) if self.stop is None else self.stop
        touched = (
            part for part in self.entry["parts"] if max(part["rows"][0], self.start) < min(part["rows"][1], stop)
        )
        return sorted(touched, key=lambda part: part["rows"])

    def size(self) -> int:
        """Bytes that will be read."""
        return sum(part["bytes"][1] - part["bytes"][0] for part in self.parts())

    def sound(self) -> Tensor:
        """What was read. Raises the damage if there is any."""
        if self.damage is not None:
            raise self.damage
        assert self.out is not None
        return self.out


def read_all(
    files: Files, folder: Path, readings: Sequence[Reading], done: Callable[[Reading], None] = lambda reading: None
) -> None:
    """Do all readings, several at once. `done` is called with each that is finished, from the thread that did it."""
    sizes = [reading.size() for reading in readings]
    count = max(1, min(STREAMS, -(-sum(sizes) // PIECE)))
    shares: list[list[Reading]] = [[] for _ in range(count)]
    loads = [0] * count
    for number in sorted(range(len(readings)), key=lambda number: -sizes[number]):
        lightest = loads.index(min(loads))
        shares[lightest].append(readings[number])
        loads[lightest] += sizes[number]

    def work(share: list[Reading]) -> None:
        for reading in stream(files, folder, share):
            done(reading)

    with ThreadPoolExecutor(count, thread_name_prefix="checkpoint-hash") as pool:
        for finished in [pool.submit(work, share) for share in shares]:
            finished.result()


def stream(files: Files, folder: Path, readings: Sequence[Reading]) -> Iterator[Reading]:
    """Do readings one after the other, each given back when it is finished."""
    with closing(_Pieces(files, folder)) as pieces:
        for reading in readings:
            _take(reading, pieces)
            yield reading


def full(files: Files, folder: Path, name: str, entry: Mapping[str, Any]) -> Tensor:
    """A whole tensor in new CPU memory. Raises DamagedCheckpoint."""
    return next(stream(files, folder, [Reading(name, entry, fresh=True)])).sound()


def _take(reading: Reading, pieces: _Pieces) -> None:
    """Read the parts of one reading, check them, and put what is wanted where it is wanted."""
    if reading.fresh:
        reading.out = torch.empty(reading.entry["shape"], dtype=DTYPES[reading.entry["dtype"]])
    target = None if reading.out is None else byte_view(reading.out)
    row_bytes = nbytes(reading.entry["dtype"], local_shape(reading.entry["shape"], 0, 1))
    parts, whole = reading.parts(), blake3()
    for part in parts:
        where, hasher = f"{part['file']}: tensor {reading.name!r}", blake3()
        begin, end = part["bytes"]
        origin = begin - (part["rows"][0] - reading.start) * row_bytes  # of the target, counted in this file
        try:
            for page in range(begin // PAGE * PAGE, end, PIECE):
                low, high = max(page, begin), min(page + PIECE, end)
                piece = pieces.read(part["file"], low, high, where)
                hasher.update(piece)
                if target is None and len(parts) > 1:
                    whole.update(piece)
                if target is not None:
                    first, last = max(low, origin), min(high, origin + len(target))
                    if first < last:
                        wanted = torch.frombuffer(piece[first - low : last - low], dtype=torch.uint8)
                        target[first - origin : last - origin].copy_(wanted)
            if hasher.hexdigest() != part["blake3"]:
                raise DamagedCheckpoint(f"{where} does not match its digest")
        except DamagedCheckpoint as error:
            reading.damage = reading.damage or error
    reading.digest = parts[0]["blake3"] if len(parts) == 1 else whole.hexdigest()


class _Pieces:
    """Reads through one buffer. The file of the last piece stays open: the next is mostly in the same one."""

    def __init__(self, files: Files, folder: Path):
        self._files, self._folder = files, folder
        self._memory = as_bytes(aligned(PIECE))
        self._file, self._direct, self._fd = "", True, -1  # what is open, whether past the page cache, descriptor

    def read(self, file: str, begin: int, end: int, where: str) -> memoryview:
        """Bytes `begin` to `end` of a file, PIECE at most from the page of `begin` on; good until the next call.

        Raises DamagedCheckpoint.
        """
        page = begin // PAGE * PAGE
        memory = self._memory[: -(-(end - page) // PAGE) * PAGE]  # whole pages; the file may end in the last
        if self._file != file:
            self._open(file, direct=True)
        try:
            read_exactly(self._files, self._fd, memory, page, where, end - page)
        except OSError as error:
            if not self._direct or error.errno not in REFUSED:
                raise
            self._open(file, direct=False)
            read_exactly(self._files, self._fd, memory, page, where, end - page)
        return memory[begin - page : end - page]

    def _open(self, file: str, direct: bool) -> None:
        self.close()
        try:
            self._fd = self._files.open(self._folder / file, direct)
        except FileNotFoundError as error:
            raise DamagedCheckpoint(f"{file}: the file is missing") from error
        except OSError as error:
            if not direct or error.errno not in REFUSED:
                raise
            self._open(file, direct=False)
            return
        self._file, self._direct = file, direct

    def close(self) -> None:
        """Close what is open."""
        if self._file:
            self._file = ""
            self._files.close(self._fd)
