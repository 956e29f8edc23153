"""Every operation of this room on local files. Nothing else in the room creates, writes, renames, deletes or locks.

The fault tests replace `Files` by a subclass that counts, fails, kills or records, so a guarantee proven there holds
for every path through the code. Each method is one operation that can be interrupted as a whole.
"""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

REFUSED = (errno.EINVAL, errno.EOPNOTSUPP)  # what a file system without direct access answers
DIRECT = getattr(os, "O_DIRECT", 0)  # 0 on systems that have none, such as macOS
PAGE = 4096  # alignment that O_DIRECT asks of offsets, lengths and memory on every common device


class Files:
    """The real file system. Paths are absolute; errors are the operating system's own (`OSError`)."""

    def mkdir(self, path: Path) -> None:
        """Make one folder whose parent exists. An existing folder is fine."""
        path.mkdir(exist_ok=True)

    def create(self, path: Path, direct: bool = False) -> int:
        """Open for writing, making the file if needed and keeping what it holds (several ranks fill one export)."""
        flags = os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | (DIRECT if direct else 0)
        return os.open(path, flags, 0o666)

    def allocate(self, fd: int, size: int) -> None:
        """Reserve `size` bytes, so that a full disk is noticed before the first byte is written."""
        if not hasattr(os, "posix_fallocate"):
            return
        try:
            os.posix_fallocate(fd, 0, size)
        except OSError as error:
            # Some network file systems cannot reserve; there the write itself reports a full disk.
            if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS):
                raise

    def write(self, fd: int, data: bytes | memoryview, offset: int) -> int:
        """Write at `offset`; the number of bytes that were taken, which may be fewer than given."""
        return os.pwrite(fd, data, offset)

    def push(self, fd: int, offset: int, size: int) -> None:
        """Start writing a range back to the disk and drop it from the page cache, to keep the final fsync short."""
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(fd, offset, size, os.POSIX_FADV_DONTNEED)

    def truncate(self, fd: int, size: int) -> None:
        """Cut the file to `size` bytes."""
        os.ftruncate(fd, size)

    def sync(self, fd: int) -> None:
        """Make the file's bytes durable. A failure is final: the kernel may have dropped the dirty pages."""
        os.fsync(fd)

    def close(self, fd: int) -> None:
        """Close a descriptor."""
        os.close(fd)

    def sync_folder(self, path: Path) -> None:
        """Make the folder's entries (names, renames, deletions) durable."""
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            with naming(path):
                os.fsync(fd)
        finally:
            os.close(fd)

    def open_lock(self, path: Path) -> int:
        """Open a lock file for reading and writing, making it if needed."""
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)

    def lock(self, fd: int) -> None:
        """Take the kernel's exclusive lock on an open file, or raise at once. It ends with this process."""
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def is_at(self, fd: int, path: Path) -> bool:
        """Whether an open file is the one that `path` leads to."""
        try:
            return os.path.samestat(os.fstat(fd), os.stat(path))
        except FileNotFoundError:
            return False

    def rename(self, source: Path, target: Path) -> None:
        """Rename within one file system, atomically."""
        os.rename(source, target)

    def remove(self, path: Path) -> None:
        """Delete one file."""
        os.unlink(path)

    def rmdir(self, path: Path) -> None:
        """Delete one empty folder."""
        os.rmdir(path)

    def append(self, path: Path, data: bytes) -> None:
        """Add a line to an advisory log."""
        with naming(path), open(path, "ab", buffering=0) as file:
            file.write(data)

    def free_bytes(self, path: Path) -> int:
        """Bytes that this user may still write under `path`."""
        info = os.statvfs(path)
        return info.f_bavail * info.f_frsize

    def open(self, path: Path, direct: bool = False) -> int:
        """Open for reading; `direct` past the page cache."""
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC | (DIRECT if direct else 0))

    def read_into(self, fd: int, buffer: memoryview, offset: int) -> int:
        """Fill `buffer` from `offset`; the number of bytes read, 0 at the end of the file."""
        return os.preadv(fd, [buffer], offset)

    def forget(self, fd: int) -> None:
        """Drop what the page cache holds of a file that nobody is writing, so that the next read asks the disk."""
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)

    def size(self, path: Path) -> int:
        """Size of a file in bytes."""
        return path.stat().st_size

    def names(self, path: Path) -> list[str]:
        """Sorted names in a folder; an absent folder has none."""
        try:
            return sorted(os.listdir(path))
        except FileNotFoundError:
            return []


def open_direct(opening: Callable[[Path, bool], int], path: Path, direct: bool) -> tuple[int, bool]:
    """Open with `Files.create` or `Files.open`, past the page cache if `direct` and allowed: descriptor, whether so."""
    direct = direct and bool(DIRECT)
    try:
        return opening(path, direct), direct
    except OSError as error:
        if not direct or error.errno not in REFUSED:
            raise
    return opening(path, False), False


def write_fully(files: Files, fd: int, data: bytes | memoryview, offset: int) -> None:
    """Write all of `data` at `offset`."""
    view = memoryview(data).cast("B")
    while len(view):
        taken = files.write(fd, view, offset)
        view, offset = view[taken:], offset + taken


def make_folders(files: Files, path: Path) -> None:
    """Make a folder and those above it that are missing, durably."""
    for missing in [folder for folder in (path, *path.parents) if not folder.exists()][::-1]:
        files.mkdir(missing)
        files.sync_folder(missing.parent)


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Errors of the operating system inside name the path: those about a descriptor do not by themselves."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            error.filename = str(path)
        raise


def write_file(files: Files, path: Path, data: bytes) -> None:
    """Write a small file and make its bytes (not yet its name) durable."""
    fd = files.create(path)
    try:
        with naming(path):
            write_fully(files, fd, data, 0)
            files.truncate(fd, len(data))
            files.sync(fd)
    finally:
        files.close(fd)


def replace_file(files: Files, path: Path, data: bytes) -> None:
    """Write a small file so that its name always leads to the old content or the new, never to a mixture."""
    temporary = path.with_name(f".{path.name}.tmp")
    write_file(files, temporary, data)
    files.rename(temporary, path)


def remove_tree(files: Files, path: Path) -> None:
    """Delete a folder and all in it, or a file. Links, `path` itself too, are removed, never followed."""
    if path.is_symlink() or not path.is_dir():
        files.remove(path)
        return
    for name in files.names(path):
        remove_tree(files, path / name)
    files.rmdir(path)
