"""Mimi's clock: seconds of audio as frames of codes, and back."""

from __future__ import annotations

import math

SAMPLE_RATE = 24_000
"""samples per second of Mimi's input"""
FRAME_RATE = 12.5
"""frames per second of Mimi's codes"""
FRAME_SIZE = 1_920
"""samples per frame"""


def seconds_to_frames(seconds: float) -> int:
    """Frames that cover so many seconds. A surplus below a microframe is a rounding error of the duration."""
    return math.ceil(seconds * FRAME_RATE - 1e-6)


def frames_to_seconds(frames: float) -> float:
    """How long so many frames last."""
    return frames / FRAME_RATE
