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


def copy_out(path: Path, url: str) -> int:
    """Copy a checkpoint folder to `url`/<its name>; bytes sent. What is there already, and equal, is not sent again.

    Raises CheckpointError if what is read back differs from what was sent.
    """
    remote, base = fsspec.core.url_to_fs(url)
    files = [*read_manifest(path)["files"], MANIFEST]  # the manifest last: it says that the rest is there
    sent = 0
    for file in files:
        target = f"{base}/{path.name}/{file}"
        wanted = blake3().update_mmap(path / file).hexdigest()
        if _remote_digest(remote, target) == wanted:
            continue
        remote.makedirs(target.rpartition("/")[0], exist_ok=True)
        remote.put_file(str(path / file), target)
        sent += (path / file).stat().st_size
        if _remote_digest(remote, target) != wanted:
            raise CheckpointError(f"{target} did not arrive as it was sent")
    return sent


def _remote_digest(remote: Any, target: str) -> str | None:
    hasher = blake3()
    try:
        with remote.open(target, "rb") as file:
            while piece := file.read(8 << 20):
                hasher.update(piece)
    except FileNotFoundError:
        return None
    return hasher.hexdigest()


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
