"""Reading tensors back and checking every byte on the way: any rows from any shards, into the memory that wants them.

Several streams run at once, and each has a thread that reads the next pieces from the disk while this one's are hashed
and copied. Parts that are wanted whole are read past the page cache where the file system allows it. A part of which
only some rows are wanted goes through it, because other processes of this host will want the other rows.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
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
AHEAD = 2  # pieces that are read before they are needed
STREAMS = 4  # tensors that are read and hashed at once


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

    def parts(self) -> list[_Part]:
        """The parts that are touched, in order of rows."""
        row_bytes = nbytes(self.entry["dtype"], local_shape(self.entry["shape"], 0, 1))
        stop = row_count(self.entry["shape"]) if self.stop is None else self.stop
        result = []
        for record in sorted(self.entry["parts"], key=lambda part: part["rows"]):
            first, last = record["rows"]
            begin, end = max(first, self.start), min(last, stop)
            if begin < end:
                inside = (begin - first) * row_bytes, (end - first) * row_bytes
                result.append(_Part(record, f"{record['file']}: tensor {self.name!r}", *inside, begin - self.start))
        return result

    def size(self) -> int:
        """Bytes that will be read."""
        return sum(part.record["bytes"][1] - part.record["bytes"][0] for part in self.parts())

    def sound(self) -> Tensor:
        """What was read. Raises the damage if there is any."""
        if self.damage is not None:
            raise self.damage
        assert self.out is not None
        return self.out


@dataclass(frozen=True)
class _Part:
    """A part to be read whole, of which bytes `low` to `high` are wanted from row `row` of the target on."""

    record: Mapping[str, Any]
    where: str
    low: int
    high: int
    row: int

    def cuts(self) -> Iterator[_Cut]:
        """Its pieces, cut where pages begin."""
        begin, end = self.record["bytes"]
        direct = (self.low, self.high) == (0, end - begin)
        for low in range(begin // PAGE * PAGE, end, PIECE):
            yield _Cut(self.record["file"], self.where, max(low, begin), min(low + PIECE, end), direct)


@dataclass(frozen=True)
class _Cut:
    """Bytes `begin` to `end` of a file: at most PIECE from their first page on."""

    file: str
    where: str
    begin: int
    end: int
    direct: bool

    @property
    def page(self) -> int:
        """Where the page begins that `begin` lies in."""
        return self.begin // PAGE * PAGE


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
    """Do readings one after the other, each given back when it is finished, reading ahead into the next."""
    cuts = (cut for reading in readings for part in reading.parts() for cut in part.cuts())
    with closing(_read_ahead(files, folder, cuts)) as pieces:
        for reading in readings:
            _take(reading, pieces)
            yield reading


def full(files: Files, folder: Path, name: str, entry: Mapping[str, Any]) -> Tensor:
    """A whole tensor in new CPU memory. Raises DamagedCheckpoint."""
    return next(stream(files, folder, [Reading(name, entry, fresh=True)])).sound()


def _take(reading: Reading, pieces: Iterator[Future[Tensor]]) -> None:
    """Check the pieces of one reading, which come next, and put them where they are wanted."""
    if reading.fresh:
        reading.out = torch.empty(reading.entry["shape"], dtype=DTYPES[reading.entry["dtype"]])
    target = None if reading.out is None else byte_view(reading.out)
    row_bytes = nbytes(reading.entry["dtype"], local_shape(reading.entry["shape"], 0, 1))
    parts, whole = reading.parts(), blake3()
    for part in parts:
        begin, hasher = part.record["bytes"][0], blake3()
        for cut in part.cuts():
            try:
                piece = next(pieces).result()
            except DamagedCheckpoint as error:
                reading.damage = reading.damage or error
                continue
            hasher.update(as_bytes(piece))
            if target is None and len(parts) > 1:
                whole.update(as_bytes(piece))
            low, high = max(cut.begin - begin, part.low), min(cut.end - begin, part.high)
            if target is not None and low < high:
                place, inside = part.row * row_bytes - part.low, begin - cut.begin
                target[place + low : place + high].copy_(piece[inside + low : inside + high])
        if reading.damage is None and hasher.hexdigest() != part.record["blake3"]:
            reading.damage = DamagedCheckpoint(f"{part.where} does not match its digest")
    reading.digest = parts[0].record["blake3"] if len(parts) == 1 else whole.hexdigest()


def _read_ahead(files: Files, folder: Path, cuts: Iterable[_Cut]) -> Generator[Future[Tensor], None, None]:
    """The bytes of each cut in turn, good until the next is asked for; a thread reads the cuts that follow."""
    buffers = [aligned(0) for _ in range(AHEAD + 1)]
    waiting: deque[Future[Tensor]] = deque()
    with ThreadPoolExecutor(1, thread_name_prefix="checkpoint-read") as pool:
        for number, cut in enumerate(cuts):
            place = number % len(buffers)
            if len(buffers[place]) < cut.end - cut.page:
                buffers[place] = aligned(cut.end - cut.page)
            waiting.append(pool.submit(_read, files, folder, cut, buffers[place]))
            if len(waiting) > AHEAD:
                yield waiting.popleft()
        while waiting:
            yield waiting.popleft()


def _read(files: Files, folder: Path, cut: _Cut, buffer: Tensor) -> Tensor:
    """The bytes of a cut, inside `buffer`. Raises DamagedCheckpoint."""
    memory = as_bytes(buffer)[: -(-(cut.end - cut.page) // PAGE) * PAGE]  # whole pages; the file may end in the last
    for direct in (True, False) if cut.direct else (False,):
        try:
            fd = files.open(folder / cut.file, direct)
            try:
                read_exactly(files, fd, memory, cut.page, cut.where, cut.end - cut.page)
            finally:
                files.close(fd)
            break
        except FileNotFoundError as error:
            raise DamagedCheckpoint(f"{cut.file}: the file is missing") from error
        except OSError as error:
            if not direct or error.errno not in REFUSED:
                raise
    return buffer[cut.begin - cut.page : cut.end - cut.page]
