"""Words and their times, from the text tokens of consecutive frames."""

from __future__ import annotations

import codecs
from collections.abc import Sequence

from ttt_moshi.data.unspaced import WORD_START, byte_of, is_unspaced
from ttt_moshi.data.words import TimedWord


class PieceReader:
    """Text for people from one piece after another: bytes become letters when the last one of a letter is there.

    Bytes that are no letter become U+FFFD, as everywhere.
    """

    def __init__(self) -> None:
        self._bytes = codecs.getincrementaldecoder("utf-8")("replace")

    def read(self, piece: str) -> str:
        """What a piece adds, "\u2581" for a space; "" for bytes of a letter that is not whole yet."""
        byte = byte_of(piece)
        return self._bytes.decode(bytes([byte])) if byte is not None else self.rest() + piece

    def rest(self) -> str:
        """What is left of a letter that will not become whole."""
        return self._bytes.decode(b"", final=True)


def words(pieces: Sequence[str], frame_rate: float, delay: int = 0) -> list[TimedWord]:
    """Joins the pieces of frames ("" where there is none). A word lasts from its first piece to its last.

    In scripts without spaces every piece is a word: nothing tells more.

    Args:
        delay: frames after which words are written that are heard; their times are those of hearing them.
    """
    found: list[TimedWord] = []
    reader = PieceReader()
    began: float | None = None  # of a letter that comes in bytes
    for frame, piece in enumerate(pieces):
        if not piece:
            continue
        start, end = frame / frame_rate, (frame + 1) / frame_rate
        if byte_of(piece) is None and began is not None:
            _add(found, reader.rest(), began, start)
            began = None
        text = reader.read(piece)
        if not text:
            began = start if began is None else began
            continue
        _add(found, text, start if began is None else began, end)
        began = None
    if began is not None:
        _add(found, reader.rest(), began, len(pieces) / frame_rate)
    early = delay / frame_rate
    moved = (TimedWord(word.text, max(0.0, word.start - early), word.end - early) for word in found)
    # What is there earlier than anything was heard is a greeting of nobody.
    return [word for word in moved if word.text and word.end > 0.0]


def _add(found: list[TimedWord], text: str, start: float, end: float) -> None:
    bare = text.lstrip(WORD_START)
    if not found or text.startswith(WORD_START) or (bare and is_unspaced(bare[0])):
        found.append(TimedWord(bare, start, end))
    else:
        found[-1] = TimedWord(found[-1].text + text, found[-1].start, end)
