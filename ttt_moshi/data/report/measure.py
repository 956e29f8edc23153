"""Numbers of one recording: who speaks when, how fast, how loud, and how turns follow one another."""

from __future__ import annotations

import math
import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ttt_moshi.data.check import Heard
from ttt_moshi.data.fit import loud_masks
from ttt_moshi.data.sources import Line
from ttt_moshi.data.transcripts import MAIN_SPEAKER
from ttt_moshi.data.voiced import HOP, runs
from ttt_moshi.frames import SAMPLE_RATE

_SECONDS = HOP / SAMPLE_RATE


@dataclass(frozen=True)
class Voice:
    """One channel of a recording."""

    speech: float
    """seconds in which its own speaker can be heard"""
    words: int
    decibels: float
    """root mean square of its speech relative to full scale; -inf where there is none"""
    peak: float
    """largest sample, dB of full scale"""
    clipped: float
    """share of samples at full scale"""

    @property
    def words_a_minute(self) -> float:
        """Of speech; nan where there are no words or no speech."""
        return 60 * self.words / self.speech if self.words and self.speech else math.nan


@dataclass(frozen=True)
class Measured:
    """One recording; seconds throughout."""

    line: Line
    seconds: float
    voices: tuple[Voice, ...]
    """Moshi's, and the user's if there is a channel of his"""
    overlap: float
    """both speak"""
    silence: float
    """nobody does"""
    pauses: tuple[float, ...]
    """from the end of one speaker's turn to the beginning of the other's; negative where they overlap"""
    scripts: Counter[str]
    """words of Moshi by the script of their letters"""
    language: str | None
    """as the transcript names it"""
    speakers: frozenset[str]
    """names in the transcript"""
    has_transcript: bool
    """whether there is one that can be read"""


def measure_recording(heard: Heard) -> Measured:
    """Measures a recording that `check_data` has listened to."""
    masks = loud_masks(heard.decibels)
    words = () if heard.transcript is None else heard.transcript.words
    voices = []
    for channel, mask in enumerate(masks):
        energies = 10 ** (heard.decibels[channel, mask] / 10)
        voices.append(
            Voice(
                speech=float(mask.sum() * _SECONDS),
                words=sum((word.speaker == MAIN_SPEAKER) == (channel == 0) for word in words),
                decibels=float(10 * np.log10(energies.mean())) if mask.any() else -math.inf,
                peak=20 * math.log10(max(heard.levels.peaks[channel], 1e-9)),
                clipped=heard.levels.clipped[channel],
            )
        )
    scripts = Counter(script(word.text) for word in words if word.speaker == MAIN_SPEAKER)
    return Measured(
        heard.line,
        heard.info.seconds,
        tuple(voices),
        overlap=float(masks.all(axis=0).sum() * _SECONDS) if len(voices) == 2 else 0.0,
        silence=float((~masks.any(axis=0)).sum() * _SECONDS),
        pauses=tuple(pauses(masks)) if len(voices) == 2 else (),
        scripts=scripts,
        language=None if heard.transcript is None else heard.transcript.language,
        speakers=frozenset(word.speaker for word in words),
        has_transcript=heard.transcript is not None,
    )


def pauses(masks: np.ndarray) -> list[float]:
    """Seconds between turns of two speakers, from masks `[2, hops]`: floor transfer offsets (Heldner and Edlund 2010).

    What one says while the other speaks before and after it takes no turn.
    """
    spans = sorted((start, end, channel) for channel, mask in enumerate(masks) for start, end in runs(mask))
    found = []
    holder, until = -1, 0
    for start, end, channel in spans:
        if end <= until:
            continue
        if holder not in (-1, channel):
            found.append((start - until) * _SECONDS)
        holder, until = channel, end
    return found


def script(text: str) -> str:
    """The script of most letters of a word, by their Unicode names: `Latin`, `Cyrillic`, `Hiragana`, ..."""
    names: Sequence[str] = [unicodedata.name(letter, "").split(" ")[0] for letter in text if letter.isalpha()]
    return "words without letters" if not names else Counter(names).most_common(1)[0][0].capitalize()
