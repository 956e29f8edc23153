"""Words with their times, whoever said them and however they are known."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class TimedWord:
    """A word that was said, from `start` to `end` in seconds."""

    text: str
    start: float
    end: float
