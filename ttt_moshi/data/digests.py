"""BLAKE3 digests of files, and lengths of recordings, remembered so that nothing is read twice.

They are kept in a file of lines, to which every process only appends. A line carries a digest of itself: one that
was cut short, mixed with another process's or corrupt is passed over, and costs no more than reading that file again.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

import blake3

from ttt_moshi.data.addresses import made_beside, url_of
from ttt_moshi.data.errors import PassingError
from ttt_moshi.data.remote import local, version_of
from ttt_moshi.data.shards import container, read_stored

_DEFAULT_FOLDER = ".mimi_codes"
FILE_NAME = ".digests.jsonl"

_SETTLED_NS = 2_000_000_000
"""a file that changed less than two seconds ago might change again without its time stamp showing it"""
_BLOCK = 1 << 20

_log = logging.getLogger(__name__)

State = tuple[int, int, int, int]
"""size, modification and status change in ns, inode: equal where a file has not been touched"""


def cache_folder(folder: Path, chosen: Path | None) -> Path:
    """Where digests and codes of the files named in a jsonl file of `folder` are kept."""
    return chosen or made_beside(folder) / _DEFAULT_FOLDER


def file_digest(path: Path) -> str:
    """64 hex digits of a file's content.

    Raises:
        PassingError: a file that cannot be read.
    """
    digest = blake3.blake3()
    try:
        if container(path) != path:
            return blake3.blake3(read_stored(path)).hexdigest()
        with local(path).open("rb") as file:
            while block := file.read(_BLOCK):
                digest.update(block)
    except OSError as error:
        raise PassingError(f"cannot read {path}: {error.strerror or error}") from error
    return digest.hexdigest()


class Digests:
    """Digests by path, size, times and inode, kept in `folder`. Several processes and threads may share the folder.

    A folder that cannot be written costs a warning and the time to read everything at the next start.
    """

    def __init__(self, folder: Path):
        self._file = folder / FILE_NAME
        self._known: dict[str, tuple[State, str]] = {}  # by what is known of which file
        self._read_to = 0
        self._can_write = True
        self._lock = threading.Lock()

    def of(self, path: Path) -> str:
        """64 hex digits of a file's content.

        Raises:
            PassingError: a file that cannot be read.
        """
        return self.remember(path, "blake3", file_digest)

    def remember(self, path: Path, what: str, find: Callable[[Path], str]) -> str:
        """Something else that a file's content decides and that takes long to find, such as how long it sounds.

        Raises:
            PassingError: a file that cannot be read; and whatever `find` raises.
        """
        name = f"{what} {os.path.abspath(path)}"
        with self._lock:
            state = state_of(path)
            found = self._known.get(name)
            if found is None or found[0] != state:
                self._read_news()
                found = self._known.get(name)
            if found is not None and found[0] == state:
                return found[1]
            began = time.time_ns()
            value = find(path)
            # Only what has not changed meanwhile, nor so short a time before that nobody could tell.
            if state == state_of(path) and began - max(state[1], state[2]) > _SETTLED_NS:
                self._known[name] = (state, value)
                self._append(name, state, value)
            return value

    def _read_news(self) -> None:
        """Takes what was added to the file since it was last looked at, by this process or by others."""
        try:
            with self._file.open("rb") as file:
                if os.fstat(file.fileno()).st_size < self._read_to:
                    self._read_to = 0
                file.seek(self._read_to)
                news = file.read()
        except OSError:
            return
        whole = news[: news.rfind(b"\n") + 1]
        self._read_to += len(whole)
        for line in whole.splitlines():
            entry = _unseal(line)
            if entry is not None:
                name, state, value = entry
                self._known[name] = (state, value)

    def _append(self, name: str, state: State, value: str) -> None:
        if not self._can_write:
            return
        try:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(self._file, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
            try:
                # The line break in front ends a line that some other process could not finish.
                os.write(descriptor, b"\n" + _seal(name, state, value) + b"\n")
            finally:
                os.close(descriptor)
        except OSError as error:
            self._can_write = False
            _log.warning(
                "digests cannot be remembered in %s (%s): every start reads all recordings; "
                "`data.code_cache_dir` names another folder",
                self._file.parent,
                error.strerror or error,
            )


def state_of(path: Path) -> State:
    """Equal where a file, or the tar file around it, has not been touched. Raises PassingError where there is none."""
    try:
        file = container(path)
        if url_of(file) is not None:
            return _state_at_url(file)
        stat = file.stat()
    except OSError as error:
        raise PassingError(f"cannot read {path}: {error.strerror or error}") from error
    return stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino


def _state_at_url(path: Path) -> State:
    """What the store says stands for the times, so that nothing is fetched to know that nothing has changed."""
    version = version_of(path)
    if version is None:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))
    if version.mark is None:
        return 0, time.time_ns(), 0, 0  # never equal: such a file is read at every start
    return version.size or 0, 0, 0, int(blake3.blake3(version.mark.encode()).hexdigest()[:15], 16)


def _seal(name: str, state: State, value: str) -> bytes:
    entry = json.dumps([name, list(state), value])
    return json.dumps([entry, blake3.blake3(entry.encode()).hexdigest()[:16]]).encode()


def _unseal(line: bytes) -> tuple[str, State, str] | None:
    """What a line says, or None for one that is not whole."""
    try:
        entry, seal = json.loads(line)
        if blake3.blake3(entry.encode()).hexdigest()[:16] != seal:
            return None
        name, (size, modified, changed, inode), value = json.loads(entry)
    except (ValueError, TypeError, AttributeError):
        return None
    return name, (size, modified, changed, inode), value
