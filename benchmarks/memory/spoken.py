"""Speech with a vocabulary of its own: every recording has a voice and a handful of words that no other one has.

The words are made up, spoken by espeak-ng, and said again and again in random order. None comes back before so many
others that attention's window has lost it. So what follows a sound can be told by remembering the recording, and by
nothing else: the pool of words is far too large to be learned.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import soundfile

from ttt_moshi.frames import FRAME_SIZE, SAMPLE_RATE
from ttt_moshi.synthetic.dialogues import MOSHI_VOICES, USER_VOICES
from ttt_moshi.synthetic.espeak import Voice, speak
from ttt_moshi.synthetic.recall.recordings import FRAME_SECONDS

WORDS = 8
"""of each recording"""
BETWEEN = 6
"""others at least, between a word and its return"""
SYLLABLES = 3
CONSONANTS, VOWELS = "bdfgklmnprstvz", "aeiou"
RATES, PITCHES = (150, 200), (20, 80)


def make_word(rng: random.Random) -> str:
    """One of 343,000."""
    return "".join(rng.choice(CONSONANTS) + rng.choice(VOWELS) for _ in range(SYLLABLES))


def word_order(rng: random.Random) -> Iterable[int]:
    """Indices of words, without end, each at least `BETWEEN` others after its last time."""
    last: list[int] = []
    while True:
        word = rng.choice([index for index in range(WORDS) if index not in last])
        last = [*last, word][-BETWEEN:]
        yield word


def make_recording(rng: random.Random, frames: int) -> np.ndarray:
    """float32 [frames * FRAME_SIZE] at 24 kHz.

    Words begin at frame boundaries, so that the same word has nearly the same codes whenever it is said.
    """
    voice = Voice(rng.choice(MOSHI_VOICES + USER_VOICES).name, rng.randint(*RATES), rng.randint(*PITCHES))
    spoken = [_whole_frames(speak(make_word(rng), voice).samples) for _ in range(WORDS)]
    pieces: list[np.ndarray] = []
    length = 0
    for word in word_order(rng):
        pieces.append(spoken[word])
        length += len(spoken[word])
        if length >= frames * FRAME_SIZE:
            break
    return np.concatenate(pieces)[: frames * FRAME_SIZE]


def write_recordings(folder: Path, lengths: Iterable[int], seed: int, stereo: bool = False) -> Path:
    """Writes one wav file for each length in frames, and the jsonl file that lists them in order, which is returned.

    Args:
        stereo: with a silent user in the right channel.
    """
    folder.mkdir(parents=True)
    lines = []
    for index, frames in enumerate(lengths):
        name = f"{index:06}.wav"
        samples = make_recording(random.Random(f"{seed}/{index}"), frames)
        if stereo:
            samples = np.stack([samples, np.zeros_like(samples)], axis=1)
        soundfile.write(folder / name, samples, SAMPLE_RATE, subtype="PCM_16")
        lines.append(json.dumps({"path": name, "duration": frames * FRAME_SECONDS}))
    jsonl = folder / "data.jsonl"
    jsonl.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return jsonl


def _whole_frames(samples: np.ndarray) -> np.ndarray:
    return np.pad(samples, (0, -len(samples) % FRAME_SIZE))
