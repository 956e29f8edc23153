"""What every reader of a transcript format gives, before times are repaired and speakers are told apart."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ttt_moshi.data.errors import DataError


@dataclass(slots=True)
class Piece:
    """A word, or several that share their time, as the file has it."""

    text: str
    start: Any
    """seconds; whatever the file says, None where it says nothing"""
    end: Any
    speaker: str | None = None


@dataclass
class RawTranscript:
    """The pieces of a file in its order."""

    format: str
    """for people"""
    pieces: list[Piece]
    timed: bool = True
    """whether the format has times at all"""
    approximate: bool = False
    """whether the file says that its times were guessed"""
    language: str | None = None
    """as the file names it, such as `en`"""
    remarks: list[str] = field(default_factory=list)
    """what the reader had to decide, for people"""


def decode(path: Path, content: bytes) -> tuple[str, list[str]]:
    """The text of a file with `\\n` between lines, and a remark where its encoding was not UTF-8.

    Raises:
        DataError: neither UTF-8, UTF-16 nor Windows-1252.
    """
    remarks = []
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        encoding = "utf-16"
    elif content[:64].count(0) >= min(len(content), 64) // 4 > 0:
        encoding = "utf-16-le" if content[1:2] == b"\0" else "utf-16-be"
    else:
        encoding = "utf-8-sig"
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError:
        if encoding != "utf-8-sig":
            raise DataError(f"{path} is not whole UTF-16; save it as UTF-8") from None
        text = _western(path, content)
        remarks.append("read as Windows-1252, since it is not UTF-8")
    return text.replace("\r\n", "\n").replace("\r", "\n"), remarks


def _western(path: Path, content: bytes) -> str:
    """Windows-1252, which includes Latin-1. Text of other scripts would pass for it, and consist of accents alone."""
    try:
        text = content.decode("cp1252")
    except UnicodeDecodeError:
        text = ""
    letters = [letter for letter in text if letter.isalpha()]
    if not letters or sum(not letter.isascii() for letter in letters) > len(letters) / 3:
        raise DataError(f"{path} is not text in UTF-8, UTF-16 or Windows-1252; save it as UTF-8")
    return text


def clock_seconds(text: str) -> float:
    """`1:02:03.4`, `02:03,4` or `3.4` in seconds."""
    seconds = 0.0
    for part in text.replace(",", ".").split(":"):
        seconds = 60 * seconds + float(part)
    return seconds
