"""Checking a checkpoint: every byte against the manifest, and the manifest against itself."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock

from ttt_moshi.checkpoint import layout
from ttt_moshi.checkpoint.errors import CorruptCheckpoint
from ttt_moshi.checkpoint.files import Files
from ttt_moshi.checkpoint.manifest import Record, digest, read_manifest, state_id
from ttt_moshi.checkpoint.reading import Reading, checked_document, read_all, read_exactly
from ttt_moshi.checkpoint.rows import local_shape, row_count
from ttt_moshi.checkpoint.tensorfile import HEADER_LIMIT, nbytes


@dataclass(frozen=True)
class Problem:
    """Something wrong: in which file, in which tensor (empty: the file as a whole), and what."""

    file: str
    tensor: str
    what: str


@dataclass
class VerifyReport:
    """Outcome of a verification. `state_id` is recomputed from the bytes read (None when that was not possible)."""

    path: Path
    step: int | None = None
    state_id: str | None = None
    problems: list[Problem] = field(default_factory=list)
    bytes: int = 0
    seconds: float = 0.0

    @property
    def ok(self) -> bool:
        """Whether nothing at all is wrong."""
        return not self.problems

    def text(self) -> str:
        """One line for a sound checkpoint, one line a problem otherwise."""
        if self.ok:
            return f"{self.path}: sound, {self.bytes} bytes checked, state {self.state_id}"
        return "\n".join(f"{self.path}: {problem.what}" for problem in self.problems)


def check_quickly(path: Path, files: Files) -> Record:
    """The manifest, if manifest, sizes, headers and small files are as written; tensor data is not read.

    Raises CorruptCheckpoint for the first thing that is wrong.
    """
    manifest = read_manifest(path, files)
    for problem in _quick_problems(files, path, manifest):
        raise CorruptCheckpoint(problem.what)
    return manifest


def _quick_problems(files: Files, path: Path, manifest: Record) -> Iterator[Problem]:
    if layout.step_of(path.name) not in (None, manifest["step"]):
        yield Problem(layout.MANIFEST, "", f"{path} holds the manifest of step {manifest['step']}")
    covered = Counter[str]()
    for name, entry in _all_tensors(manifest):
        yield from _misplaced(name, entry)
        for part in entry["parts"]:
            covered[part["file"]] += part["bytes"][1] - part["bytes"][0]
    for file, record in sorted(manifest["files"].items()):
        try:
            if "blake3" in record:
                checked_document(files, path, file, record)
            else:
                _check_header(files, path, file, record, covered[file])
        except CorruptCheckpoint as error:
            yield Problem(file, "", str(error))


def verify(
    path: Path, deep: bool = True, progress: Callable[[int, int], None] | None = None, files: Files | None = None
) -> VerifyReport:
    """Check a checkpoint folder and name every problem by file and tensor. `deep` reads all tensor data.

    `progress` is called with (bytes done, bytes in all). Nothing is changed on disk.
    """
    files = files or Files()
    report, begin = VerifyReport(Path(path)), time.perf_counter()
    try:
        manifest = read_manifest(report.path, files)
    except CorruptCheckpoint as error:
        report.problems.append(Problem(layout.MANIFEST, "", str(error)))
        return report
    report.step = manifest["step"]
    present = {
        file.relative_to(path).as_posix() for file in report.path.rglob("*") if file.is_symlink() or not file.is_dir()
    }
    for file in sorted(present - set(manifest["files"]) - {layout.MANIFEST}):
        report.problems.append(Problem(file, "", f"{file}: the manifest does not know this file"))
    report.problems += _quick_problems(files, report.path, manifest)
    if deep:
        _check_data(files, manifest, report, progress)
    report.seconds = time.perf_counter() - begin
    return report


def _check_data(
    files: Files, manifest: Record, report: VerifyReport, progress: Callable[[int, int], None] | None
) -> None:
    total = sum(record["size"] for record in manifest["files"].values())
    report.bytes = sum(record["size"] for record in manifest["files"].values() if "blake3" in record)
    broken = {problem.file for problem in report.problems if not problem.tensor}
    misplaced = {problem.tensor for problem in report.problems}
    readings = [Reading(name, entry) for name, entry in _all_tensors(manifest) if name not in misplaced]
    lock = Lock()

    def count(reading: Reading) -> None:
        with lock:
            report.bytes += reading.size()
            if progress:
                progress(report.bytes, total)

    read_all(files, report.path, readings, count)
    for reading in readings:
        if reading.damage is not None:
            file = str(reading.damage).partition(":")[0]
            if file not in broken:
                report.problems.append(Problem(file, reading.name, str(reading.damage)))
        elif reading.entry.get("blake3", reading.digest) != reading.digest:
            what = f"tensor {reading.name!r}: its parts do not add up to its digest"
            report.problems.append(Problem(layout.MANIFEST, reading.name, what))
    if report.problems:
        return
    content = json.loads(files.read(report.path / layout.STATE))
    # Every tensor's bytes were just found to have the digest that the manifest names.
    report.state_id = state_id(content["step"], manifest["tensors"], content["state"], content["rank_state"])
    if report.state_id != manifest["state_id"]:
        report.problems.append(Problem(layout.MANIFEST, "", "the state does not have the manifest's state_id"))


def _all_tensors(manifest: Record) -> list[tuple[str, Record]]:
    exported = [item for table in manifest["exports"].values() for item in table.items()]
    return [*manifest["tensors"].items(), *exported]


def _check_header(files: Files, folder: Path, file: str, record: Record, covered: int) -> None:
    """Size and header of a safetensors file, and that digests of tensors cover all other bytes of it."""
    try:
        size = files.size(folder / file)
        if size != record["size"]:
            raise CorruptCheckpoint(f"{file}: {size} bytes instead of {record['size']}")
        fd = files.open(folder / file)
    except FileNotFoundError as error:
        raise CorruptCheckpoint(f"{file}: the file is missing") from error
    try:
        head = memoryview(bytearray(8))
        read_exactly(files, fd, head, 0, file)
        data = memoryview(bytearray(8 + min(int.from_bytes(head, "little"), size - 8, HEADER_LIMIT)))
        read_exactly(files, fd, data, 0, file)
    finally:
        files.close(fd)
    if digest(data) != record["header_blake3"]:
        raise CorruptCheckpoint(f"{file}: the header does not match its digest")
    if len(data) + covered != size:
        raise CorruptCheckpoint(
            f"{file}: the manifest lists {covered} bytes of tensors, the file has {size - len(data)}"
        )


def _misplaced(name: str, entry: Record) -> Iterator[Problem]:
    """Where the parts of a tensor do not tile its rows, or have not the bytes that their rows need."""
    position, row_bytes = 0, nbytes(entry["dtype"], local_shape(entry["shape"], 0, 1))
    for part in sorted(entry["parts"], key=lambda part: part["rows"]):
        start, stop = part["rows"]
        if start != position or part["bytes"][1] - part["bytes"][0] != (stop - start) * row_bytes:
            what = f"{part['file']}: tensor {name!r} has a gap or an overlap at row {position}"
            yield Problem(part["file"], name, what)
        position = stop
    if position * row_bytes != row_count(entry["shape"]) * row_bytes:
        yield Problem(layout.MANIFEST, name, f"tensor {name!r} lacks rows from {position} on")
