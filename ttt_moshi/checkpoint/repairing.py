"""Putting a checkpoints folder in order that no run is writing to."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from ttt_moshi.checkpoint import layout
from ttt_moshi.checkpoint.checking import verify
from ttt_moshi.checkpoint.commit import set_aside, sweep
from ttt_moshi.checkpoint.errors import ForeignCheckpoint
from ttt_moshi.checkpoint.files import Files, replace_file
from ttt_moshi.checkpoint.lock import WriterLock


def repair(
    root: Path, deep: bool = True, progress: Callable[[int, int], None] | None = None, files: Files | None = None
) -> list[str]:
    """Sweep leftovers, set aside what is corrupt, and point LATEST at the newest that remains; what was done, in words.

    All are verified before the first is moved. What this program did not write is left alone. `progress` is that of
    `verify`, one checkpoint after the other. Raises UnreadableCheckpoint, with nothing moved, and CheckpointError while
    a writer is at work.
    """
    files = files or Files()
    lock = WriterLock(files, root)
    try:
        reports, done = [], []
        for step in layout.committed_steps(files, root):
            try:
                reports.append(verify(root / layout.checkpoint_name(step), deep, progress, files))
            except ForeignCheckpoint:
                continue
        done += sweep(files, root)
        for report in reports:
            if report.corrupt:
                moved = set_aside(files, root, report.path.name, "corrupt", report.text())
                done.append(f"set aside {report.path.name} as {moved.name}: {report.problems[0].what}")
        remaining = [report.path.name for report in reports if not report.corrupt]
        if remaining:
            replace_file(files, root / layout.LATEST, f"{remaining[-1]}\n".encode())
            files.sync_folder(root)
    finally:
        lock.release()
    return done
