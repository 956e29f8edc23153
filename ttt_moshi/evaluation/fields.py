"""What people write into the files of a benchmark: lists of texts, and times in seconds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


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
