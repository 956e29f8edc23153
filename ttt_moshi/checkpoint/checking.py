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
from ttt_moshi.checkpoint.errors import CorruptCheckpoint, ForeignCheckpoint
from ttt_moshi.checkpoint.files import Files
from ttt_moshi.checkpoint.manifest import Record, digest, read_committed, read_manifest, state_id
from ttt_moshi.checkpoint.reading import Reading, checked_document, read_all
from ttt_moshi.checkpoint.tensorfile import HEADER_LIMIT, local_shape, nbytes, row_count
from ttt_moshi.checkpoint.trouble import confirmed, missing, patiently, read_start


@dataclass(frozen=True)
class Problem:
    """Something wrong: in which file, in which tensor (empty: the file as a whole), and what.

    `corrupt` says whether bytes are not those that the manifest vouches for; otherwise they are, but something beside
    them is not as this program writes it, such as a file too many.
    """

    file: str
    tensor: str
    what: str
    corrupt: bool = True


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

    @property
    def corrupt(self) -> bool:
        """Whether bytes are certainly not those that were saved."""
        return any(problem.corrupt for problem in self.problems)

    def text(self) -> str:
        """One line for a verified checkpoint, one line a problem otherwise."""
        if self.ok:
            how = f"verified, {self.bytes} bytes, state {self.state_id}" if self.state_id else "complete, data not read"
            return f"{self.path}: {how}"
        return "\n".join(f"{self.path}: {problem.what}" for problem in self.problems)


def check_quickly(path: Path, files: Files) -> Record:
    """The manifest, if manifest, sizes, headers and small files are as written; tensor data is not read.

    Raises CorruptCheckpoint for the first thing that is wrong, UnreadableCheckpoint, or ForeignCheckpoint.
    """
    step = layout.step_of(path.name)
    manifest = read_manifest(path, files) if step is None else read_committed(path.parent, step, files)
    for problem in _quick_problems(files, path, manifest):
        if problem.corrupt:
            raise CorruptCheckpoint(problem.what)
        raise ForeignCheckpoint(f"{problem.what}: this program did not write {path / layout.MANIFEST}")
    return manifest


def _quick_problems(files: Files, path: Path, manifest: Record) -> Iterator[Problem]:
    covered = Counter[str]()
    for name, entry in _all_tensors(manifest):
        yield from _misplaced(name, entry)
        for part in entry["parts"]:
            covered[part["file"]] += part["bytes"][1] - part["bytes"][0]
    for file, record in sorted(manifest["files"].items()):
        try:
            if "blake3" in record:
                checked_document(files, path, file, record)
                continue
            begin = _check_header(files, path, file, record)
        except CorruptCheckpoint as error:
            yield Problem(file, "", str(error))
        else:
            if begin + covered[file] != record["size"]:
                what = f"the manifest lists {covered[file]} bytes of tensors, the file has {record['size'] - begin}"
                yield Problem(file, "", f"{file}: {what}", corrupt=False)


def verify(
    path: Path, deep: bool = True, progress: Callable[[int, int], None] | None = None, files: Files | None = None
) -> VerifyReport:
    """Check a checkpoint folder and name every problem by file and tensor. `deep` reads all tensor data.

    `progress` is called with (bytes done, bytes in all). Nothing is changed on disk. Raises UnreadableCheckpoint where
    the operating system cannot read, and ForeignCheckpoint for a folder that this version did not write.
    """
    files = files or Files()
    report, begin = VerifyReport(Path(path)), time.perf_counter()
    step = layout.step_of(report.path.absolute().name)
    try:
        if step is None:
            manifest = read_manifest(report.path, files)
        else:
            manifest = read_committed(report.path.absolute().parent, step, files)
    except CorruptCheckpoint as error:
        report.problems.append(Problem(layout.MANIFEST, "", str(error)))
        return report
    report.step = manifest["step"]
    known = set(manifest["files"]) | {layout.MANIFEST}
    if step is None:
        known.add(layout.REASON)  # why a checkpoint was set aside
    for file in sorted(set(_files_inside(files, report.path)) - known):
        report.problems.append(Problem(file, "", f"{file}: the manifest does not know this file", corrupt=False))
    report.problems += _quick_problems(files, report.path, manifest)
    if deep:
        _check_data(files, manifest, report, progress)
    report.seconds = time.perf_counter() - begin
    return report


def _files_inside(files: Files, folder: Path, prefix: str = "") -> Iterator[str]:
    """Everything in a folder that is no folder, as paths relative to it; links count as files."""
    for name in patiently(folder, lambda: files.names(folder)):
        child = folder / name
        if child.is_dir() and not child.is_symlink():
            yield from _files_inside(files, child, f"{prefix}{name}/")
        else:
            yield prefix + name


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
        if reading.corruption is not None:
            file = str(reading.corruption).partition(":")[0]
            if file not in broken:
                report.problems.append(Problem(file, reading.name, str(reading.corruption)))
        elif reading.entry.get("blake3", reading.digest) != reading.digest:
            what = f"tensor {reading.name!r}: its parts do not add up to its digest"
            report.problems.append(Problem(layout.MANIFEST, reading.name, what, corrupt=False))
    if report.problems:
        return
    content = json.loads(checked_document(files, report.path, layout.STATE, manifest["files"][layout.STATE]))
    # Every tensor's bytes were just found to have the digest that the manifest names.
    report.state_id = state_id(content["step"], manifest["tensors"], content["state"], content["rank_state"])
    if report.state_id != manifest["state_id"]:
        what = "the state does not have the manifest's state_id"
        report.problems.append(Problem(layout.MANIFEST, "", what, corrupt=False))


def _all_tensors(manifest: Record) -> list[tuple[str, Record]]:
    exported = [item for table in manifest["exports"].values() for item in table.items()]
    return [*manifest["tensors"].items(), *exported]


def _check_header(files: Files, folder: Path, file: str, record: Record) -> int:
    """Check size and header of a safetensors file; where its data begins."""
    path = folder / file

    def check(fresh: bool) -> int:
        try:
            size = patiently(path, lambda: files.size(path))
            if size != record["size"]:
                raise CorruptCheckpoint(f"{file}: {size} bytes instead of {record['size']}")
            length = int.from_bytes(read_start(files, path, 8, fresh), "little")
            data = read_start(files, path, 8 + min(length, max(0, size - 8), HEADER_LIMIT), fresh)
        except OSError as error:
            raise missing(files, path, error, file) from error
        if digest(data) != record["header_blake3"]:
            raise CorruptCheckpoint(f"{file}: the header does not match its digest")
        return len(data)

    return confirmed(check)


def _misplaced(name: str, entry: Record) -> Iterator[Problem]:
    """Where the parts of a tensor do not tile its rows, or have not the bytes that their rows need."""
    position, row_bytes = 0, nbytes(entry["dtype"], local_shape(entry["shape"], 0, 1))
    for part in sorted(entry["parts"], key=lambda part: part["rows"]):
        start, stop = part["rows"]
        if start != position or part["bytes"][1] - part["bytes"][0] != (stop - start) * row_bytes:
            what = f"{part['file']}: tensor {name!r} has a gap or an overlap at row {position}"
            yield Problem(part["file"], name, what, corrupt=False)
        position = stop
    if position * row_bytes != row_count(entry["shape"]) * row_bytes:
        yield Problem(layout.MANIFEST, name, f"tensor {name!r} lacks rows from {position} on", corrupt=False)
