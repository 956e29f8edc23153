"""Sound files of a benchmark: 16 kHz mono, as the official sets have them."""

from __future__ import annotations

import math
import random
import string
import uuid
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import soxr

from ttt_moshi.data.sound_files import write_sound
from ttt_moshi.frames import FRAME_SIZE, SAMPLE_RATE
from ttt_moshi.synthetic.espeak import Voice, speak

BENCH_RATE = 16_000
LEAD_SECONDS = 0.32
TAIL_SECONDS = 0.16
SENTENCE_GAP = 0.2


def sentences(texts: Sequence[str], voices: Voice | Sequence[Voice]) -> np.ndarray:
    """float32 [N] at 24 kHz: sentences one after the other, each spoken on its own and followed by a gap.

    What comes before a sentence is therefore bit-identical whatever the sentence says.
    """
    speakers = [voices] * len(texts) if isinstance(voices, Voice) else voices
    pairs = zip(texts, speakers, strict=True)
    return np.concatenate([with_gap(speak(text, voice).samples, SENTENCE_GAP) for text, voice in pairs])


def with_gap(samples: np.ndarray, seconds: float) -> np.ndarray:
    """The samples and at least so much silence, up to a frame boundary, where turns of the training dialogues start."""
    length = len(samples) + round(seconds * SAMPLE_RATE)
    return np.pad(samples, (0, math.ceil(length / FRAME_SIZE) * FRAME_SIZE - len(samples)))


def silence(seconds: float) -> np.ndarray:
    """float32 zeros at 24 kHz."""
    return np.zeros(round(seconds * SAMPLE_RATE), np.float32)


def padded(samples: np.ndarray) -> np.ndarray:
    """The samples with the silence that every item has before and after them."""
    return np.concatenate([silence(LEAD_SECONDS), samples, silence(TAIL_SECONDS)])


def write(path: Path, samples: np.ndarray) -> None:
    """Writes float32 [N] at 24 kHz as a 16 kHz 16-bit file; the suffix (.wav, .flac) names the format."""
    resampled = soxr.resample(samples, SAMPLE_RATE, BENCH_RATE)
    write_sound(path, np.clip(resampled, -1.0, 1.0), BENCH_RATE, subtype="PCM_16")


def random_name(rng: random.Random) -> str:
    """A name that says nothing about the item, as in sLM21 (`aAAfmkmQpVz`)."""
    return "".join(rng.choice(string.ascii_letters) for _ in range(11))


def random_uuid(rng: random.Random) -> str:
    """A version 4 UUID from the given generator."""
    return str(uuid.UUID(int=rng.getrandbits(128), version=4))
