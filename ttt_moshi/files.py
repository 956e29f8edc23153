"""Small files that are replaced whole: a reader sees the old content or the new, never a part of it.

The checkpoint store has a seam of its own for this (`ttt_moshi.checkpoint.files`).
"""

from __future__ import annotations

import os
import re
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_PARTIAL = re.compile(r"\.[0-9a-f]{32}\.partial")


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
    temporary = path.with_name(f".{uuid.uuid4().hex}.partial")
    try:
        yield temporary
        if durable:
            with temporary.open("rb") as file:
                os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        # Failed writes know no path, and nobody knows the temporary one.
        raise OSError(error.errno, error.strerror or str(error), str(path)) from error
    finally:
        # In a folder that cannot be written any more the first error is the one to tell.
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def is_partial(path: Path) -> bool:
    """Whether this is the temporary file of a replacement that is under way, or whose process was killed."""
    return _PARTIAL.fullmatch(path.name) is not None


def delete_partial(folder: Path) -> None:
    """Deletes what killed processes have left in a folder that only this process writes to."""
    if folder.is_dir():
        for path in filter(is_partial, folder.iterdir()):
            path.unlink(missing_ok=True)
