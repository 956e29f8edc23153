"""Text of scripts that put no spaces between words (Japanese, Chinese, Thai, ...): where it may be cut, and when its
tokens are said.

Such text is cut into characters where nothing better is known; the model's own tokenizer then joins them as it likes.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from itertools import pairwise
from typing import Protocol

import numpy as np

WORD_START = "▁"
"""how SentencePiece writes a space"""
_PAUSE = 0.5
"""seconds of silence that no token reaches over"""
_RANGES = (
    (0x0E00, 0x0EFF),  # Thai, Lao
    (0x1000, 0x109F),  # Myanmar
    (0x1780, 0x17FF),  # Khmer
    (0x3005, 0x3007),
    (0x3021, 0x30FF),  # Hiragana, Katakana
    (0x31F0, 0x31FF),
    (0x3400, 0x4DBF),
    (0x4E00, 0x9FFF),  # Han
    (0xF900, 0xFAFF),
    (0xFF66, 0xFF9F),  # Katakana of half width
    (0x20000, 0x3FFFF),
)


class Tokenizer(Protocol):
    """The part of `sentencepiece.SentencePieceProcessor` that is used."""

    def encode(self, text: str) -> list[int]: ...

    def id_to_piece(self, id: int) -> str: ...

    def piece_to_id(self, piece: str) -> int: ...

    def is_unknown(self, id: int) -> bool: ...


class Timed(Protocol):
    """A word or stretch of text with times in seconds."""

    @property
    def text(self) -> str: ...

    @property
    def start(self) -> float: ...

    @property
    def end(self) -> float: ...


def is_unspaced(letter: str) -> bool:
    """Whether a character belongs to a script without spaces between words."""
    code = ord(letter)
    return any(low <= code <= high for low, high in _RANGES)


def is_unspaced_text(text: str) -> bool:
    """Whether more than half of the letters do."""
    letters = [letter for letter in text if letter.isalpha()]
    return 2 * sum(map(is_unspaced, letters)) > len(letters)


def split_words(text: str) -> list[str]:
    """The words of a text, as spaces part them; in scripts without spaces each character with what belongs to it."""
    found: list[str] = []
    for word in text.split():
        found.append("")
        for letter in word:
            if found[-1] and _begins(letter, found[-1]):
                found.append("")
            found[-1] += letter
    return found


def _begins(letter: str, before: str) -> bool:
    """Whether a character begins another word than the one it follows."""
    kind = unicodedata.category(letter)
    if kind.startswith("M"):
        return False
    if is_unspaced(letter) or kind in ("Ps", "Pi"):
        return any(map(str.isalnum, before)) and (is_unspaced(letter) or any(map(is_unspaced, before)))
    return letter.isalnum() and any(map(is_unspaced, before))


def timed_tokens(words: Sequence[Timed], tokenizer: Tokenizer) -> list[list[tuple[float, int]]]:
    """Tokens with the seconds at which they begin, run by run of words between which nobody pauses.

    The words of a run are joined without spaces, but between two words of other scripts, and encoded together. A token
    begins when its first letter is said; the letters of a word share its time evenly.
    """
    runs: list[list[Timed]] = []
    for word in words:
        if runs and word.start - runs[-1][-1].end < _PAUSE:
            runs[-1].append(word)
        else:
            runs.append([word])
    return [_timed_run(run, tokenizer) for run in runs]


def join_words(texts: Sequence[str]) -> str:
    """Words as one text: spaces only between two words of scripts that have them."""
    parts = [texts[0]] if texts else []
    for before, after in pairwise(texts):
        spaced = not (is_unspaced(before[-1]) or is_unspaced(after[0])) and before[-1].isascii() and after[0].isalnum()
        parts += [" ", after] if spaced else [after]
    return "".join(parts)


def bare_tokens(text: str, tokenizer: Tokenizer) -> list[int]:
    """The tokens of a text that continues another one: without the space that SentencePiece puts in front."""
    tokens = tokenizer.encode(text)
    if not tokens:
        return tokens
    first = tokenizer.id_to_piece(tokens[0])
    if first == WORD_START:
        return tokens[1:]
    if first.startswith(WORD_START):
        bare = tokenizer.piece_to_id(first.removeprefix(WORD_START))
        if not tokenizer.is_unknown(bare):
            return [bare, *tokens[1:]]
    return tokens


def _timed_run(run: Sequence[Timed], tokenizer: Tokenizer) -> list[tuple[float, int]]:
    tokens = bare_tokens(join_words([word.text for word in run]), tokenizer)
    lengths = np.cumsum([0, *(_letters(tokenizer.id_to_piece(token)) for token in tokens)])
    # The tokenizer may write other letters than the transcript (full width as half width): shares of both agree.
    shares = lengths[:-1] / max(1, lengths[-1])
    said = np.concatenate([[0.0], np.cumsum([len(word.text) for word in run])])
    places = shares * said[-1]
    index = np.clip(np.searchsorted(said, places, side="right") - 1, 0, len(run) - 1)
    found = []
    for token, place, which in zip(tokens, places.tolist(), index.tolist(), strict=True):
        word = run[which]
        inside = (place - said[which]) / max(1, len(word.text))
        found.append((float(word.start + inside * (word.end - word.start)), token))
    return found


def _letters(piece: str) -> int:
    """Letters that a piece adds to the text. Of a letter in several byte pieces the first one counts."""
    byte = byte_of(piece)
    if byte is not None:
        return int(not 0x80 <= byte < 0xC0)
    return len(piece.replace(WORD_START, ""))


def byte_of(piece: str) -> int | None:
    """The value of a piece such as `<0xE3>`, a byte of a letter that the tokenizer does not have; None of others."""
    if len(piece) == 6 and piece.startswith("<0x") and piece.endswith(">"):
        try:
            return int(piece[3:5], 16)
        except ValueError:
            return None
    return None
