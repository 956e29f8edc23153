"""What evaluation can refuse to do."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from ttt_moshi.errors import UserError
from ttt_moshi.files import read_text


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
    except KeyError as error:
        raise EvaluationError(f"{path}, line {number}: lacks {error}") from None
    except (ValueError, TypeError, AttributeError, OverflowError) as error:
        raise EvaluationError(f"{path}, line {number}: {error}") from None


def json_lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """The JSON objects of a file, one a line, with their lines' numbers; empty lines are left out.

    Raises:
        EvaluationError: a line that is no JSON object, a file that cannot be read.
    """
    with well_formed(path):
        lines = read_text(path, encoding="utf-8-sig").split("\n")  # texts may hold other ends of lines
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        with line_of(path, number):
            values = json.loads(line)
            if not isinstance(values, dict):
                raise ValueError("is no JSON object")
        yield number, values


@contextmanager
def well_formed(path: Path) -> Iterator[None]:
    """Turns what happens while a corrupt or foreign file is read and used into an `EvaluationError` that names it."""
    try:
        yield
    except OSError as error:
        raise EvaluationError(f"cannot read {path}: {error.strerror or error}") from error
    except json.JSONDecodeError as error:
        raise EvaluationError(f"{path} is not valid JSON: {error}") from None
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, OverflowError) as error:
        # Text that is not UTF-8 is a ValueError too.
        what = " ".join(str(error).split())
        raise EvaluationError(f"{path} is not what an evaluation writes ({type(error).__name__}: {what})") from None
