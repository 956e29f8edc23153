"""Standard output that takes every name of a file, and what is said where it takes nothing any more."""

from __future__ import annotations

import codecs
import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, TextIO

from rich.cells import cell_len, set_cell_size

READER_GONE = 128 + 13
"""exit status where the reader of a pipe has gone, as in `ckpt ls RUN | head -1`: what a shell says of SIGPIPE"""


def take_every_character() -> None:
    """What an output's encoding lacks is written as an escape; bytes of a file's name that are no text, as they are."""
    codecs.register_error("ttt_moshi", _written)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a notebook's has not
            stream.reconfigure(errors="ttt_moshi")


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines with columns below one another, for names that are to be copied: as long as they are, where a table would
    cut them at the width of the terminal (80 in a pipe). Print them with `soft_wrap`."""
    widths = [max(map(cell_len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(set_cell_size(*cell) for cell in zip(row, widths, strict=True)).rstrip() for row in rows]


class Lasting:
    """A stream whose end stops nobody: what it does not take any more is lost, the work behind it goes on."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        with suppress(OSError):
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with suppress(OSError):
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def has_failed_with(error: OSError) -> bool:
    """Whether standard output is what failed, which is then closed: an empty line to it fails again."""
    if error.filename is not None or sys.stdout is None:
        return False
    try:
        sys.stdout.flush()
        os.write(sys.stdout.fileno(), b"\n")
    except OSError as again:
        if again.errno == error.errno:
            # The interpreter flushes once more when it ends, and would say so in lines of its own.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return True
    return False


def _written(error: UnicodeError) -> tuple[str | bytes, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    characters = error.object[error.start : error.end]
    if all("\udc80" <= character <= "\udcff" for character in characters):
        return codecs.lookup_error("surrogateescape")(error)
    return codecs.lookup_error("backslashreplace")(error)
