"""A folder of conversations that can go on, each under an id that its owner holds."""

from __future__ import annotations

import re
import secrets
import shutil
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from ttt_moshi.files import replacing
from ttt_moshi.inference.errors import InferenceError
from ttt_moshi.inference.session import SessionInfo, check_session, load_session, save_session, session_info
from ttt_moshi.inference.slots import Snapshot

SUFFIX = ".session"
LEFT_SECONDS = 3600.0
"""nobody saves for so long"""
_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")


@dataclass(frozen=True)
class Listed:
    """A file of the folder.

    Args:
        name: the id.
        bytes: its size.
        saved: when, in seconds since 1970.
        info: what it says of itself; None if it cannot be read.
    """

    name: str
    bytes: int
    saved: float
    info: SessionInfo | None


class Sessions:
    """Conversations by id. Whoever knows an id may go on with it, so new ones cannot be guessed.

    Args:
        folder: made on the first save, for its owner alone.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @staticmethod
    def new_id() -> str:
        """An id that nobody can guess (128 bits), and that no command takes for an option."""
        return secrets.token_hex(16)

    def path(self, name: str) -> Path:
        """Where the session `name` is, or would be; never outside of the folder.

        Raises:
            InferenceError: a name that is no id.
        """
        if not _ID.fullmatch(name):
            raise InferenceError(f"{name[:80]!r} is no session id: letters, digits, `_` and `-`, at most 64 of them")
        return self.folder / f"{name}{SUFFIX}"

    def save(self, name: str, snapshot: Snapshot, state_id: str) -> None:
        """Keeps a conversation, in place of an older state of it."""
        path = self.path(name)
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        save_session(snapshot, state_id, path)

    def load(self, name: str, state_id: str) -> Snapshot:
        """A conversation to go on with. Raises InferenceError as `load_session` does."""
        return load_session(self.existing(name), state_id)

    def existing(self, name: str) -> Path:
        """The file of a session that is there; raises InferenceError if it is not."""
        path = self.path(name)
        if not path.is_file():
            raise InferenceError(f"there is no session {name} in {self.folder}")
        return path

    def forget(self, name: str) -> None:
        """Deletes a conversation, if it is there."""
        self.path(name).unlink(missing_ok=True)

    def fork(self, name: str, other: str) -> None:
        """Copies a conversation to another id, which must be free; both go on by themselves from then on.

        Raises:
            InferenceError: there is no such conversation, it is corrupt, or the id is taken.
        """
        source, target = self.existing(name), self.path(other)
        if target.exists():
            raise InferenceError(f"there is a session {other} already: choose another name")
        check_session(source)
        with replacing(target) as temporary:
            temporary.touch(mode=0o600)
            shutil.copyfile(source, temporary)

    def tidy(self) -> None:
        """Deletes what processes left that were killed while they saved, an hour ago or earlier."""
        for path in self.folder.glob(f".*{SUFFIX}.*.tmp") if self.folder.is_dir() else ():
            with suppress(OSError):
                if time.time() - path.stat().st_mtime > LEFT_SECONDS:
                    path.unlink()

    def listed(self) -> list[Listed]:
        """All sessions, the newest first."""
        found = []
        for path in self.folder.glob(f"*{SUFFIX}") if self.folder.is_dir() else ():
            if not _ID.fullmatch(path.name.removesuffix(SUFFIX)):
                continue
            try:
                facts = path.stat()
                info = session_info(path)
            except FileNotFoundError:  # forgotten meanwhile
                continue
            except InferenceError:
                info = None
            found.append(Listed(path.name.removesuffix(SUFFIX), facts.st_size, facts.st_mtime, info))
        return sorted(found, key=lambda one: -one.saved)
