"""What happens to whole folders: committing, deleting, setting aside, putting back. Always by rename, then durable.

Only the folder's writer may call these.
"""

from __future__ import annotations

import json
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from ttt_moshi.checkpoint import layout
from ttt_moshi.checkpoint.checking import verify
from ttt_moshi.checkpoint.errors import CheckpointError, CorruptCheckpoint, ForeignCheckpoint
from ttt_moshi.checkpoint.files import Files, remove_tree, replace_file, write_file
from ttt_moshi.checkpoint.lock import WriterLock
from ttt_moshi.checkpoint.manifest import read_committed, read_manifest


def commit(files: Files, root: Path, folder: Path, name: str, manifest: bytes) -> None:
    """Make a complete staging folder a checkpoint: manifest, folders durable, one rename, root durable.

    An older checkpoint of that name steps aside first and is put back by the next opening if the rename never came.
    What this program did not write is kept, under another name.
    """
    replace_file(files, folder / layout.MANIFEST, manifest)
    for inside in ("resume", "consolidated"):
        files.sync_folder(folder / inside)
    files.sync_folder(folder)
    replaced = None
    if name in files.names(root):
        if _is_ours(files, root, name):
            replaced = layout.free_name(files, root, name.replace("checkpoint", ".replaced", 1))
            files.rename(root / name, replaced)
        else:
            set_aside(files, root, name, "foreign", "")
    files.rename(folder, root / name)
    files.sync_folder(root)
    if replaced is not None:
        discard(files, root, replaced.name)


def _is_ours(files: Files, root: Path, name: str) -> bool:
    """Whether a folder is a checkpoint of this program and version, corrupt or not."""
    step = layout.step_of(name)
    try:
        if step is None:
            read_manifest(root / name, files)
        else:
            read_committed(root, step, files)
    except CorruptCheckpoint:
        return True
    except ForeignCheckpoint:
        return False
    return True


def discard(files: Files, root: Path, name: str) -> None:
    """Delete a folder so that no half-deleted state carries a telling name: rename to trash, make durable, unlink.

    Of a link to a folder elsewhere the link alone goes.
    """
    if name not in files.names(root):
        return
    trash = root / name
    if not name.startswith(layout.TRASH):
        trash = layout.free_name(files, root, layout.TRASH + name.lstrip("."))
        files.rename(root / name, trash)
        files.sync_folder(root)
    remove_tree(files, trash)


def delete(files: Files, root: Path, name: str) -> None:
    """Delete a folder as `discard` does, or a file, or a link without following it."""
    if (root / name).is_dir() and not (root / name).is_symlink():
        discard(files, root, name)
    else:
        files.remove(root / name)


def sweep(files: Files, root: Path) -> list[str]:
    """Remove what unfinished saves and deletions left behind; what was done, in words.

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
        if name.startswith(layout.LEFTOVERS):
            discard(files, root, name)
            done.append(f"removed {name}")
    return done


def clear(files: Files, root: Path) -> None:
    """Delete everything but the lock, which the caller holds."""
    for name in files.names(root):
        if name != layout.LOCK:
            delete(files, root, name)
    files.sync_folder(root)


def set_aside(files: Files, root: Path, name: str, why: str, reason: str) -> Path:
    """Move a folder to `why`_<step>, where every tool shows it and none resumes from it; where it is now.

    The reason is written into it and into the journal; into the journal alone, where the name is a link to a folder
    elsewhere, which may be another run's too. Nothing is deleted.
    """
    target = layout.free_name(files, root, layout.aside_name(name, why))
    files.rename(root / name, target)
    files.sync_folder(root)
    with suppress(OSError):  # for people, who also have it in the log: a full disk must not undo the rest
        if reason and not target.is_symlink():
            write_file(files, target / layout.REASON, (reason + "\n").encode())
        log_event(files, root, "set aside", folder=name, now=target.name, reason=reason)
    return target


def leave_branch(files: Files, root: Path, step: int) -> list[Path]:
    """Set aside our checkpoints later than `step`: the run goes on from there and no longer contains them.

    Otherwise they would be the newest, for retention and for the next resume. Nothing in them is deleted.
    """
    later = [other for other in layout.committed_steps(files, root) if other > step]
    names = [name for name in map(layout.checkpoint_name, later) if _is_ours(files, root, name)]
    reason = f"not part of the run any more, which was resumed from step {step}"
    return [set_aside(files, root, name, "left", reason) for name in names]


def put_back(path: Path, files: Files | None = None) -> Path:
    """Give a checkpoint that was set aside its name back, if every byte of it verifies; where it is now.

    Raises CorruptCheckpoint, UnreadableCheckpoint or ForeignCheckpoint for what does not verify, and CheckpointError if
    it was not set aside, is unhealthy, has a successor in its place, or while a run writes to the folder.
    """
    files, path = files or Files(), path.absolute()
    root, why = path.parent, layout.aside_reason(path.name)
    if why is None:
        raise CheckpointError(f"{path} was not set aside: only corrupt_..., left_... and foreign_... are put back")
    if why == "unhealthy":
        raise CheckpointError(f"{path} is unhealthy, so no run may resume from it; take an earlier step")
    with WriterLock(files, root):
        report = verify(path, files=files)
        if not report.ok:
            raise CorruptCheckpoint(f"{path} is not put back: it does not verify\n{report.text()}")
        assert report.step is not None
        target = root / layout.checkpoint_name(report.step)
        if target.name in files.names(root):
            raise CheckpointError(f"{target} exists: move it away first, or keep it and leave {path.name} where it is")
        if layout.REASON in files.names(path) and not path.is_symlink():
            files.remove(path / layout.REASON)
            files.sync_folder(path)
        files.rename(path, target)
        files.sync_folder(root)
        log_event(files, root, "put back", folder=path.name, now=target.name)
    return target


def log_event(files: Files, root: Path, event: str, **details: Any) -> None:
    """Add a line to the journal, which people read and no program trusts."""
    line = {"event": event, **details, "time": time.time()}
    files.append(root / layout.JOURNAL, (json.dumps(line) + "\n").encode())
