"""Reading tensors back and checking every byte on the way: any rows from any shards, into the memory that wants them.

Several streams run at once: while some wait for the disk, others hash and copy. Files are read past the page cache
where the file system allows it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from blake3 import blake3
from torch import Tensor

from ttt_moshi.checkpoint.errors import CheckpointError, CorruptCheckpoint
from ttt_moshi.checkpoint.files import PAGE, REFUSED, Files, open_direct
from ttt_moshi.checkpoint.manifest import Record, digest, read_manifest
from ttt_moshi.checkpoint.output import aligned
from ttt_moshi.checkpoint.rows import as_bytes, byte_view, local_shape, row_count
from ttt_moshi.checkpoint.tensorfile import DTYPES, nbytes

PIECE = 2 << 20  # bytes of one read
STREAMS = 8  # tensors that are read and hashed at once, so many that disk and processors rarely wait for one another


def read_exactly(files: Files, fd: int, buffer: memoryview, offset: int, where: str, needed: int | None = None) -> None:
    """Fill `buffer`, of which `needed` bytes (None: all) must be there.

    Raises CorruptCheckpoint where the file ends too early or the disk cannot read it.
    """
    done = 0
    while done < (len(buffer) if needed is None else needed):
        try:
            count = files.read_into(fd, buffer[done:], offset + done)
        except OSError as error:
            if error.errno in REFUSED:
                raise
            raise CorruptCheckpoint(f"{where}: the disk cannot read byte {offset + done} ({error.strerror})") from error
        if count == 0:
            raise CorruptCheckpoint(f"{where}: the file ends at byte {offset + done}")
        done += count


def checked_document(files: Files, folder: Path, file: str, record: Record) -> bytes:
    """A small file, checked against its size and digest in the manifest."""
    try:
        data = files.read(folder / file)
    except (FileNotFoundError, IsADirectoryError) as error:
        raise CorruptCheckpoint(f"{file}: the file is missing") from error
    if len(data) != record["size"]:
        raise CorruptCheckpoint(f"{file}: {len(data)} bytes instead of {record['size']}")
    if digest(data) != record["blake3"]:
        raise CorruptCheckpoint(f"{file}: the content does not match its digest")
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
    entry: Record
    out: Tensor | None = None
    start: int = 0
    stop: int | None = None
    fresh: bool = False
    digest: str = ""
    damage: CorruptCheckpoint | None = None

    def parts(self) -> list[Record]:
        """The manifest's records of the parts that are touched, in order of rows."""
        stop = row_count(self.entry["shape"]) if self.stop is None else self.stop
        touched = (p for p in self.entry["parts"] if max(p["rows"][0], self.start) < min(p["rows"][1], stop))
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
        list(pool.map(work, shares))


def stream(files: Files, folder: Path, readings: Sequence[Reading]) -> Iterator[Reading]:
    """Do readings one after the other, each given back when it is finished."""
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
        tensor, reading.out = reading.sound(), None
        yield reading.name, tensor


def read_tensors(path: Path, file: str = "", names: Collection[str] | None = None) -> dict[str, Tensor]:
    """`iter_tensors` as a dictionary, read several at once."""
    readings = _readings(path, file, names)
    read_all(Files(), path, readings)
    return {reading.name: reading.sound() for reading in readings}


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
                raise CorruptCheckpoint(f"{where} does not match its digest")
        except CorruptCheckpoint as error:
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

        Raises CorruptCheckpoint.
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
            self._fd, self._direct = open_direct(self._files.open, self._folder / file, direct)
        except FileNotFoundError as error:
            raise CorruptCheckpoint(f"{file}: the file is missing") from error
        self._file = file

    def close(self) -> None:
        """Close what is open."""
        if self._file:
            self._file = ""
            self._files.close(self._fd)
