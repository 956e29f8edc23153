"""Recordings in which facts are told at one time and asked at another: the user says a key, Moshi its value."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ttt_moshi.synthetic.recall.task import (
    ABSENT,
    CARD,
    KEYS,
    MOSHI_ACOUSTIC,
    MOSHI_SEMANTIC,
    STREAMS,
    USER_SEMANTIC,
    VALUES,
    Example,
    acoustic,
)

SLOT = 2
"""frames that a question takes with its answer; facts are told at the same pace"""


def noise(rng: np.random.Generator, frames: int) -> np.ndarray:
    """Codes int64 [STREAMS, frames] of a user who says nothing that is a key, beside a silent Moshi."""
    codes = np.full((STREAMS, frames), ABSENT)
    codes[USER_SEMANTIC] = rng.integers(KEYS, CARD, frames)
    return codes


def say(codes: np.ndarray, heard: int, answered: int, key: int, value: int) -> None:
    """Puts a key into the user's mouth at one frame and its value into Moshi's at one that is the same or later."""
    codes[USER_SEMANTIC, heard] = key
    codes[MOSHI_SEMANTIC, answered], codes[MOSHI_ACOUSTIC, answered] = value, acoustic(np.asarray(value))


def busy(rng: np.random.Generator, frames: int, held: int, wait: tuple[int, int]) -> Example:
    """A recording in which up to `held` facts wait to be asked at any time, each for a number of frames that is drawn
    log-uniformly from `wait`; a key that was asked is told again with another value later.
    """
    codes = noise(rng, frames)
    waiting: dict[int, tuple[int, int]] = {}  # key: (frame in which it is due, value)
    for frame in range(0, frames - SLOT + 1, SLOT):
        due = [key for key, (when, _) in waiting.items() if when <= frame]
        if due:
            key = min(due, key=lambda key: waiting[key])
            say(codes, frame, frame + 1, key, waiting.pop(key)[1])
        elif len(waiting) < held and rng.random() < 0.5:
            key = int(rng.choice([key for key in range(KEYS) if key not in waiting]))
            waiting[key] = (frame + round(np.exp(rng.uniform(*np.log(wait)))), int(rng.integers(VALUES)))
            say(codes, frame, frame, key, waiting[key][1])
    return Example(codes, given=0)


def told_before(
    rng: np.random.Generator, facts: int, distances: Sequence[int], silent: bool = False
) -> tuple[np.ndarray, list[np.ndarray]]:
    """Groups of `facts` facts, each group told so many frames before the first question of all, longest first; then all
    are asked in random order.

    Args:
        silent: whether the user says one sound all the time instead of many.

    Returns:
        codes int64 [STREAMS, T], and the frames of each group's answers.
    """
    told = SLOT * facts
    first_question = told + distances[0]
    keys = rng.permutation(KEYS)[: facts * len(distances)]
    values = rng.integers(0, VALUES, len(keys))
    codes = noise(rng, first_question + SLOT * len(keys))
    if silent:
        codes[USER_SEMANTIC] = codes[USER_SEMANTIC, 0]
    order = rng.permutation(len(keys))
    answers = np.empty(len(keys), np.int64)
    answers[order] = first_question + SLOT * np.arange(len(keys)) + 1
    for index, (key, value) in enumerate(zip(keys, values, strict=True)):
        group, place = divmod(index, facts)
        frame = first_question - distances[group] - told + SLOT * place
        say(codes, frame, frame, key, value)
        say(codes, answers[index] - 1, answers[index], key, value)
    return codes, list(answers.reshape(len(distances), facts))
