"""Reading tensors back and checking every byte on the way: any rows from any shards, into the memory that wants them.

Several streams run at once: while some wait for the disk, others hash and copy. Files are read past the page cache
where the file system allows it. Checking alone needs no torch.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING, Any

from blake3 import blake3

from ttt_moshi.checkpoint.errors import CheckpointError, CorruptCheckpoint
from ttt_moshi.checkpoint.files import PAGE, REFUSED, Files, open_direct
from ttt_moshi.checkpoint.manifest import Record, digest, read_manifest
from ttt_moshi.checkpoint.memory import aligned_memory
from ttt_moshi.checkpoint.tensorfile import local_shape, nbytes, row_count
from ttt_moshi.checkpoint.trouble import ABSENT, confirmed, missing, patiently, read_start

if TYPE_CHECKING:
    from torch import Tensor

PIECE = 2 << 20  # bytes of one read
STREAMS = 8  # tensors that are read and hashed at once, so many that disk and processors rarely wait for one another


def checked_document(files: Files, folder: Path, file: str, record: Record) -> bytes:
    """A small file, checked against its size and digest in the manifest.

    Raises CorruptCheckpoint or UnreadableCheckpoint.
    """

    def check(fresh: bool) -> bytes:
        try:
            data = read_start(files, folder / file, fresh=fresh)
        except OSError as error:
            raise missing(files, folder / file, error, file) from error
        if len(data) != record["size"]:
            raise CorruptCheckpoint(f"{file}: {len(data)} bytes instead of {record['size']}")
        if digest(data) != record["blake3"]:
            raise CorruptCheckpoint(f"{file}: the content does not match its digest")
        return data

    return confirmed(check)


@dataclass
class Reading:
    """One tensor to be read, as its manifest entry describes it, and what came of it.

    Rows `start` to `stop` (None: the last) go into `out`, a contiguous tensor of the saved dtype on any device;
    `fresh` makes a CPU tensor for them when its turn comes. With neither, the tensor is only checked. Every part that
    is touched is read and checked whole, because its digest covers it whole.

    Afterwards `corruption` says what is wrong. `digest` is that of the whole tensor if it was only checked and nothing
    is wrong.
    """

    name: str
    entry: Record
    out: Tensor | None = None
    start: int = 0
    stop: int | None = None
    fresh: bool = False
    digest: str = ""
    corruption: CorruptCheckpoint | None = None

    def parts(self) -> list[Record]:
        """The manifest's records of the parts that are touched, in order of rows."""
        stop = row_count(self.entry["shape"]) if self.stop is None else self.stop
        touched = (p for p in self.entry["parts"] if max(p["rows"][0], self.start) < min(p["rows"][1], stop))
        return sorted(touched, key=lambda part: part["rows"])

    def size(self) -> int:
        """Bytes that will be read."""
        return sum(part["bytes"][1] - part["bytes"][0] for part in self.parts())

    def verified(self) -> Tensor:
        """What was read. Raises CorruptCheckpoint if it is not what was saved."""
        if self.corruption is not None:
            raise self.corruption
        assert self.out is not None
        return self.out


def read_all(
    files: Files, folder: Path, readings: Sequence[Reading], done: Callable[[Reading], None] = lambda reading: None
) -> None:
    """Do all readings, several at once. `done` is called with each that is finished, from the thread that did it.

    Corruption is left in the readings. Raises UnreadableCheckpoint, soon after the first file that cannot be read.
    """
    sizes = [reading.size() for reading in readings]
    count = max(1, min(STREAMS, -(-sum(sizes) // PIECE)))
    shares: list[list[Reading]] = [[] for _ in range(count)]
    loads = [0] * count
    for number in sorted(range(len(readings)), key=lambda number: -sizes[number]):
        lightest = loads.index(min(loads))
        shares[lightest].append(readings[number])
        loads[lightest] += sizes[number]
    given_up = Event()

    def work(share: list[Reading]) -> None:
        try:
            for reading in stream(files, folder, share):
                done(reading)
                if given_up.is_set():
                    return
        except BaseException:
            given_up.set()
            raise

    with ThreadPoolExecutor(count, thread_name_prefix="checkpoint-hash") as pool:
        list(pool.map(work, shares))


def stream(files: Files, folder: Path, readings: Sequence[Reading]) -> Iterator[Reading]:
    """Do readings one after the other, each given back when it is finished. Raises UnreadableCheckpoint."""
    with closing(_Pieces(files, folder)) as pieces:
        for reading in readings:
            _take(reading, pieces)
            yield reading


def read_document(path: Path, name: str) -> dict[str, Any]:
    """A JSON document, such as "consolidated/config.json". Raises CheckpointError if there is none of that name."""
    record = read_manifest(path)["files"].get(name)
    if record is None or "blake3" not in record:
        raise CheckpointError(f"{path} has no document {name!r}")
    return json.loads(checked_document(Files(), path, name, record))


def iter_tensors(path: Path, file: str = "", names: Collection[str] | None = None) -> Iterator[tuple[str, Tensor]]:
    """Tensors one at a time, on the CPU in their saved dtype; whole ones, whatever the number of shards.

    `file` is an exported file such as "consolidated/lora.safetensors"; empty for what training resumes from. `names`
    selects some. Raises CheckpointError if the file or a name is not there, CorruptCheckpoint for wrong bytes.
    """
    for reading in stream(Files(), path, _readings(path, file, names)):
        tensor, reading.out = reading.verified(), None
        yield reading.name, tensor


def read_tensors(path: Path, file: str = "", names: Collection[str] | None = None) -> dict[str, Tensor]:
    """`iter_tensors` as a dictionary, read several at once."""
    readings = _readings(path, file, names)
    read_all(Files(), path, readings)
    return {reading.name: reading.verified() for reading in readings}


def read_bytes(path: Path, names: Collection[str]) -> dict[str, bytes]:
    """The bytes of whole tensors of the resumable state, little endian, row-major, checked; needs no torch.

    Raises as `iter_tensors`.
    """
    found: dict[str, bytes] = {}
    with closing(_Pieces(Files(), path)) as pieces:
        for wanted in _readings(path, "", names):
            reading, copy = Reading(wanted.name, wanted.entry), bytearray()
            _take(reading, pieces, copy)
            if reading.corruption is not None:
                raise reading.corruption
            found[reading.name] = bytes(copy)
    return found


def _readings(path: Path, file: str, names: Collection[str] | None) -> list[Reading]:
    """Whole tensors to be read, in order of names."""
    manifest = read_manifest(path)
    tables = {"": manifest["tensors"], **manifest["exports"]}
    if file not in tables:
        raise CheckpointError(f"{path} has no tensor file {file!r}; it has {', '.join(sorted(manifest['exports']))}")
    unknown = sorted(set(names or ()) - set(tables[file]))
    if unknown:
        raise CheckpointError(f"{path} has no tensor {unknown[0]!r} in {file or 'its resumable state'}")
    chosen = sorted(tables[file] if names is None else names)
    return [Reading(name, tables[file][name], fresh=True) for name in chosen]


def _take(reading: Reading, pieces: _Pieces, copy: bytearray | None = None) -> None:
    """Read the parts of one reading, check them, and put what is wanted where it is wanted; all of it into `copy`."""
    put = _putter(reading)
    parts, whole = reading.parts(), blake3()
    for part in parts:
        where, before, kept = f"{part['file']}: tensor {reading.name!r}", whole, len(copy or b"")

        def check(fresh: bool) -> blake3:
            hasher, running = blake3(), before.copy()  # noqa: B023 - called within this turn
            if copy is not None:
                del copy[kept:]  # noqa: B023
            begin, end = part["bytes"]  # noqa: B023
            for page in range(begin // PAGE * PAGE, end, PIECE):
                low, high = max(page, begin), min(page + PIECE, end)
                piece = pieces.read(part["file"], low, high, where, fresh and low == begin)  # noqa: B023
                hasher.update(piece)
                if len(parts) > 1 and put is None:
                    running.update(piece)
                if put is not None:
                    put(part, low, piece)  # noqa: B023
                if copy is not None:
                    copy.extend(piece)
            if hasher.hexdigest() != part["blake3"]:  # noqa: B023
                raise CorruptCheckpoint(f"{where} does not match its digest")  # noqa: B023
            return running

        try:
            whole = confirmed(check)
        except CorruptCheckpoint as error:
            reading.corruption = reading.corruption or error
    reading.digest = parts[0]["blake3"] if len(parts) == 1 else whole.hexdigest()


def _putter(reading: Reading) -> Callable[[Record, int, memoryview], None] | None:
    """What puts a piece of a part, from byte `low` of its file on, into the reading's tensor; None if nothing does."""
    if reading.out is None and not reading.fresh:
        return None
    import torch

    from ttt_moshi.checkpoint.dtypes import DTYPES
    from ttt_moshi.checkpoint.rows import byte_view

    if reading.fresh:
        reading.out = torch.empty(reading.entry["shape"], dtype=DTYPES[reading.entry["dtype"]])
    assert reading.out is not None
    target = byte_view(reading.out)
    row_bytes = nbytes(reading.entry["dtype"], local_shape(reading.entry["shape"], 0, 1))

    def put(part: Record, low: int, piece: memoryview) -> None:
        origin = part["bytes"][0] - (part["rows"][0] - reading.start) * row_bytes  # of the target, in this file
        first, last = max(low, origin), min(low + len(piece), origin + len(target))
        if first < last:
            wanted = torch.frombuffer(piece[first - low : last - low], dtype=torch.uint8)
            target[first - origin : last - origin].copy_(wanted)

    return put


class _Pieces:
    """Reads through one buffer. The file of the last piece stays open: the next is mostly in the same one."""

    def __init__(self, files: Files, folder: Path):
        self._files, self._folder = files, folder
        self._memory = patiently(folder, lambda: aligned_memory(PIECE))
        self._file, self._direct, self._fd = "", True, -1  # what is open, whether past the page cache, descriptor
        self._refused = False  # whether this file system takes no direct reads

    def read(self, file: str, begin: int, end: int, where: str, fresh: bool = False) -> memoryview:
        """Bytes `begin` to `end` of a file, PIECE at most from the page of `begin` on; good until the next call.

        `fresh` drops the file from the page cache first. Raises CorruptCheckpoint if the file is missing or ends before
        `end`, UnreadableCheckpoint if it cannot be read.
        """
        page = begin // PAGE * PAGE
        memory = self._memory[: -(-(end - page) // PAGE) * PAGE]  # whole pages; the file may end in the last
        if fresh:
            self.close()

        def attempt() -> int:
            try:
                if self._file != file:
                    self._open(file, fresh)
                return self._fill(memory, page, end - page)
            except OSError:
                self.close()  # the next try opens it anew: a stale handle stays stale
                raise

        try:
            count = patiently(self._folder / file, attempt, () if self._refused else REFUSED)
        except OSError as error:
            if error.errno in ABSENT:
                raise missing(self._files, self._folder / file, error, file) from error
            self._refused = True
            count = patiently(self._folder / file, attempt)
        if count < end - page:
            raise CorruptCheckpoint(f"{where}: the file ends at byte {page + count}")
        return memory[begin - page : end - page]

    def _fill(self, memory: memoryview, offset: int, needed: int) -> int:
        """Read until `needed` bytes are there or the file ends; how many there are."""
        done = 0
        while done < needed:
            count = self._files.read_into(self._fd, memory[done:], offset + done)
            done += count
            if count == 0 or (self._direct and count % PAGE):  # a direct read is short only where the file ends
                break
        return done

    def _open(self, file: str, fresh: bool) -> None:
        self.close()
        self._fd, self._direct = open_direct(self._files.open, self._folder / file, not self._refused)
        self._file = file
        if fresh:
            self._files.forget(self._fd)

    def close(self) -> None:
        """Close what is open."""
        if self._file:
            self._file = ""
            self._files.close(self._fd)
