"""Faults from outside: a Python process that finds this file on its path fails, or is signalled, at chosen operations.

`APPLICATION_FAULTS` is a JSON list of faults; each counts the operations `call` whose path contains `path`, and from
the `nth` on, `times` of them (null: all that follow) fail with `errno` or are preceded by `signal`. With `after`, an
operation, a part of a path and a number, they are counted only once that has been met so often.
An `open` that may make its file counts as `create` too.
With `APPLICATION_TRACE=FILE` every operation below `APPLICATION_ROOTS` is written to that file, one JSON array a line.
"""

from __future__ import annotations

import builtins
import errno
import io
import json
import os
import signal
import sys
import threading
from typing import Any

CALLS = (
    "open", "stat", "lstat", "listdir", "scandir", "mkdir", "rename", "replace", "unlink", "rmdir", "fsync", "pread",
    "preadv", "pwrite", "read", "write", "ftruncate", "posix_fallocate", "statvfs",
)  # fmt: skip
_real_kill, _real_readlink, _real_write = os.kill, os.readlink, os.write


def install(faults: list[dict[str, Any]], roots: tuple[str, ...], trace: str | None = None) -> None:
    """Wraps the file operations of `os` and `open`, and looks at those below the folders `roots` only."""
    counts, waiting = [0] * len(faults), [list(fault["after"] or ("", "", 0)) for fault in faults]
    lock = threading.RLock()
    log = os.open(trace, os.O_WRONLY | os.O_CREAT | os.O_APPEND) if trace else None

    def meet(call: str, paths: list[str], named: bool) -> None:
        """Counts one operation, and does what a fault says; errors carry a path only where the kernel's would."""
        if not any(path.startswith(roots) for path in paths):
            return
        if log is not None:
            _real_write(log, (json.dumps([call, *paths]) + "\n").encode())
        for i, fault in enumerate(faults):
            before, part, more = waiting[i]
            if more:
                waiting[i][2] -= before == call and any(part in path for path in paths)
                continue
            if fault["call"] != call or not any(fault["path"] in path for path in paths):
                continue
            with lock:
                counts[i] += 1
                count = counts[i] - fault["nth"]
            if count < 0 or (fault["times"] is not None and count >= fault["times"]):
                continue
            if fault["signal"] is not None:
                _real_kill(os.getpid(), getattr(signal, fault["signal"]))
            else:
                number = getattr(errno, fault["errno"])
                raise OSError(number, os.strerror(number), *(paths[:1] if named else []))

    def wrap(call: str) -> None:
        original = getattr(os, call)

        def wrapped(*args: Any, **kwargs: Any) -> Any:
            first = args[0] if args else kwargs.get("path", kwargs.get("src", "."))
            paths = [_path(first)]
            if call in ("rename", "replace"):
                paths.append(_path(args[1] if len(args) > 1 else kwargs["dst"]))
            if call == "open" and len(args) > 1 and args[1] & os.O_CREAT:
                meet("create", paths, named=True)
            meet(call, paths, named=not isinstance(first, int))
            return original(*args, **kwargs)

        setattr(os, call, wrapped)

    for call in CALLS:
        wrap(call)
    real_open = io.open

    class Raw(io.FileIO):
        """A file whose reads and writes are seen."""

        def readinto(self, buffer: Any) -> Any:
            meet("read", [str(self.name)], named=False)
            return super().readinto(buffer)

        def readall(self) -> Any:
            meet("read", [str(self.name)], named=False)
            return super().readall()

        def write(self, data: Any) -> Any:
            meet("write", [str(self.name)], named=False)
            return super().write(data)

    def opened(
        file: Any, mode: str = "r", buffering: int = -1, encoding: Any = None, errors: Any = None, newline: Any = None,
        closefd: bool = True, opener: Any = None,
    ) -> Any:  # fmt: skip
        if isinstance(file, int) or opener is not None or not _path(file).startswith(roots):
            return real_open(file, mode, buffering, encoding, errors, newline, closefd, opener)
        if not mode.startswith("r"):
            meet("create", [_path(file)], named=True)
        meet("open", [_path(file)], named=True)
        raw = Raw(_path(file), mode.replace("b", "").replace("t", ""))
        if buffering == 0:
            return raw
        kind: Any = io.BufferedRandom if "+" in mode else io.BufferedReader if "r" in mode else io.BufferedWriter
        buffered = kind(raw)
        if "b" in mode:
            return buffered
        return io.TextIOWrapper(buffered, encoding, errors, newline, line_buffering=buffering == 1)

    builtins.open = opened  # type: ignore[assignment]
    io.open = opened  # type: ignore[assignment]


def _path(value: Any) -> str:
    """The absolute path that an operation's argument means; an open descriptor's is the kernel's word."""
    if isinstance(value, int):
        try:
            return _real_readlink(f"/proc/self/fd/{value}")
        except OSError:
            return ""
    try:
        return os.path.abspath(os.fsdecode(os.fspath(value)))
    except (TypeError, ValueError):
        return ""


if "APPLICATION_FAULTS" in os.environ:
    if (trouble := sys.modules.get("ttt_moshi.checkpoint.trouble")) is not None:
        trouble.PAUSES = (0.0,) * len(trouble.PAUSES)  # in a warm process: as many tries, without the second of pauses
    install(
        json.loads(os.environ["APPLICATION_FAULTS"]),
        tuple(os.environ["APPLICATION_ROOTS"].split(os.pathsep)),
        os.environ.get("APPLICATION_TRACE"),
    )
