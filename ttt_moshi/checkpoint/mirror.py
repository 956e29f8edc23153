"""A second copy of committed checkpoints at any fsspec URL: in the background, resumable, checked by reading back.

A copy is written beside its place and moved there when it is whole, the manifest last: a copy with a manifest is whole,
and none is ever overwritten in place.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from queue import SimpleQueue
from threading import Condition, Thread
from typing import Any

import fsspec
from blake3 import blake3
from fsspec.implementations.local import LocalFileSystem

from ttt_moshi.checkpoint.errors import CheckpointError
from ttt_moshi.checkpoint.layout import MANIFEST, step_of
from ttt_moshi.checkpoint.manifest import read_manifest

PIECE = 8 << 20  # bytes that are read back at once


def check_mirror(url: str, kept: Sequence[Path] = ()) -> None:
    """Refuses a mirror that cannot be one, before anything is trained: an unknown protocol, a file, or a folder that
    is, holds or lies in one of `kept`, the folders of the run, links followed: copies there are no second place.
    """
    try:
        remote, base = fsspec.core.url_to_fs(url)
    except (ValueError, ImportError) as error:
        raise CheckpointError(f"`checkpoint.mirror`: {url} cannot be used: {error}") from error
    if not isinstance(remote, LocalFileSystem):
        return
    if Path(base).exists() and not Path(base).is_dir():
        raise CheckpointError(f"`checkpoint.mirror`: {url} is a file: name a folder")
    mirror = Path(os.path.realpath(base))
    for folder in (Path(os.path.realpath(path)) for path in kept):
        if mirror.is_relative_to(folder) or folder.is_relative_to(mirror):
            raise CheckpointError(
                f"`checkpoint.mirror`: {url} is no place for a second copy, because {folder}, where the run is, "
                "is the same folder, lies in it or holds it: name a folder elsewhere, best on another disk"
            )


def copy_out(path: Path, url: str) -> int:
    """Copy a checkpoint folder to `url`/<its name>; bytes sent. What is there already, and equal, is not sent again.

    Another checkpoint of that name is replaced once the new copy is whole. Raises CheckpointError if what is read back
    differs from what was sent.
    """
    remote, base = fsspec.core.url_to_fs(url)
    target, beside = f"{base}/{path.name}", f"{base}/.copying_{path.name}"
    digests = {file: blake3().update_mmap(path / file).hexdigest() for file in _files(path)}
    if all(_digest(remote, f"{target}/{file}") == wanted for file, wanted in digests.items()):
        return 0
    sent = 0
    for file, wanted in digests.items():
        if _digest(remote, f"{beside}/{file}") == wanted:
            continue  # of a copy that was interrupted
        remote.makedirs(f"{beside}/{file}".rpartition("/")[0], exist_ok=True)
        remote.put_file(str(path / file), f"{beside}/{file}")
        sent += (path / file).stat().st_size
        if _digest(remote, f"{beside}/{file}") != wanted:
            raise CheckpointError(f"{beside}/{file} did not arrive as it was sent")
    replaced = f"{base}/.replaced_{path.name}"
    if remote.exists(replaced):
        remote.rm(replaced, recursive=True)
    if remote.exists(target):
        _move(remote, target, replaced, [MANIFEST])
    _move(remote, beside, target, list(digests))
    if remote.exists(replaced):
        remote.rm(replaced, recursive=True)
    return sent


def _files(path: Path) -> list[str]:
    """Files of a checkpoint, the manifest last: it says that the rest is there."""
    return [*read_manifest(path)["files"], MANIFEST]


def _move(remote: Any, source: str, target: str, order: list[str]) -> None:
    """Rename a folder at once where the file system can; elsewhere file by file, those of `order` first."""
    if isinstance(remote, LocalFileSystem):
        os.rename(source, target)
        return
    rest = [name.removeprefix(f"{source}/") for name in map(remote._strip_protocol, remote.find(source))]
    for file in [*order, *(name for name in rest if name not in order)]:
        if remote.exists(f"{source}/{file}"):
            remote.makedirs(f"{target}/{file}".rpartition("/")[0], exist_ok=True)
            remote.mv(f"{source}/{file}", f"{target}/{file}")
    if remote.exists(source):
        remote.rm(source, recursive=True)


def _digest(remote: Any, target: str) -> str | None:
    hasher = blake3()
    try:
        with remote.open(target, "rb") as file:
            while piece := file.read(PIECE):
                hasher.update(piece)
    except (FileNotFoundError, NotADirectoryError):
        return None
    return hasher.hexdigest()


class Mirror:
    """Copies checkpoints one after the other in a thread of its own. Trouble is logged and never reaches training.

    What is queued belongs to the mirror: retention keeps it until it is copied, or could not be.
    """

    def __init__(self, url: str, log: Callable[[str], None]):
        self._url, self._log = url, log
        self._paths: SimpleQueue[Path | None] = SimpleQueue()
        self._waiting: list[Path] = []
        self._changed = Condition()
        self._thread: Thread | None = None

    def submit(self, path: Path) -> None:
        """Have a committed checkpoint copied when its turn comes."""
        with self._changed:
            self._waiting.append(path)
            if len(self._waiting) > 2:
                names = ", ".join(waiting.name for waiting in self._waiting)
                self._log(f"{self._url} takes copies slower than checkpoints are saved; kept until copied: {names}")
        if self._thread is None:
            # A daemon: a copy that hangs must not keep the process alive. `close` waits for it, within bounds.
            self._thread = Thread(target=self._work, name="checkpoint-mirror", daemon=True)
            self._thread.start()
        self._paths.put(path)

    def queued(self) -> set[int]:
        """Steps that are not copied yet."""
        with self._changed:
            return {step for path in self._waiting if (step := step_of(path.name)) is not None}

    def _work(self) -> None:
        while (path := self._paths.get()) is not None:
            try:
                copy_out(path, self._url)
            except Exception as error:  # noqa: BLE001 - whatever a remote file system raises, training goes on
                self._log(f"{path.name} was not copied to {self._url}; training is not affected: {error}")
            with self._changed:
                self._waiting.remove(path)
                self._changed.notify_all()

    def close(self, patience: float) -> None:
        """Wait for the copies that are due, `patience` seconds at most, and say what was left."""
        deadline = time.monotonic() + patience
        with self._changed:
            while self._waiting and (left := deadline - time.monotonic()) > 0:
                self._changed.wait(left)
            names = ", ".join(path.name for path in self._waiting)
        self._paths.put(None)
        if names:
            what = f"not copied to {self._url} within {patience:g} s (patience_minutes): {names}"
            self._log(f"{what}. Copy them with `cp -r`, or resume")
