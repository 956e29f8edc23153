"""What people put into a benchmark: names of files, lists of texts, and times in seconds."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from ttt_moshi.evaluation.errors import EvaluationError

ROUNDING_SEC = 0.5
"""by which a time may lie beyond the end of a recording: some are written in whole seconds"""


def told_apart(paths: Iterable[Path], name: Callable[[Path], str]) -> None:
    """Looks whether no two files or folders come to the same name. Raises `EvaluationError` with two that do."""
    known: dict[str, Path] = {}
    for path in paths:
        other = known.setdefault(name(path), path)
        if other != path:
            raise EvaluationError(f"{other} and {path} would both be called {name(path)}: rename or remove one of them")


def within(folder: Path, name: str) -> Path:
    """A file of a published data set, which lies in its folder. Raises `EvaluationError` for a path that leaves it."""
    path = folder / name.replace("\\", "/")
    if not path.resolve().is_relative_to(folder.resolve()):
        raise EvaluationError(f"{folder}: the path {name} leaves the folder")
    return path


def texts(found: Any, what: str) -> tuple[str, ...]:
    """A list of texts; one text is a list of one, and whole numbers are texts too.

    Args:
        what: what the field is called.

    Raises:
        ValueError: something else, an empty list, or a text of nothing but spaces.
    """
    listed: Sequence[Any] = found if isinstance(found, list) else [found]
    if not listed:
        raise ValueError(f"`{what}` is empty")
    for one in listed:
        if not isinstance(one, str | int) or isinstance(one, bool):
            raise ValueError(f'`{what}` holds {one!r}, and is a list of texts: ["...", ...]')
        if not str(one).strip():
            raise ValueError(f"`{what}` holds an empty text")
    return tuple(map(str, listed))


def span(start: Any, end: Any, *, seconds: float | None = None) -> tuple[float, float]:
    """A stretch of a recording, as two times in seconds.

    Args:
        seconds: length of the recording, None where it is not known.

    Raises:
        ValueError: no numbers, a start below 0, an end before the start, or either beyond the recording.
        TypeError: no numbers.
        OverflowError: a number beyond all floats.
    """
    first, last = float(start), float(end)
    last_of_all = math.inf if seconds is None else seconds + ROUNDING_SEC
    if not (0 <= first <= last <= last_of_all and math.isfinite(last)):
        within = "" if seconds is None else f" of a recording of {seconds:.3f} s"
        raise ValueError(f"{first:g} to {last:g} is no stretch{within}, in seconds")
    return first, last
