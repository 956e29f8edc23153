"""What lies in a checkpoints folder: every folder and file, what it is, how large, and what is wrong with it."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ttt_moshi.checkpoint import layout
from ttt_moshi.checkpoint.checking import check_quickly
from ttt_moshi.checkpoint.errors import CorruptCheckpoint, ForeignCheckpoint, UnreadableCheckpoint
from ttt_moshi.checkpoint.files import Files
from ttt_moshi.checkpoint.manifest import Record, read_manifest
from ttt_moshi.checkpoint.sidecars import Measured, all_metrics, read_measured, read_pins
from ttt_moshi.checkpoint.trouble import patiently, read_start

_SMALL = (layout.LOCK, layout.LATEST, layout.JOURNAL, layout.PINS, layout.MEASURED)
OWN_FILES = {*_SMALL, *(f".{name}.tmp" for name in _SMALL)}
STATUS = {CorruptCheckpoint: "corrupt", ForeignCheckpoint: "foreign", UnreadableCheckpoint: "unreadable"}


def committed_steps(root: Path, files: Files | None = None) -> list[int]:
    """Steps of the committed checkpoints, ascending; contents are not looked at. Raises UnreadableCheckpoint."""
    return layout.committed_steps(files or Files(), root)


def newest_valid(
    root: Path,
    log: Callable[[str], None] = lambda line: None,
    files: Files | None = None,
    before: int | None = None,
) -> int | None:
    """The newest step (below `before`) whose manifest, sizes, headers and small files are as saved, or None.

    What is corrupt or foreign is passed over, and `log` is told. Raises UnreadableCheckpoint.
    """
    files = files or Files()
    for step in reversed(layout.committed_steps(files, root)):
        if before is not None and step >= before:
            continue
        try:
            check_quickly(root / layout.checkpoint_name(step), files)
            return step
        except (CorruptCheckpoint, ForeignCheckpoint) as error:
            log(f"passing over step {step}: {error}")
    return None


def list_folder(root: Path, files: Files | None = None) -> list[Record]:
    """One record for everything in a checkpoints folder but the program's own small files, sorted by name.

    `name`; `status`: "valid" (quick check), "corrupt", "unreadable" or "foreign" for committed names, "unhealthy",
    "set aside" (corrupt, left or foreign before), "leftover" of unfinished work, or "foreign" for anything else;
    `bytes` on disk, of a link those of what it leads to; `problem`: why. Checkpoints of this program also have `step`,
    `kind`, `state_id`, `metrics`, `world_size`, `pinned`. Nothing that is wrong with one of them keeps the others from
    being listed.
    """
    files, result = files or Files(), []
    pins, measured = read_pins(files, root), read_measured(files, root)
    for name in patiently(root, lambda: files.names(root)):
        if name in OWN_FILES:
            continue
        record: Record = {"name": name, "step": layout.step_of(name), "status": _status(name), "problem": ""}
        try:
            # A checkpoint that was moved to another disk and linked is as large as it is there.
            record["bytes"] = bytes_on_disk(files, Path(os.path.realpath(root / name)))
            if record["step"] is not None:
                record |= _facts(check_quickly(root / name, files), pins, measured)
            elif layout.aside_reason(name) is not None:
                record["problem"] = reason_of(files, root / name)
                record |= _facts(read_manifest(root / name, files), set(), {})
        except (CorruptCheckpoint, ForeignCheckpoint, UnreadableCheckpoint) as error:
            if record["step"] is not None or isinstance(error, UnreadableCheckpoint):
                record["status"] = STATUS[type(error)]
            record["problem"] = record["problem"] or str(error)
        result.append(record)
    return result


def _status(name: str) -> str:
    if layout.step_of(name) is not None:
        return "valid"
    if name.startswith(layout.LEFTOVERS):
        return "leftover"
    why = layout.aside_reason(name)
    return "foreign" if why is None else "unhealthy" if why == "unhealthy" else "set aside"


def _facts(manifest: Record, pins: set[int], measured: Measured) -> Record:
    facts: dict[str, Any] = {key: manifest[key] for key in ("step", "kind", "state_id", "world_size")}
    return facts | {
        "metrics": all_metrics(manifest, measured),
        "pinned": manifest["step"] in pins or bool(manifest["info"].get("pinned")),
    }


def reason_of(files: Files, path: Path) -> str:
    """Why a checkpoint was set aside, as was noted in it; empty if nothing was."""
    try:
        return read_start(files, path / layout.REASON).decode(errors="replace").strip()
    except OSError:
        return ""


def bytes_on_disk(files: Files, path: Path) -> int:
    """Size of a file, or of all files in a folder. Links count nothing. Raises UnreadableCheckpoint."""
    if patiently(path, path.is_symlink):
        return 0
    if not patiently(path, path.is_dir):
        try:
            return patiently(path, lambda: files.size(path))
        except OSError:
            return 0  # deleted meanwhile
    return sum(bytes_on_disk(files, path / name) for name in patiently(path, lambda: files.names(path)))


def total_bytes(manifest: Record) -> int:
    """Bytes of all files that a manifest lists."""
    return sum(record["size"] for record in manifest["files"].values())
