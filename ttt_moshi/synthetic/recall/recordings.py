"""Data sets of encoded recordings."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch

from ttt_moshi.data.encoded import write_encoded
from ttt_moshi.frames import FRAME_RATE
from ttt_moshi.synthetic.recall.task import Example, length, make_example

FRAME_SECONDS = 1 / FRAME_RATE

PAIRS = 8
NEAR = (2, 20)
FAR = (16, 40)
"""training distances in frames"""
NEAR_SHARE = 0.25
TRAINING_FRAMES = length(PAIRS, FAR[1])
TEST_SEED = 1_000_000


def write_recall_training(folder: Path, recordings: int, seed: int) -> Path:
    """Recordings in the order in which they are to be heard: near distances first, the far ones afterwards."""
    rng = np.random.default_rng([seed, 0])
    near = round(NEAR_SHARE * recordings)
    ranges = [NEAR] * near + [FAR] * (recordings - near)
    return write_data_set(folder, (make_example(rng, PAIRS, int(rng.integers(low, high + 1))) for low, high in ranges))


def write_recall_test(folder: Path, recordings: int, distance: int, silent: bool = False) -> Path:
    """Recordings of one distance, the same for all models and seeds."""
    rng = np.random.default_rng([TEST_SEED, distance])
    return write_data_set(folder, (make_example(rng, PAIRS, distance, silent) for _ in range(recordings)))


def write_data_set(folder: Path, examples: Iterable[Example]) -> Path:
    """Writes one file of codes per example, and the jsonl file that lists them in order, which is returned."""
    folder.mkdir(parents=True)
    lines = []
    for index, example in enumerate(examples):
        name = f"{index:06}.safetensors"
        write_encoded(folder / name, torch.from_numpy(example.codes))
        seconds = example.codes.shape[1] * FRAME_SECONDS
        lines.append(json.dumps({"path": name, "duration": seconds, "prefix_sec": example.given * FRAME_SECONDS}))
    jsonl = folder / "data.jsonl"
    jsonl.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return jsonl
