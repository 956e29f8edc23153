"""Everything that the rules need to know of a recording's audio, in one pass over it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ttt_moshi.data.audio import read_blocks
from ttt_moshi.data.levels import LevelMeter, Levels
from ttt_moshi.data.voiced import EnergyMeter


def listen(path: Path, channels: Sequence[int]) -> tuple[Levels, np.ndarray]:
    """Levels and energies in dB `[len(channels), hops]` of some channels, Moshi's first.

    Raises:
        DataError: a recording that cannot be read to its end.
    """
    levels, energies = LevelMeter(len(channels)), EnergyMeter(len(channels))
    for block in read_blocks(path):
        chosen = block[list(channels)]
        levels.add(chosen)
        energies.add(chosen)
    return levels.levels(), energies.decibels()


def moshi_first(channels: int, moshi_speaker: str) -> tuple[int, ...]:
    """The channels of a mono or stereo recording in the order in which everything here has them."""
    return (0,) if channels == 1 else (1, 0) if moshi_speaker == "B" else (0, 1)
