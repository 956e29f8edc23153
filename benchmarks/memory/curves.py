"""Likelihood by position: how the models are trained for it, and what is measured of them.

Two stages at equal data for every model. First clips that each begin a conversation, which teach a TTT layer soonest
what to write. Then the same recordings from end to end in clips of the same length with everything carried, which teach
it to live with a memory that is already full.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.memory import arms, measure, phones, spoken
from benchmarks.memory.cache import Models, made
from benchmarks.memory.plots import AS_TRAINED, BEFORE_CARRYING, BOUNDED
from benchmarks.ttt.machine import facts
from ttt_moshi.synthetic.recall.base_model import write_base_model, write_speech_model

CLIP_FRAMES = 256
RECORDING_CLIPS = (2, 4, 8)
"""lengths of training recordings; different ones, so that the rows of a batch are at different places"""
LONGEST_FRAMES = max(RECORDING_CLIPS) * CLIP_FRAMES
TEST_FRAMES = 2 * LONGEST_FRAMES
BINS = (8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096)
TARGET_FRAMES = 64
CONTEXTS = (16, 32, 64, 128, 256, 512, 1024, 2048)
BATCH = 8
CARRIED_RATE = 0.5
"""learning rates of the second stage, in units of those of the first"""
BOUND = 1.0
"""how far a bounded memory may be from its start, in units of the start's norm"""
TEST_SEED = 1_000_000


@dataclass(frozen=True)
class Steps:
    """Optimizer steps of `BATCH` clips."""

    clips: int
    carried: int


@dataclass(frozen=True)
class Language:
    """What is spoken, and by whom it is learned."""

    write_model: Callable[[Path, int], Path]
    """writes an untrained base model of a seed into a folder"""
    write_recordings: Callable[[Path, Iterable[int], int], Path]
    """writes recordings of given lengths in frames for a seed into a folder"""
    sound: bool
    """whether recordings are made as sound, which the base model's Mimi then turns into codes, once for all models"""
    steps: Steps
    """so many that a TTT layer learns to use its memory; after a quarter of them on speech it had not"""


LANGUAGES = {
    "chain": Language(write_base_model, phones.write_recordings, sound=False, steps=Steps(450, 150)),
    "speech": Language(write_speech_model, spoken.write_recordings, sound=True, steps=Steps(1000, 300)),
}


@dataclass(frozen=True)
class Place:
    """What all models of one seed share."""

    models: Models
    test_data: Path


def learning(language: Language, cache: Path, seed: int, steps: Steps) -> Models:
    """Base model and training recordings (as many as the longer stage hears), made if missing.

    Args:
        cache: folder of the language.
    """
    lengths = recording_lengths(max(steps.clips, steps.carried), seed)
    base = made(cache / f"base-{seed}", lambda folder: language.write_model(folder, seed))
    train_data = _recordings(language, cache / f"train-{seed}-{len(lengths)}", lengths, seed, base)
    return Models(cache / f"models-{seed}", base, train_data)


def prepare(
    language: Language,
    cache: Path,
    seed: int,
    steps: Steps,
    documents: int,
    test_frames: int = TEST_FRAMES,
    test_seed: int = TEST_SEED,
) -> Place:
    """As `learning`, and test recordings."""
    models = learning(language, cache, seed, steps)
    other = "" if test_seed == TEST_SEED else f"-{test_seed}"
    folder = cache / f"test-{documents}x{test_frames}{other}"
    return Place(models, _recordings(language, folder, [test_frames] * documents, test_seed, models.base_model))


def _recordings(language: Language, folder: Path, lengths: Sequence[int], seed: int, base: Path) -> Path:
    """The list of recordings of these lengths, made if missing."""

    def make(folder: Path) -> None:
        jsonl = language.write_recordings(folder, lengths, seed)
        if language.sound:
            measure.replace_by_codes(jsonl, base, max(lengths))

    return made(folder, make) / "data.jsonl"


def recording_lengths(steps: int, seed: int) -> list[int]:
    """In frames, of training recordings for so many optimizer steps."""
    rng = random.Random(seed)
    lengths: list[int] = []
    while sum(lengths) < steps * BATCH * CLIP_FRAMES:
        lengths.append(CLIP_FRAMES * rng.choice(RECORDING_CLIPS))
    return lengths


def train(models: Models, arm_name: str, seed: int, steps: Steps) -> tuple[arms.Trained, arms.Trained]:
    """One model after single clips, and after recordings from end to end."""
    arm = arms.ARMS[arm_name]
    # Shuffled, since a batch of clips of one recording teaches little that other recordings share.
    first = arms.Schedule(steps.clips, BATCH, CLIP_FRAMES, seed, shuffle=True)
    clips = models.trained(arm, first)
    rates = {name: CARRIED_RATE * getattr(first, name) for name in ("lr", "ttt_lr", "gate_lr")}
    second = replace(first, steps=steps.carried, carried=True, start=clips.checkpoint, **rates)
    return clips, models.trained(arm, second)


def one_run(place: Place, arm_name: str, seed: int, steps: Steps) -> dict[str, Any]:
    """Trains one model and measures it: NLL of every document in every bin, per control, and after every context."""
    clips, trained = train(place.models, arm_name, seed, steps)
    model = trained.model
    codes = measure.read_codes(model, place.test_data, TEST_FRAMES)
    sink = arms.ARMS[arm_name].sink
    with measure.with_sink(model, sink), measure.with_sink(clips.model, sink):
        by_bin = {AS_TRAINED: binned(measure.semantic_nll(model, codes))}
        by_bin[BEFORE_CARRYING] = binned(measure.semantic_nll(clips.model, codes))
        by_context = {
            str(context): measure.semantic_nll(model, codes[..., -context - TARGET_FRAMES :])[:, -TARGET_FRAMES:]
            .mean(1)
            .astype(float)
            .tolist()
            for context in CONTEXTS
        }
    if arms.ARMS[arm_name].inner is not None:
        for control, change in measure.controls(arms.WINDOW).items():
            with measure.ablated(model, change):
                by_bin[control] = binned(measure.semantic_nll(model, codes))
        by_bin[BOUNDED] = binned(measure.nll_with_bounded_memory(model, codes, BOUND))
        by_bin["memory of another"] = binned(measure.nll_with_memory_of_another(model, codes, TEST_FRAMES // 2))
    return {
        "by_bin": by_bin,
        "by_context": by_context,
        "train_seconds": clips.seconds + trained.seconds,
        "train_cpu_seconds": clips.cpu_seconds + trained.cpu_seconds,
        "loss": [clips.final_loss, trained.final_loss],
        "machine": facts(),
    }


def binned(nll: np.ndarray, bins: Sequence[int] = BINS) -> list[list[float]]:
    """Mean NLL of every document in every bin, from [documents, frames]."""
    return np.stack([nll[:, start:stop].mean(1) for start, stop in pairwise(bins)], axis=1).astype(float).tolist()
