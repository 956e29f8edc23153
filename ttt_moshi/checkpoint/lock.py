"""One writer a folder. The lock is the kernel's, so it ends with its process, however that ends.

The file also names its holder (pid, host, boot id, start time), for the message and for file systems without locks.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import socket
from pathlib import Path

from ttt_moshi.checkpoint.errors import CheckpointError
from ttt_moshi.checkpoint.layout import LOCK

_UNSUPPORTED = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS)


class WriterLock:
    """Held from construction until `release`. Raises CheckpointError if somebody else holds it."""

    def __init__(self, root: Path):
        self._path = root / LOCK
        self._fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            self._take()
        except BaseException:
            os.close(self._fd)
            raise

    def _take(self) -> None:
        me = _identity(os.getpid())
        held = _parse(os.pread(self._fd, 4096, 0))
        try:
            fcntl.lockf(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in (errno.EACCES, errno.EAGAIN, *_UNSUPPORTED):
                raise
            if error.errno not in _UNSUPPORTED or not _is_stale(held):
                raise self._busy(held) from error
        else:
            # The kernel's lock does not keep one process from itself.
            if held == me:
                raise self._busy(held)
        os.ftruncate(self._fd, 0)
        os.pwrite(self._fd, json.dumps(me).encode(), 0)

    def _busy(self, held: dict[str, object]) -> CheckpointError:
        who = f"process {held.get('pid', '?')} on {held.get('host', '?')}"
        return CheckpointError(
            f"{self._path.parent} is being written by {who}. Stop it or use another run_dir; if it is surely gone, "
            f"delete {self._path}."
        )

    def release(self) -> None:
        """Let others write."""
        os.ftruncate(self._fd, 0)
        os.close(self._fd)


def _identity(pid: int) -> dict[str, object]:
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return {"pid": pid, "host": socket.gethostname(), "boot": boot, "started": _start_time(pid)}


def _start_time(pid: int) -> str:
    """Kernel start time of a process, which tells it from a later one with the same pid; empty if there is none."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except (FileNotFoundError, ProcessLookupError):
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
