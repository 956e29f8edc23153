"""What evaluation can refuse to do."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from ttt_moshi.errors import UserError

MALFORMED = (
    ValueError,
    KeyError,
    TypeError,
    AttributeError,
    IndexError,
    OverflowError,
    RecursionError,
    csv.Error,
)
"""what may be raised while the content of a file is used that somebody else has written"""


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


@contextmanager
def line_of(path: Path, number: int) -> Iterator[None]:
    """Turns what happens while a line of a file is used into an `EvaluationError` that names both."""
    try:
        yield
    except MALFORMED as error:
        raise EvaluationError(f"{path}, line {number}: {complaint(error)}") from None


@contextmanager
def well_formed(path: Path) -> Iterator[None]:
    """Turns what happens while a corrupt or foreign file is read and used into an `EvaluationError` that names it."""
    try:
        yield
    except OSError as error:
        raise EvaluationError(f"cannot read {path}: {error.strerror or error}") from error
    except MALFORMED as error:
        what = complaint(error)
        joint = "" if what.startswith(("is ", "lacks ", "holds ")) else ":"
        raise EvaluationError(f"{path}{joint} {what}") from None


def complaint(error: Exception) -> str:
    """What is wrong with a file, of one of the errors in `MALFORMED`, in one line."""
    what = " ".join(str(error).split())
    if isinstance(error, json.JSONDecodeError):
        return f"is not valid JSON: {what}"
    if isinstance(error, UnicodeDecodeError):
        return f"is no text in UTF-8 ({what})"
    if isinstance(error, RecursionError):
        return "is nested too deeply"
    if isinstance(error, KeyError):
        return f"lacks {what}"
    if isinstance(error, ValueError | csv.Error):
        return what
    return f"holds something else than it should ({type(error).__name__}: {what})"
