"""SALMon's consistency parts: the same words, with or without a change of voice or background half way.

`salmon/<part>/sample_<i>_0.wav` is consistent, `sample_<i>_1.wav` is not.
"""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np

from ttt_moshi.synthetic import grammar
from ttt_moshi.synthetic.benchmarks import audio
from ttt_moshi.synthetic.dialogues import MOSHI_VOICES
from ttt_moshi.synthetic.espeak import SAMPLE_RATE, Voice

PARTS = ("speaker_consistency", "gender_consistency", "bg_all_consistency")
BACKGROUND_LEVEL = 0.012


def make_salmon(folder: Path, rng: random.Random, count: int) -> int:
    """Writes `count` pairs of each part. Returns the pairs written."""
    for part in PARTS:
        (folder / part).mkdir(parents=True)
        for index in range(count):
            for label, samples in enumerate(_pair(part, rng)):
                audio.write(folder / part / f"sample_{index}_{label}.wav", samples)
    return count * len(PARTS)


def _pair(part: str, rng: random.Random) -> tuple[np.ndarray, np.ndarray]:
    """The consistent and the inconsistent recording, float32 [N] at 24 kHz."""
    person = grammar.random_person(rng)
    texts = grammar.story(rng, person, middle=1)[:4]
    voice = rng.choice(MOSHI_VOICES)
    if part == "bg_all_consistency":
        speech = audio.padded(audio.sentences(texts, voice))
        first, second = rng.sample((hum, hiss, beeps), 2)
        seed = rng.getrandbits(32)
        consistent, other = first(len(speech), seed), second(len(speech), seed)
        switched = np.where(np.arange(len(speech)) < len(speech) // 2, consistent, other)
        return speech + consistent, speech + switched
    others = [other for other in MOSHI_VOICES if other != voice]
    if part == "gender_consistency":
        others = [other for other in others if is_female(other) != is_female(voice)]
    half = len(texts) // 2
    switched_voices = [voice] * half + [rng.choice(others)] * (len(texts) - half)
    return audio.padded(audio.sentences(texts, voice)), audio.padded(audio.sentences(texts, switched_voices))


def is_female(voice: Voice) -> bool:
    """espeak-ng's female variants are called f1 to f5."""
    return "+f" in voice.name


def hum(length: int, seed: int) -> np.ndarray:
    """A low hum with harmonics, as of a machine; float32 [length] at the background level."""
    time = np.arange(length) / SAMPLE_RATE
    pitch = 80 + seed % 60
    overtones = np.arange(1, 6)[:, None]
    return _level((np.sin(2 * np.pi * pitch * overtones * time) / overtones).sum(0))


def hiss(length: int, seed: int) -> np.ndarray:
    """White noise, as of rain; float32 [length] at the background level."""
    return _level(np.random.Generator(np.random.PCG64(seed)).standard_normal(length))


def beeps(length: int, seed: int) -> np.ndarray:
    """A high tone that comes and goes, as of an alarm; float32 [length] at the background level."""
    time = np.arange(length) / SAMPLE_RATE
    return _level(np.sin(2 * np.pi * (1500 + seed % 1000) * time) * (np.sin(2 * np.pi * 2 * time) > 0))


def _level(samples: np.ndarray) -> np.ndarray:
    return (samples * (BACKGROUND_LEVEL / np.sqrt(np.mean(np.square(samples))))).astype(np.float32)
