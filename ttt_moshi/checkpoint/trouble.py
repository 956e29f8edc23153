"""Telling trouble from corruption.

An error of the operating system says nothing about the bytes on the disk: the operation is tried again a few times,
then UnreadableCheckpoint ends the work and nothing is moved. Bytes that disagree with the manifest are believed to be
corrupt only if a second read, past the page cache, brings them again: the first may have met a fault of this machine's
memory.
"""

from __future__ import annotations

import errno
import logging
import time
from collections.abc import Callable, Collection
from pathlib import Path
from typing import TypeVar

from ttt_moshi.checkpoint.errors import CorruptCheckpoint, UnreadableCheckpoint
from ttt_moshi.checkpoint.files import PAGE, REFUSED, Files, open_direct
from ttt_moshi.checkpoint.memory import aligned_memory

PAUSES = (0.05, 0.2, 0.8)  # seconds before each further try
ABSENT = (errno.ENOENT, errno.ENOTDIR, errno.EISDIR)  # what a missing file answers
_log = logging.getLogger(__name__)
T = TypeVar("T")


def patiently(path: Path, operation: Callable[[], T], passing: Collection[int] = ()) -> T:
    """The operation's result, tried again after errors of the operating system for about a second.

    Errors with a number in `passing`, or that say that a file is absent, are the caller's and come through at once.
    Raises UnreadableCheckpoint, which names `path`.
    """
    for pause in (*PAUSES, None):
        try:
            return operation()
        except OSError as error:
            if error.errno in ABSENT or error.errno in passing:
                raise
            if pause is None:
                raise unreadable(path, error) from error
        time.sleep(pause)
    raise AssertionError


def unreadable(path: Path, error: OSError) -> UnreadableCheckpoint:
    """The error for a path that the operating system cannot read now."""
    return UnreadableCheckpoint(
        f"{path} cannot be read: {error.strerror or error} (tried {len(PAUSES) + 1} times). That says nothing about "
        "what is in it, and nothing was moved or deleted: see to the disk, mount or permissions, then try again."
    )


def confirmed(check: Callable[[bool], T]) -> T:
    """`check(False)`, and if that finds corruption `check(True)`, which must read past the page cache, decides."""
    try:
        return check(False)
    except CorruptCheckpoint as first:
        time.sleep(PAUSES[0])
        result = check(True)
        _log.warning("%s; read again, past the page cache, it is right: this machine's memory may be faulty", first)
        return result


def absent(files: Files, path: Path) -> bool:
    """Whether a file that could not be found is not in the listing of its folder either."""
    return path.name not in patiently(path.parent, lambda: files.names(path.parent))


def missing(files: Files, path: Path, error: OSError, what: str) -> CorruptCheckpoint | UnreadableCheckpoint:
    """The error for a file of a checkpoint that could not be opened: it is gone, or it is there and unreadable."""
    if absent(files, path) or error.errno == errno.EISDIR:
        return CorruptCheckpoint(f"{what}: the file is missing")
    return unreadable(path, error)


def read_start(files: Files, path: Path, length: int | None = None, fresh: bool = False) -> bytes:
    """The first `length` bytes of a file (None: all); fewer if it ends before. `fresh` reads past the page cache.

    Raises UnreadableCheckpoint, and OSError only if the file is absent.
    """

    def attempt(direct: bool) -> bytes:
        size = files.size(path)
        wanted = size if length is None else min(length, size)
        fd, direct = open_direct(files.open, path, direct)
        try:
            if fresh:
                files.forget(fd)
            memory, done = aligned_memory(wanted), 0
            while done < wanted:
                count = files.read_into(fd, memory[done:], done)
                done += count
                if count == 0 or (direct and count % PAGE):
                    break
            return bytes(memory[: min(done, wanted)])
        finally:
            files.close(fd)

    try:
        return patiently(path, lambda: attempt(fresh), REFUSED if fresh else ())
    except OSError as error:
        if error.errno not in REFUSED:
            raise
    return patiently(path, lambda: attempt(False))
