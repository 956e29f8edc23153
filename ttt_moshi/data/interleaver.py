"""The text stream: one token per frame, written where the words are spoken.

The conventions are those of Moshi's own data (arXiv:2410.00037, section 3.4.4): a word's tokens are written one per
frame from the frame in which it starts, PAD fills the frames between words, and EPAD replaces the last PAD before a
word. They hold for the words of the main speaker alone.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ttt_moshi.data.transcripts import MAIN_SPEAKER, Word
from ttt_moshi.data.unspaced import Tokenizer, timed_tokens
from ttt_moshi.frames import FRAME_RATE

ABSENT = -1
"""no token at all: embedded as zero, never a target"""


@dataclass(frozen=True)
class TextStyle:
    """How a model's text stream is written."""

    pad: int = 3
    """no new text in this frame"""
    epad: int = 0
    """the last frame before a word"""
    no_whitespace_before_word: bool = False
    """whether words follow one another without spaces, as in Japanese: they are encoded together, and every token is
    written when it is said"""
    delay: int = 0
    """frames after which a word is written that is heard (speech to text)"""

    @classmethod
    def of_model(
        cls, geometry: Mapping[str, Any], no_whitespace_before_word: bool = False, delay: int = 0
    ) -> TextStyle:
        """That of the model whose arguments these are; what they leave out is as in the published models."""
        pad, epad = geometry.get("existing_text_padding_id", 3), geometry.get("existing_text_end_padding_id", 0)
        return cls(pad, epad, no_whitespace_before_word, delay)


MOSHI_STYLE = TextStyle()
"""that of the published models"""


def text_row(
    words: Iterable[Word], tokenizer: Tokenizer, num_frames: int, style: TextStyle = MOSHI_STYLE
) -> np.ndarray:
    """The text stream of a whole recording, int32 `[num_frames]`.

    `words` are ordered by start time. A word starts in frame `floor(start * 12.5)` and writes its tokens into that
    frame and the following ones. Where the next word starts before all are written, the rest is dropped; of several
    words that start in one frame the last is kept. Words of other speakers, words without duration and words that
    start at or after the end are left out. `style.delay` moves all of it.

    A clip's text is a slice of this row, so a word that straddles the cut goes on in the next clip and every clip
    agrees with one long reading of the recording.
    """
    row = np.full(num_frames, style.pad, np.int32)
    spoken = [word for word in words if word.speaker == MAIN_SPEAKER and word.start < word.end]
    if style.no_whitespace_before_word:
        _write_unspaced(row, spoken, tokenizer, style)
        return row
    starts = [math.floor(word.start * FRAME_RATE) + style.delay for word in spoken]
    for word, start, limit in zip(spoken, starts, [*starts, num_frames][1:], strict=True):
        tokens = tokenizer.encode(word.text)[: max(0, min(limit, num_frames) - start)]
        row[start : start + len(tokens)] = tokens
        # A token of the word before may itself be in the preceding frame: only padding gives way to EPAD.
        if tokens and start > 0 and row[start - 1] == style.pad:
            row[start - 1] = style.epad
    return row


def _write_unspaced(row: np.ndarray, spoken: Sequence[Word], tokenizer: Tokenizer, style: TextStyle) -> None:
    """Every token in the frame in which it begins, or in the next that is free before the words go on after a pause."""
    runs = [run for run in timed_tokens(spoken, tokenizer) if run]
    starts = [math.floor(run[0][0] * FRAME_RATE) + style.delay for run in runs]
    for run, limit in zip(runs, [*starts, len(row)][1:], strict=True):
        free = 0
        for seconds, token in run:
            frame = max(free, math.floor(seconds * FRAME_RATE) + style.delay)
            if frame >= min(limit, len(row)):
                break
            row[frame] = token
            if frame > 0 and row[frame - 1] == style.pad:
                row[frame - 1] = style.epad
            free = frame + 1


def absent_row(num_frames: int) -> np.ndarray:
    """The text stream of a recording without a transcript, int32 `[num_frames]`, absent everywhere."""
    return np.full(num_frames, ABSENT, np.int32)
