"""Does this tokenizer belong to this model, and does it know these words?"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

from ttt_moshi.data import unspaced
from ttt_moshi.data.errors import DataError
from ttt_moshi.data.interleaver import MOSHI_STYLE, TextStyle

MAX_UNKNOWN = 0.1
"""share of Moshi's words with letters that the tokenizer does not have, beyond which nothing useful can be learnt"""


class Tokenizer(unspaced.Tokenizer, Protocol):
    """The part of `sentencepiece.SentencePieceProcessor` that says what its pieces are, too."""

    def serialized_model_proto(self) -> bytes: ...

    def get_piece_size(self) -> int: ...

    def is_control(self, id: int) -> bool: ...

    def is_unused(self, id: int) -> bool: ...

    def is_byte(self, id: int) -> bool: ...


def check_tokenizer(tokenizer: Tokenizer, text_card: int, style: TextStyle = MOSHI_STYLE) -> None:
    """Compares the tokenizer with the text stream of a model that has `text_card` tokens.

    Raises:
        DataError: other numbers of tokens, or words under the ids that mean padding to the model.
    """
    pieces = tokenizer.get_piece_size()
    if pieces != text_card:
        raise DataError(
            f"the tokenizer has {pieces:,} pieces and the model's text stream {text_card:,}: they do not belong "
            "together; `moshi_paths.tokenizer_path` names the model's own"
        )
    for number, meaning in ((style.pad, "no word yet"), (style.epad, "a word comes next")):
        if not (tokenizer.is_control(number) or tokenizer.is_unknown(number) or tokenizer.is_unused(number)):
            raise DataError(
                f"piece {number} of the tokenizer is {tokenizer.id_to_piece(number)!r}, and {number} says "
                f'"{meaning}" in the model\'s text stream: it would learn both as one'
            )


@dataclass(frozen=True)
class Coverage:
    """How well a tokenizer knows some words."""

    words: int
    unknown: int
    """with letters that it does not have, which become one piece that says nothing"""
    in_bytes: int
    """with letters that it spells byte by byte"""
    example: str
    """the most frequent of either"""

    @property
    def told(self) -> str:
        """For people."""
        return (
            f"of {self.words:,} words of the agent the tokenizer does not know {self.unknown:,} and spells "
            f"{self.in_bytes:,} byte by byte, such as {self.example!r}"
        )

    @property
    def foreign(self) -> bool:
        """Whether the tokenizer is one of another language or spelling."""
        return self.unknown > MAX_UNKNOWN * self.words


def coverage(tokenizer: Tokenizer, words: Iterable[str], style: TextStyle = MOSHI_STYLE) -> Coverage:
    """Counts words by what becomes of them."""
    counts = Counter(words)
    unknown, in_bytes = Counter[str](), Counter[str]()
    for word, count in counts.items():
        pieces = unspaced.bare_tokens(word, tokenizer) if style.no_whitespace_before_word else tokenizer.encode(word)
        if any(tokenizer.is_unknown(piece) for piece in pieces):
            unknown[word] = count
        elif any(tokenizer.is_byte(piece) for piece in pieces):
            in_bytes[word] = count
    worst = (unknown or in_bytes).most_common(1)
    return Coverage(counts.total(), unknown.total(), in_bytes.total(), worst[0][0] if worst else "")
