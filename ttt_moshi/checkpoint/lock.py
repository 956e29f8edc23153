"""One writer a folder. The lock is the kernel's, so it ends with its process, however that ends.

The file also names its holder (pid, host, boot id, start time), for the message and for file systems without locks. The
lock belongs to the open file: whoever deletes or replaces the file lets another process lock the new one, so a writer
compares the two before every commit.
"""

from __future__ import annotations

import errno
import json
import os
import socket
from contextlib import suppress
from pathlib import Path

from ttt_moshi.checkpoint.errors import CheckpointError, LostLock
from ttt_moshi.checkpoint.files import Files, make_folders, naming, write_fully
from ttt_moshi.checkpoint.layout import LOCK

_UNSUPPORTED = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS)
_TRIES = 10  # openings of a lock file that others keep replacing


class WriterLock:
    """Held from construction until `release`; makes the folder if needed.

    Raises CheckpointError if somebody else holds it.
    """

    def __init__(self, files: Files, root: Path):
        self._files, self._path = files, root / LOCK
        self._made = [folder for folder in (root, *root.parents) if not folder.exists()]  # the innermost first
        try:
            make_folders(files, root)
            self._acquire()
        except BaseException:
            self._remove_folders()
            raise
        try:
            self._sign()
        except BaseException:
            with suppress(OSError):  # the first error is the one to tell
                self.release()
            raise

    def _acquire(self) -> None:
        """Opens the lock file and locks it."""
        for _ in range(_TRIES):
            self._fd = self._files.open_lock(self._path)
            try:
                self._take()
                if self._files.is_at(self._fd, self._path):
                    return
            except BaseException:
                self._files.close(self._fd)
                raise
            self._files.close(self._fd)  # deleted by its last holder between opening and locking
        root = self._path.parent
        raise CheckpointError(f"{self._path} is replaced again and again: another program writes to {root}")

    def _take(self) -> None:
        content = memoryview(bytearray(4096))
        with naming(self._path):
            held = _parse(bytes(content[: self._files.read_into(self._fd, content, 0)]))
        try:
            with naming(self._path):
                self._files.lock(self._fd)
        except OSError as error:
            if error.errno not in (errno.EACCES, errno.EAGAIN, *_UNSUPPORTED):
                raise
            if error.errno not in _UNSUPPORTED or not _is_stale(held):
                who = f"process {held.get('pid', '?')} on {held.get('host', '?')}"
                raise CheckpointError(
                    f"{self._path.parent} is being written by {who}. Stop it or use another run_dir; if it is surely "
                    f"gone, delete {self._path}."
                ) from error

    def _sign(self) -> None:
        with naming(self._path):
            self._files.truncate(self._fd, 0)
            write_fully(self._files, self._fd, json.dumps(_identity(os.getpid())).encode(), 0)

    def check(self) -> None:
        """Raise LostLock if the file that is locked is no longer the one at the lock's path."""
        if not self._files.is_at(self._fd, self._path):
            raise LostLock(
                f"{self._path} was deleted or replaced while this run held it, so another run may be writing here. "
                "This one stops and commits nothing more."
            )

    def __enter__(self) -> WriterLock:
        return self

    def __exit__(self, *details: object) -> None:
        self.release()

    def release(self) -> None:
        """Let others write. A folder that was made for the lock and holds nothing else goes with it."""
        try:
            if (
                self._made
                and self._files.names(self._path.parent) == [LOCK]
                and self._files.is_at(self._fd, self._path)
            ):
                self._files.remove(self._path)
                self._remove_folders()
            else:
                with naming(self._path):
                    self._files.truncate(self._fd, 0)
        finally:
            self._files.close(self._fd)

    def _remove_folders(self) -> None:
        for folder in self._made:
            with suppress(OSError):  # something else is in it, or it was never made
                self._files.rmdir(folder)


def _identity(pid: int) -> dict[str, object]:
    return {"pid": pid, "host": socket.gethostname(), "boot": _boot_id(), "started": _start_time(pid)}


def _boot_id() -> str:
    """What tells this start of the machine from the one before; empty where the system does not say."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


def _start_time(pid: int) -> str:
    """Kernel start time of a process, which tells it from a later one with the same pid; empty if there is none."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return ""


def _parse(data: bytes) -> dict[str, object]:
    try:
        held = json.loads(data or b"{}")
    except ValueError:
        return {}
    return held if isinstance(held, dict) else {}


def _is_stale(held: dict[str, object]) -> bool:
    """Whether the named holder is certainly gone. A holder on another host never is."""
    if not held:
        return True
    pid = held.get("pid")
    me = _identity(os.getpid())
    if held.get("host") != me["host"] or not isinstance(pid, int):
        return False
    return held.get("boot") != me["boot"] or _start_time(pid) != held.get("started")
