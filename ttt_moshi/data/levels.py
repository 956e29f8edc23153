"""Levels and forms of audio that no training should meet unnoticed."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np

from ttt_moshi.frames import SAMPLE_RATE

SILENT = 1e-4
"""a peak below this is silence: -80 dB of full scale"""
INTEGER_SCALE = 4.0
"""float samples beyond this are integers that somebody forgot to divide"""
CLIPPED_SHARE = 1e-3
HUM_SHARE = 0.5
QUIET = 10 ** (-50 / 20)
"""a root mean square below this needs more gain than noise allows"""
_MAINS = (50, 60)
_FULL_SCALE = 0.9995
_CONSTANT_SHARE = 0.3
_SAME = 0.95
"""correlation of channels that hold the same sound; what leaks from one to the other gives little more than 0.3"""
_ECHO = 0.3
"""a channel that is softer than this beside the other is one on which nobody but an echo is heard"""


@dataclass(frozen=True)
class Levels:
    """What was measured of one recording; lists have one entry a channel."""

    peaks: list[float]
    clipped: list[float]
    """share of samples at or beyond full scale"""
    means: list[float]
    """what a constant voltage in the line leaves behind"""
    loudness: list[float]
    """root mean square"""
    hum: list[tuple[int, float]]
    """frequency of the mains that can be heard most, and its share of the energy, with two harmonics"""
    identical: bool
    """whether all channels hold the same sound, be it louder or softer, with noise of its own or upside down"""

    def clips(self, channel: int) -> bool:
        """Whether so much is cut off that it can be heard."""
        return self.clipped[channel] > CLIPPED_SHARE

    def constant(self, channel: int) -> bool:
        """Whether a constant is as large as the sound around it."""
        return abs(self.means[channel]) > max(0.01, _CONSTANT_SHARE * self.loudness[channel])

    def hums(self, channel: int) -> bool:
        """Whether the mains are louder than everything else."""
        return self.hum[channel][1] > HUM_SHARE

    def quiet(self, channel: int) -> bool:
        """Whether there is something, of which little is left."""
        return self.loudness[channel] < QUIET and not self.silent_channel(channel)

    def silent_channel(self, channel: int) -> bool:
        """Whether there is nothing to hear from beginning to end."""
        return self.peaks[channel] < SILENT

    @property
    def integer_scale(self) -> bool:
        """Whether full scale is not 1."""
        return max(self.peaks, default=0.0) > INTEGER_SCALE


class LevelMeter:
    """Levels of a recording that comes in blocks of any size."""

    def __init__(self, channels: int):
        self._peaks = np.zeros(channels)
        self._clipped = np.zeros(channels)
        self._sums = np.zeros(channels)
        self._squares = np.zeros(channels)
        self._hum = np.zeros((channels, len(_MAINS)))
        self._samples = 0
        self._products = np.zeros((channels, channels))

    def add(self, block: np.ndarray) -> None:
        """Takes the next float32 samples `[channels, n]`."""
        size = np.abs(block)
        self._peaks = np.maximum(self._peaks, size.max(axis=1, initial=0))
        self._clipped += (size >= _FULL_SCALE).sum(axis=1)
        self._sums += block.sum(axis=1, dtype=np.float64)
        self._squares += np.square(block, dtype=np.float64).sum(axis=1)
        self._samples += block.shape[1]
        if block.shape[1] >= SAMPLE_RATE:  # in less time a voice cannot be told from the mains
            found = np.abs(block @ _mains(block.shape[1])) ** 2 * (2 / block.shape[1])
            self._hum += found.reshape(len(block), len(_MAINS), -1).sum(axis=2)
        steps = np.diff(block, axis=1)  # of which constants and the mains are a small part
        self._products += steps @ steps.T

    def levels(self) -> Levels:
        """Of everything so far."""
        count = max(1, self._samples)
        shares = self._hum / np.maximum(self._squares, 1e-12)[:, None]
        loudest = shares.argmax(axis=1)
        return Levels(
            self._peaks.tolist(),
            (self._clipped / count).tolist(),
            (self._sums / count).tolist(),
            np.sqrt(self._squares / count).tolist(),
            [(_MAINS[place], float(share[place])) for share, place in zip(shares, loudest, strict=True)],
            self._same_sound(),
        )

    def _same_sound(self) -> bool:
        sizes = np.sqrt(np.diag(self._products))
        if len(sizes) < 2 or sizes.min() < _ECHO * sizes.max() or not sizes.max():
            return False
        return bool((np.abs(self._products) > _SAME * np.outer(sizes, sizes)).all())


@functools.lru_cache(maxsize=2)
def _mains(samples: int) -> np.ndarray:
    """Waves of both mains and their harmonics, complex64 `[samples, 3 * mains]`."""
    frequencies = np.array([mains * harmonic for mains in _MAINS for harmonic in (1, 2, 3)])
    waves = np.empty((samples, len(frequencies)), np.complex64)
    for place, frequency in enumerate(frequencies):  # one by one: all at once take 30 MB on the way
        waves[:, place] = np.exp(-2j * np.pi * np.arange(samples) * frequency / SAMPLE_RATE)
    return waves
