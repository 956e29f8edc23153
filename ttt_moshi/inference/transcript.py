"""Words and their times, from the text tokens of consecutive frames."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

WORD_START = "▁"


@dataclass(frozen=True)
class Word:
    """A word that Moshi said, and when, in seconds."""

    text: str
    start: float
    end: float


def words(pieces: Sequence[str], frame_rate: float) -> list[Word]:
    """Joins the pieces of frames ("" where there is none). A word lasts from its first piece to its last."""
    found: list[Word] = []
    for frame, piece in enumerate(pieces):
        if not piece:
            continue
        start, end = frame / frame_rate, (frame + 1) / frame_rate
        if piece.startswith(WORD_START) or not found:
            found.append(Word(piece.lstrip(WORD_START), start, end))
        else:
            found[-1] = Word(found[-1].text + piece, found[-1].start, end)
    return [word for word in found if word.text]
