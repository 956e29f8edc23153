"""Levels and forms of audio that no training should meet unnoticed."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

SILENT = 1e-4
"""a peak below this is silence: -80 dB of full scale"""
INTEGER_SCALE = 4.0
"""float samples beyond this are integers that somebody forgot to divide"""
CLIPPED_SHARE = 1e-3
_FULL_SCALE = 0.9995
_CONSTANT_SHARE = 0.3


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
    identical: bool
    """whether all channels are the same"""

    def clips(self, channel: int) -> bool:
        """Whether so much is cut off that it can be heard."""
        return self.clipped[channel] > CLIPPED_SHARE

    def constant(self, channel: int) -> bool:
        """Whether a constant is as large as the sound around it."""
        return abs(self.means[channel]) > max(0.01, _CONSTANT_SHARE * self.loudness[channel])

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
        self._samples = 0
        self._identical = channels > 1

    def add(self, block: np.ndarray) -> None:
        """Takes the next float32 samples `[channels, n]`."""
        size = np.abs(block)
        self._peaks = np.maximum(self._peaks, size.max(axis=1, initial=0))
        self._clipped += (size >= _FULL_SCALE).sum(axis=1)
        self._sums += block.sum(axis=1, dtype=np.float64)
        self._squares += np.square(block, dtype=np.float64).sum(axis=1)
        self._samples += block.shape[1]
        self._identical = self._identical and bool(np.abs(block - block[:1]).max(initial=0) < SILENT)

    def levels(self) -> Levels:
        """Of everything so far."""
        count = max(1, self._samples)
        return Levels(
            self._peaks.tolist(),
            (self._clipped / count).tolist(),
            (self._sums / count).tolist(),
            np.sqrt(self._squares / count).tolist(),
            self._identical,
        )
