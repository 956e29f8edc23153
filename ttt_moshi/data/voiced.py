"""Guessing when words were spoken, from nothing but the words and where the audio is loud."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from ttt_moshi.data.audio import SAMPLE_RATE

HOP = 480
"""samples of 24 kHz audio per energy value: 20 ms"""

_FLOOR_DB = -60.0
_BELOW_SPEECH_DB = 25.0
_ABOVE_NOISE_DB = 8.0
_SHORTEST_PAUSE = 10
_SHORTEST_SPEECH = 4


@dataclass(frozen=True)
class Span:
    """A stretch of audio, in seconds."""

    start: float
    end: float


class EnergyMeter:
    """Energies of a recording that comes in blocks of any size: 4 bytes for each 20 ms of a channel."""

    def __init__(self, channels: int):
        self._waiting = np.zeros((channels, 0), np.float32)
        self._decibels = [array("f") for _ in range(channels)]

    def add(self, block: np.ndarray) -> None:
        """Takes the next float32 samples `[channels, n]` at 24 kHz."""
        samples = np.concatenate([self._waiting, block], axis=1)
        hops = samples.shape[1] // HOP
        whole = samples[:, : hops * HOP].reshape(len(samples), hops, HOP).astype(np.float64)
        decibels = 10 * np.log10(np.square(whole).mean(axis=2) + 1e-12)
        for kept, new in zip(self._decibels, decibels.astype(np.float32), strict=True):
            kept.frombytes(new.tobytes())
        self._waiting = samples[:, hops * HOP :].copy()  # not a view, which would hold the whole block

    def decibels(self) -> np.ndarray:
        """Float32 `[channels, hops]`, dB relative to full scale; an unfinished last hop is left out."""
        return np.array(self._decibels, np.float32)


def voiced_spans(decibels: np.ndarray) -> list[Span]:
    """The loud stretches of one channel, from energies in dB `[hops]` of 20 ms.

    Loud is what is within 25 dB of the channel's loudest twentieth, more than 8 dB above its quietest tenth where there
    is so much room, and above -60 dB. Pauses below 0.2 s are bridged, then stretches below 0.08 s dropped.
    """
    if not len(decibels):
        return []
    quiet, loud = np.percentile(decibels, [10, 95])
    threshold = max(_FLOOR_DB, loud - _BELOW_SPEECH_DB, min(quiet + _ABOVE_NOISE_DB, (quiet + loud) / 2))
    joined: list[list[int]] = []
    for start, end in runs(decibels >= threshold):
        if joined and start - joined[-1][1] < _SHORTEST_PAUSE:
            joined[-1][1] = end
        else:
            joined.append([start, end])
    seconds = HOP / SAMPLE_RATE
    return [Span(start * seconds, end * seconds) for start, end in joined if end - start >= _SHORTEST_SPEECH]


def spread_words(words: Sequence[str], spans: Sequence[Span]) -> list[Span]:
    """A time for each word, in order: the spans' time is shared out in proportion to the words' letters.

    A word lies in the span that its middle falls into. `spans` must not be empty where there are words.
    """
    lengths = np.array([letter_count([word]) for word in words], float)
    edges = np.concatenate([[0.0], np.cumsum(lengths)]) / max(lengths.sum(), 1.0)
    durations = np.array([span.end - span.start for span in spans])
    before = np.concatenate([[0.0], np.cumsum(durations)])  # voiced time before each span
    edges = edges * before[-1]
    times = []
    for start, end in pairwise(edges.tolist()):
        index = min(int(np.searchsorted(before, (start + end) / 2, side="right")) - 1, len(spans) - 1)
        offset = spans[index].start - before[index]
        times.append(Span(max(start + offset, spans[index].start), min(end + offset, spans[index].end)))
    return times


def letter_count(words: Sequence[str]) -> int:
    """How long words take to say, in letters; a word's end counts as one."""
    return sum(len(word) + 1 for word in words)


def runs(mask: np.ndarray) -> list[tuple[int, int]]:
    """Where a mask `[n]` is true: first and one after last."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], mask, [False]]).astype(np.int8)))
    return list(zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True))
