"""Do these words belong to this audio? Times of words against loudness, channel by channel."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ttt_moshi.data.transcripts import MAIN_SPEAKER, Word
from ttt_moshi.data.voiced import HOP, runs, voiced_spans
from ttt_moshi.frames import SAMPLE_RATE

_SECONDS = HOP / SAMPLE_RATE
_FARTHEST = 12.0
"""seconds by which a shift is looked for"""
_PIECE = 1 << 15
"""hops that are compared at once: 11 minutes"""

ENOUGH_WORDS = 12
"""fewer say nothing about a recording"""
SHIFT = 0.8
"""seconds; what is less is how transcripts are"""
BETTER = 0.15
"""by how much another time or channel must fit better"""
GOOD = 0.4
"""what words that belong to the audio reach at the right time; unrelated ones reach 0.3 at the best of all times"""
POOR = 0.3
IN_SILENCE = 0.3
WITHOUT_WORDS = 0.4
WITHOUT_WORDS_SECONDS = 10.0


@dataclass(frozen=True)
class Fit:
    """How words and audio agree. Correlations of "a word" with "loud", -1 to 1, over steps of 20 ms."""

    own: float
    """as given"""
    swapped: float
    """with the channels exchanged; nan where there is one"""
    lag: float
    """seconds by which the words would have to be moved to fit best"""
    best: float
    """and how well they would fit then"""
    together: float
    """of all words with either channel, whoever speaks; nan where there is one"""
    in_silence: float
    """share of Moshi's words in which his channel is silent from beginning to end"""
    without_words: float
    """share of the loud time of Moshi's channel that is far from all words"""
    seconds_without_words: float


def measure(words: Sequence[Word], decibels: np.ndarray) -> Fit:
    """Compares words with the energies `[channels, hops]` of `EnergyMeter`, Moshi's channel first."""
    hops = decibels.shape[1]
    loud = loud_masks(decibels)
    said = np.stack([_mask(words, who, hops) for who in (True, False)])[: len(loud)]
    if not said[-1].any():
        said_used, loud_used = said[:1], loud[:1]
    else:
        said_used, loud_used = said, loud
    scores, lags = _correlations(said_used, loud_used)
    zero = int(np.flatnonzero(lags == 0)[0])
    best = int(np.argmax(scores))
    swapped = together = float("nan")
    if len(loud) == 2:
        swapped = float(_correlations(said_used, loud[::-1][: len(said_used)])[0][zero])
        together = float(_correlations(np.maximum(*said)[None], np.maximum(*loud)[None])[0][zero])
    mine = [word for word in words if word.speaker == MAIN_SPEAKER and word.end > word.start]
    silent = [not loud[0, slice(*_hops(word, hops))].any() for word in mine]
    near = _widen(said[0], round(1.0 / _SECONDS))
    alone = loud[0] & ~near
    return Fit(
        own=float(scores[zero]),
        swapped=swapped,
        lag=float(-lags[best] * _SECONDS),
        best=float(scores[best]),
        together=together,
        in_silence=float(np.mean(silent)) if silent else 0.0,
        without_words=float(alone.sum() / max(1, loud[0].sum())),
        seconds_without_words=float(alone.sum() * _SECONDS),
    )


def loud_masks(decibels: np.ndarray) -> np.ndarray:
    """bool `[channels, hops]`: speech of the channel's own speaker, what leaks over from the other one left out."""
    loud = np.zeros(decibels.shape, bool)
    for channel, own in enumerate(decibels):
        for span in voiced_spans(own):
            loud[channel, round(span.start / _SECONDS) : round(span.end / _SECONDS)] = True
    if len(decibels) == 2 and loud.any(axis=1).all():
        loudest = [float(np.percentile(own, 95)) for own in decibels]
        louder = decibels[0] - decibels[1] - (loudest[0] - loudest[1])  # dB by which the first channel stands out
        loud[0] &= louder > -10
        loud[1] &= louder < 10
    return loud


def _mask(words: Sequence[Word], moshi: bool, hops: int) -> np.ndarray:
    mask = np.zeros(hops, bool)
    for word in words:
        if (word.speaker == MAIN_SPEAKER) == moshi:
            mask[slice(*_hops(word, hops))] = True
    return mask


def _hops(word: Word, hops: int) -> tuple[int, int]:
    start = min(hops, int(word.start / _SECONDS))
    return start, min(hops, max(start + 1, int(np.ceil(min(word.end, 1e9) / _SECONDS))))


def _widen(mask: np.ndarray, by: int) -> np.ndarray:
    wide = np.zeros_like(mask)
    for start, end in runs(mask):
        wide[max(0, start - by) : end + by] = True
    return wide


def _correlations(said: np.ndarray, loud: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Correlation of two masks `[channels, hops]` for every lag of `said`, and the lags in hops."""
    hops = said.shape[1]
    farthest = min(round(_FARTHEST / _SECONDS), hops // 3)
    lags = np.arange(-farthest, farthest + 1)
    products = np.zeros(len(lags))
    squares = []
    for own, other in zip(said, loud, strict=True):
        products += _products(own, other, farthest)
        # Of masks less their means.
        squares.append([mask.sum() - mask.sum() ** 2 / hops for mask in (own, other)])
    scale = np.sqrt(np.prod(np.sum(squares, axis=0)))
    return (products / scale if scale else products), lags


def _products(x: np.ndarray, y: np.ndarray, farthest: int) -> np.ndarray:
    """Sums over t of `x[t + lag] * y[t]` for lags up to `farthest` either way, of masks `[hops]` less their means.

    Piece by piece of y, so that a long recording takes no more memory than a short one.
    """
    means = x.mean(), y.mean()
    products = np.zeros(2 * farthest + 1)
    for start in range(0, len(y), _PIECE):
        piece = y[start : start + _PIECE] - means[1]
        first, last = max(0, start - farthest), min(len(x), start + len(piece) + farthest)
        around = np.zeros(len(piece) + 2 * farthest)  # of x; nothing beyond either end of the recording
        around[first - (start - farthest) :][: last - first] = x[first:last] - means[0]
        size = len(around)
        products += np.fft.irfft(np.fft.rfft(around) * np.conj(np.fft.rfft(piece, size)), size)[: len(products)]
    return products
