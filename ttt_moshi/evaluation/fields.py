"""What people write into the files of a benchmark: lists of texts, and times in seconds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

ROUNDING_SEC = 0.5
"""by which a time may lie beyond the end of a recording: some are written in whole seconds"""


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
