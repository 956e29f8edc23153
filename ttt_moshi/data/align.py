"""Forced alignment: where in a stretch of English speech each of its known words is, by pocketsphinx."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from ttt_moshi.data.recognisers import as_pcm, spoken
from ttt_moshi.data.voiced import Span
from ttt_moshi.extras import need
from ttt_moshi.frames import SAMPLE_RATE

LONGEST = 300.0
"""seconds that are aligned at once; in much longer ones the search loses its way"""

_DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
# A rough sound for each letter, in the phones of the CMU dictionary: near enough to find where a name is said.
_SOUNDS = {
    "a": "AE", "b": "B", "c": "K", "d": "D", "e": "EH", "f": "F", "g": "G", "h": "HH", "i": "IH", "j": "JH", "k": "K",
    "l": "L", "m": "M", "n": "N", "o": "AA", "p": "P", "q": "K", "r": "R", "s": "S", "t": "T", "u": "AH", "v": "V",
    "w": "W", "x": "K", "y": "Y", "z": "Z",
}  # fmt: skip
_AROUND = 0.2
"""seconds of pause that are heard too"""
_UNKNOWN = 0.5
"""share of words outside of the dictionary from which the text is not English"""


class Aligner:
    """One for each recording: what it heard before changes how it hears."""

    def __init__(self) -> None:
        library = need("pocketsphinx", "`--align pocketsphinx`")
        self._decoder: Any = library.Decoder(lm=None, loglevel="FATAL")

    def align(self, words: Sequence[str], samples: np.ndarray) -> list[Span] | None:
        """Times of the words in seconds from the start of one channel, float32 `[n]` at 24 kHz.

        None where they are not found: words that are not English or not said here, or a stretch that is too long.
        """
        tokens = [self._tokens(word) for word in words]
        unknown = sum(not own for own in tokens) + sum(self._guessed(word) for own in tokens for word in own)
        if not words or unknown > _UNKNOWN * len(words) or not all(tokens):
            return None
        self._decoder.set_align_text(" ".join(token for own in tokens for token in own))
        self._decoder.start_utt()
        self._decoder.process_raw(as_pcm(samples), full_utt=True)
        self._decoder.end_utt()
        found = [Span(start, end) for _, start, end in spoken(self._decoder)]
        if len(found) != sum(map(len, tokens)):
            return None
        times, at = [], 0
        for own in tokens:
            times.append(Span(found[at].start, found[at + len(own) - 1].end))
            at += len(own)
        return times

    def _tokens(self, word: str) -> list[str]:
        """A word as the dictionary has it; one that it lacks gets a rough pronunciation, digits are read one by one."""
        tokens = []
        for part in re.findall(r"\d|[^\W\d_][^\W\d_']*(?:'[^\W\d_]+)*", word.lower().replace("’", "'")):
            token = _DIGITS[int(part)] if part.isdecimal() else part
            if self._decoder.lookup_word(token) is None:
                sounds = " ".join(_SOUNDS[letter] for letter in token if letter in _SOUNDS)
                if not sounds:
                    return []
                token = f"{token}~"
                if self._decoder.lookup_word(token) is None:
                    self._decoder.add_word(token, sounds, True)
            tokens.append(token)
        return tokens

    @staticmethod
    def _guessed(token: str) -> bool:
        return token.endswith("~")


def align_in(
    aligner: Aligner, wav: Path, channel: int, words: Sequence[str], spans: Sequence[Span]
) -> list[Span] | None:
    """Times of words that are said somewhere in some spans of a channel of a 24 kHz wav; None where they are not found.

    What is not in the spans is silenced, so that no word is found in the other speaker's leakage.
    """
    start, end = max(0.0, spans[0].start - _AROUND), spans[-1].end + _AROUND
    if end - start > LONGEST:
        return None
    first = round(start * SAMPLE_RATE)
    heard, _ = soundfile.read(wav, round((end - start) * SAMPLE_RATE), first, dtype="float32", always_2d=True)
    mask = np.zeros(len(heard), np.float32)
    for span in spans:
        begin = max(0, round((span.start - _AROUND) * SAMPLE_RATE) - first)
        mask[begin : max(0, round((span.end + _AROUND) * SAMPLE_RATE) - first)] = 1
    found = aligner.align(words, heard[:, channel] * mask)
    return None if found is None else [Span(start + time.start, start + time.end) for time in found]
