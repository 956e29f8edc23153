"""A second copy of committed checkpoints at any fsspec URL: in the background, resumable, checked by reading back.

The manifest is copied last, so a copy without one is unfinished and a copy with one is whole.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import fsspec
from blake3 import blake3

from ttt_moshi.checkpoint.errors import CheckpointError
from ttt_moshi.checkpoint.layout import MANIFEST
from ttt_moshi.checkpoint.manifest import read_manifest

_PIECE = 8 << 20


def copy_out(path: Path, url: str) -> int:
    """Copy a checkpoint folder to `url`/<its name>; bytes sent. What is there already, and equal, is not sent again.

    Raises CheckpointError if what is read back differs from what was sent.
    """
    remote, base = fsspec.core.url_to_fs(url)
    files = [*read_manifest(path)["files"], MANIFEST]  # the manifest last: it says that the rest is there
    sent = 0
    for file in files:
        target = f"{base}/{path.name}/{file}"
        with open(path / file, "rb") as source:
            wanted = _digest(source)
        if _remote_digest(remote, target) == wanted:
            continue
        remote.makedirs(target.rpartition("/")[0], exist_ok=True)
        with open(path / file, "rb") as source, remote.open(target, "wb") as sink:
            while piece := source.read(_PIECE):
                sent += len(piece)
                sink.write(piece)
        if _remote_digest(remote, target) != wanted:
            raise CheckpointError(f"{target} did not arrive as it was sent")
    return sent


def _digest(file: Any) -> str:
    hasher = blake3()
    while piece := file.read(_PIECE):
        hasher.update(piece)
    return hasher.hexdigest()


def _remote_digest(remote: Any, target: str) -> str | None:
    try:
        with remote.open(target, "rb") as file:
            return _digest(file)
    except FileNotFoundError:
        return None


class Mirror:
    """Copies checkpoints one after the other in a thread of its own. Trouble is logged and never reaches training."""

    def __init__(self, url: str, log: Callable[[str], None]):
        self._url, self._log = url, log
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="checkpoint-mirror")

    def submit(self, path: Path) -> None:
        """Have a committed checkpoint copied when its turn comes."""

        def report(done: Future[int]) -> None:
            error = done.exception()
            if error is not None:
                self._log(f"{path.name} was not copied to {self._url}; training is not affected: {error}")

        self._pool.submit(copy_out, path, self._url).add_done_callback(report)

    def close(self) -> None:
        """Wait for the copies that are due."""
        self._pool.shutdown()
