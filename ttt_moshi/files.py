"""Small files: read whole or not at all, replaced whole; a reader sees the old content or the new, never a part of it.

The checkpoint store has a seam of its own for this (`ttt_moshi.checkpoint.files`).
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_PARTIAL = re.compile(r"\.[0-9a-f]{32}\.partial")
# What a disk, a mount or a busy machine says for a moment; what is wrong with the path itself does not pass.
_PASSING = {errno.EIO, errno.ETIMEDOUT, errno.ESTALE, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EAGAIN}
_PAUSES = (0.1, 0.4)  # seconds before each further attempt


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Gives an OSError inside the path that a failed read or write itself does not know."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror or str(error), str(path)) from error


def read_bytes(path: Path) -> bytes:
    """A whole file. Trouble that may pass is waited for, half a second at most.

    Raises:
        OSError: with the path in it, which a failed read itself does not know.
    """
    with naming(path):
        for pause in _PAUSES:
            try:
                return path.read_bytes()
            except OSError as error:
                if error.errno not in _PASSING:
                    raise
                time.sleep(pause)
        return path.read_bytes()


def read_text(path: Path, encoding: str = "utf-8", errors: str = "strict") -> str:
    """`read_bytes` as text, with every end of a line as `\n`. Raises as it, and UnicodeDecodeError."""
    return read_bytes(path).decode(encoding, errors).replace("\r\n", "\n").replace("\r", "\n")


def write_atomically(path: Path, data: bytes, *, durable: bool = True) -> None:
    """Writes a file under a unique temporary name in the same folder and renames it over `path`.

    Args:
        durable: whether the content is forced to the disk before the rename.

    Raises:
        OSError: with the path in it; what was there is untouched and nothing is left beside it.
    """
    with replacing(path, durable=durable) as temporary:
        temporary.write_bytes(data)


@contextmanager
def replacing(path: Path, *, durable: bool = True) -> Iterator[Path]:
    """`write_atomically` for what writes to a path itself: gives the temporary one, renamed if the body succeeds."""
    temporary = partial_beside(path)
    try:
        with naming(path):  # nobody knows the temporary one
            yield temporary
            if durable:
                with temporary.open("rb") as file:
                    os.fsync(file.fileno())
            temporary.replace(path)
    finally:
        # In a folder that cannot be written any more the first error is the one to tell.
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


@contextmanager
def only_writer(path: Path) -> Iterator[bool]:
    """Holds the lock file `path` while the body runs, and deletes it then; gives False where another process holds it.

    The lock is the kernel's: it ends with its process, however that ends.
    """
    while True:
        with path.open("a") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield False
                return
            if not _is_at(file.fileno(), path):
                continue  # its last holder has deleted it between opening and locking
            try:
                yield True
            finally:
                path.unlink(missing_ok=True)
            return


def _is_at(fd: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(fd), path.stat())
    except FileNotFoundError:
        return False


def try_folder(folder: Path) -> None:
    """Makes a folder and writes into it, and leaves all as it was.

    Raises:
        OSError: that cannot be done.
    """
    made = [path for path in (folder, *folder.parents) if not os.path.lexists(path)]
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"written")
            file.flush()
    finally:
        for path in made:
            with suppress(OSError):  # another process may have put something there
                path.rmdir()


def partial_beside(path: Path) -> Path:
    """A temporary name that nobody else has, for what is to be renamed to `path` when it is whole."""
    return path.with_name(f".{uuid.uuid4().hex}.partial")


def is_partial(path: Path) -> bool:
    """Whether this is the temporary file of a replacement that is under way, or whose process was killed."""
    return _PARTIAL.fullmatch(path.name) is not None


def delete_partial(folder: Path) -> None:
    """Deletes what killed processes have left in a folder that only this process writes to."""
    if folder.is_dir():
        for path in filter(is_partial, folder.iterdir()):
            path.unlink(missing_ok=True)
