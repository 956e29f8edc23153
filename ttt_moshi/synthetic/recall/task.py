"""Recall at a distance: pairs of a key and a value, then other speech, then a question for every key.

While a pair is heard the user says the key and Moshi the value, in one frame. Then only the user speaks: sounds that
are no keys. Then the user says each key once more, in random order, and Moshi must say its value in the next frame.
Values are drawn with replacement, so earlier answers say nothing about later ones and guessing is right once in
`VALUES` times.

Moshi's streams are absent wherever it has nothing to say, so the answers are all there is to predict. The user's
acoustic stream is absent throughout: delayed by a frame, it would name each key a second time beside the next value.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

CODEBOOKS = 2
STREAMS = 1 + 2 * CODEBOOKS
CARD = 64
KEYS = 32
VALUES = 16
CHANCE = 1 / VALUES

TEXT, MOSHI_SEMANTIC, MOSHI_ACOUSTIC, USER_SEMANTIC, _ = range(STREAMS)
ABSENT = -1


@dataclass(frozen=True)
class Example:
    """One recording: codes int64 [STREAMS, T], whose first `given` frames are not to be predicted."""

    codes: np.ndarray
    given: int

    def last(self, frames: int) -> Example:
        """Its last frames alone."""
        return Example(self.codes[:, -frames:], given=0)


def length(pairs: int, distance: int) -> int:
    """Frames of an example: pairs, other speech, and a question and an answer for every pair."""
    return 3 * pairs + distance


def answer_frames(pairs: int, distance: int) -> np.ndarray:
    """Frames in which Moshi must say a value, int64 [pairs]."""
    return pairs + distance + 1 + 2 * np.arange(pairs)


def make_example(rng: np.random.Generator, pairs: int, distance: int, silent: bool = False) -> Example:
    """An example with `distance` frames between the last pair and the first question; where these are silent, the user
    says one sound all the time."""
    codes = np.full((STREAMS, length(pairs, distance)), ABSENT)
    keys = rng.permutation(KEYS)[:pairs]
    values = rng.integers(0, VALUES, pairs)
    order = rng.permutation(pairs)
    told, answers = np.arange(pairs), answer_frames(pairs, distance)
    user = rng.integers(KEYS, CARD, codes.shape[1])
    if silent:
        user[pairs : pairs + distance] = user[pairs]
    user[told] = keys
    user[answers - 1] = keys[order]
    codes[USER_SEMANTIC] = user
    for frames, said in ((told, values), (answers, values[order])):
        codes[MOSHI_SEMANTIC, frames], codes[MOSHI_ACOUSTIC, frames] = said, acoustic(said)
    return Example(codes, given=pairs)


def acoustic(semantic: np.ndarray) -> np.ndarray:
    """The one acoustic code that goes with a semantic one."""
    return (5 * semantic + 3) % CARD
