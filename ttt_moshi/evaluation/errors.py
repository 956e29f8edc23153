"""What evaluation can refuse to do."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from ttt_moshi.errors import UserError


class EvaluationError(UserError):
    """A number that cannot be computed. The message says which one, why, and what to do."""


class EvaluationStopped(Exception):  # noqa: N818  a request, no error
    """Whoever asked for the evaluation asked it to stop, between two batches. All ranks raise it together.

    No `UserError`: nothing is wrong, and no task may be recorded as one that could not run.
    """


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turns a failure to write `path` (a full disk, a folder without permission) into an `EvaluationError`."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or error
        raise EvaluationError(
            f"cannot write {path}: {reason}. What was written before is kept: with room for more, the same command "
            "goes on from there"
        ) from error
