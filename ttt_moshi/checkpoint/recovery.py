"""Putting a checkpoints folder in order after a crash, and taking damaged checkpoints out of the way."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ttt_moshi.checkpoint import layout
from ttt_moshi.checkpoint.files import Files, replace_file, write_file
from ttt_moshi.checkpoint.lock import WriterLock
from ttt_moshi.checkpoint.saving import discard
from ttt_moshi.checkpoint.verify import verify


def sweep(files: Files, root: Path) -> list[str]:
    """Remove what unfinished saves and deletions left behind; what was done, in words. Only the writer may call it.

    A checkpoint that had stepped aside for a new one of the same step is put back if the new one never came.
    """
    done = []
    for name in files.names(root):
        if name.startswith(".replaced_"):
            number = name.removeprefix(".replaced_").partition(".")[0]
            target = f"checkpoint_{number}"
            if target not in files.names(root) and layout.step_of(target) is not None:
                files.rename(root / name, root / target)
                files.sync_folder(root)
                done.append(f"put back {target}, whose replacement was never finished")
                continue
        if name.startswith((".replaced_", ".saving_", ".trash_")):
            discard(files, root, name)
            done.append(f"removed {name}")
    return done


def clear(files: Files, root: Path) -> None:
    """Delete everything but the lock, which the caller holds."""
    for name in files.names(root):
        if name == layout.LOCK:
            continue
        if (root / name).is_dir() and not (root / name).is_symlink():
            discard(files, root, name)
        else:
            files.remove(root / name)
    files.sync_folder(root)


def quarantine(files: Files, root: Path, path: Path, reason: str) -> Path:
    """Move a damaged checkpoint aside, for good, with the reason in it and in the journal. Nothing is deleted."""
    target = layout.free_name(files, root, path.name.replace("checkpoint", ".quarantine", 1))
    files.rename(path, target)
    write_file(files, target / layout.REASON, (reason + "\n").encode())
    files.sync_folder(target)
    files.sync_folder(root)
    note(files, root, "quarantined", folder=target.name, reason=reason)
    return target


def leave_branch(files: Files, root: Path, step: int) -> list[Path]:
    """Move checkpoints later than `step` aside, for good: the run goes on from there and no longer contains them.

    Otherwise they would be the newest, for retention and for the next resume. Nothing in them is deleted.
    """
    moved = []
    for later in layout.committed_steps(files, root):
        if later > step:
            path = root / layout.checkpoint_name(later)
            target = layout.free_name(files, root, path.name.replace("checkpoint", ".left", 1))
            files.rename(path, target)
            note(files, root, "left behind", step=later, resumed_from=step, folder=target.name)
            moved.append(target)
    if moved:
        files.sync_folder(root)
    return moved


def set_unhealthy(files: Files, root: Path, step: int, reason: str) -> None:
    """Rename a committed checkpoint whose state turned out to be no good, and point LATEST at what remains."""
    target = layout.free_name(files, root, f"unhealthy_{step:06d}")
    files.rename(root / layout.checkpoint_name(step), target)
    files.sync_folder(root)
    note(files, root, "unhealthy", step=step, folder=target.name, reason=reason)
    steps = layout.committed_steps(files, root)
    if steps:
        replace_file(files, root / layout.LATEST, f"{layout.checkpoint_name(steps[-1])}\n".encode())


def note(files: Files, root: Path, event: str, **details: Any) -> None:
    """Add a line to the journal, which people read and no program trusts."""
    line = {"event": event, **details, "time": time.time()}
    files.append(root / layout.JOURNAL, (json.dumps(line) + "\n").encode())


def repair(
    root: Path, deep: bool = True, progress: Callable[[int, int], None] | None = None, files: Files | None = None
) -> list[str]:
    """Put a folder in order that no run is writing to; what was done, in words.

    Sweeps leftovers, moves every checkpoint that fails verification to quarantine, and points LATEST at the newest that
    remains. `progress` is that of `verify`, one checkpoint after the other. Raises CheckpointError while a writer is at
    work.
    """
    files = files or Files()
    lock = WriterLock(files, root)
    try:
        done = sweep(files, root)
        for step in layout.committed_steps(files, root):
            report = verify(root / layout.checkpoint_name(step), deep, progress, files)
            if not report.ok:
                moved = quarantine(files, root, report.path, report.text())
                done.append(f"moved {report.path.name} to {moved.name}: {report.problems[0].what}")
        steps = layout.committed_steps(files, root)
        if steps:
            replace_file(files, root / layout.LATEST, f"{layout.checkpoint_name(steps[-1])}\n".encode())
    finally:
        lock.release()
    return done
