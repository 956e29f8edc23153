"""The text stream: one token per frame, written where the words are spoken.

The conventions are those of Moshi's own data (arXiv:2410.00037, section 3.4.4): a word's tokens are written one per
frame from the frame in which it starts, PAD fills the frames between words, and EPAD replaces the last PAD before a
word. They hold for the words of the main speaker alone.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Protocol

import numpy as np

from ttt_moshi.data.transcripts import MAIN_SPEAKER, Word
from ttt_moshi.frames import FRAME_RATE

PAD = 3
"""no new text in this frame"""
EPAD = 0
"""the last frame before a word"""
ABSENT = -1
"""no token at all: embedded as zero, never a target"""


class Tokenizer(Protocol):
    """The part of `sentencepiece.SentencePieceProcessor` that is used."""

    def encode(self, text: str) -> list[int]: ...


def text_row(words: Iterable[Word], tokenizer: Tokenizer, num_frames: int) -> np.ndarray:
    """The text stream of a whole recording, int32 `[num_frames]`.

    `words` are ordered by start time. A word starts in frame `floor(start * 12.5)` and writes its tokens into that
    frame and the following ones. Where the next word starts before all are written, the rest is dropped; of several
    words that start in one frame the last is kept. Words of other speakers, words without duration and words that
    start at or after the end are left out.

    A clip's text is a slice of this row, so a word that straddles the cut goes on in the next clip and every clip
    agrees with one long reading of the recording.
    """
    row = np.full(num_frames, PAD, np.int32)
    spoken = [word for word in words if word.speaker == MAIN_SPEAKER and word.start < word.end]
    starts = [math.floor(word.start * FRAME_RATE) for word in spoken]
    for word, start, limit in zip(spoken, starts, [*starts, num_frames][1:], strict=True):
        tokens = tokenizer.encode(word.text)[: max(0, min(limit, num_frames) - start)]
        row[start : start + len(tokens)] = tokens
        # A token of the word before may itself be in the preceding frame: only padding gives way to EPAD.
        if tokens and start > 0 and row[start - 1] == PAD:
            row[start - 1] = EPAD
    return row


def absent_row(num_frames: int) -> np.ndarray:
    """The text stream of a recording without a transcript, int32 `[num_frames]`, absent everywhere."""
    return np.full(num_frames, ABSENT, np.int32)
