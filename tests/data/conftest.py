"""A small Mimi of the official class, a small tokenizer, and recordings made on the spot."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import sentencepiece
import soundfile
import torch
from moshi.models.loaders import get_mimi

from ttt_moshi.data import Codec

# Attention looks back 20 steps (10 frames) and a chunk of the codec is 50 frames, so that every recording of more than
# a second leaves the window.
MIMI_CONFIG = {
    "sample_rate": 24000,
    "channels": 1,
    "frame_rate": 12.5,
    "seanet": {
        "channels": 1, "dimension": 16, "causal": True, "n_filters": 2, "n_residual_layers": 1, "activation": "ELU",
        "compress": 2, "dilation_base": 2, "disable_norm_outer_blocks": 0, "kernel_size": 7,
        "residual_kernel_size": 3, "last_kernel_size": 3, "norm": "none", "pad_mode": "constant",
        "ratios": [8, 6, 5, 4], "true_skip": True,
    },
    "quantizer": {"dimension": 8, "n_q": 8, "bins": 32, "input_dimension": 16, "output_dimension": 16},
    "transformer": {
        "d_model": 16, "num_heads": 2, "num_layers": 2, "causal": True, "layer_scale": 0.3, "context": 20,
        "conv_layout": True, "max_period": 10000, "gating": "none", "norm": "layer_norm",
        "positional_embedding": "rope", "dim_feedforward": 32, "input_dimension": 16, "output_dimensions": [16],
    },
}  # fmt: skip


def make_mimi(seed: int = 0):
    """Random weights and codebooks, scaled so that codes depend on the sound, its past and its position."""
    torch.manual_seed(seed)
    mimi = get_mimi(None, MIMI_CONFIG, num_codebooks=8)
    with torch.no_grad():
        for parameter in mimi.encoder.parameters():
            parameter.mul_(3.0)
        for name, buffer in mimi.named_buffers():
            if name.endswith("embedding_sum"):
                buffer.normal_(std=0.2)
            elif name.endswith("_initialized"):
                buffer.fill_(1.0)
    return mimi


@pytest.fixture(scope="session")
def mimi():
    return make_mimi()


@pytest.fixture(scope="session")
def other_mimi():
    return make_mimi(seed=1)


@pytest.fixture(scope="session")
def mimi_config() -> dict:
    return MIMI_CONFIG


@pytest.fixture(scope="session")
def codec() -> Codec:
    return Codec(make_mimi(), MIMI_CONFIG)


@pytest.fixture(scope="session")
def tokenizer() -> sentencepiece.SentencePieceProcessor:
    """The ids of Moshi's own tokenizer: 0 unknown, 1 and 2 begin and end, 3 padding."""
    model = io.BytesIO()
    words = [
        "hello there how are you today",
        "fine thanks and you",
        "the quick brown fox",
        "zebra yacht xylophone jumbo",
    ]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(words * 20), model_writer=model, vocab_size=60, model_type="bpe",
        unk_id=0, bos_id=1, eos_id=2, pad_id=3, minloglevel=2,
    )  # fmt: skip
    return sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())


def make_sound(seconds: float, channels: int = 2, rate: int = 24000, seed: int = 0) -> np.ndarray:
    """Sine bursts over faint noise, float32 `[samples, channels]`, another pattern in every channel."""
    rng = np.random.default_rng(seed)
    t = np.arange(round(seconds * rate)) / rate
    sound = [
        0.4 * np.sin(2 * np.pi * rng.uniform(150, 900) * t) * (np.sin(2 * np.pi * (0.7 + c) * t + seed) > 0)
        + 0.02 * rng.standard_normal(len(t))
        for c in range(channels)
    ]
    return np.stack(sound, axis=1).astype(np.float32)


@pytest.fixture(scope="session")
def sound() -> Callable[..., np.ndarray]:
    return make_sound


@pytest.fixture
def write_recording() -> Callable[..., Path]:
    """Writes a sound file, with a transcript beside it where `words` are given."""

    def write(path: Path, seconds: float = 2.0, *, channels=2, rate=24000, seed=0, words=None, document=None) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, make_sound(seconds, channels, rate, seed), rate)
        if words is not None:
            document = {"alignments": [[w, [a, b], s] for w, a, b, s in words]}
        if document is not None:
            path.with_suffix(".json").write_text(json.dumps(document))
        return path

    return write


@pytest.fixture
def data_set(tmp_path, write_recording) -> Callable[..., Path]:
    """A data set of recordings with the given lengths in seconds; returns its jsonl file."""

    def make(*seconds: float, name: str = "data", **line: object) -> Path:
        folder = tmp_path / name
        lines = []
        for i, length in enumerate(seconds):
            words = [("hello", 0.1, 0.4, "SPEAKER_MAIN"), ("fine", 0.5, 0.7, "SPEAKER_OTHER")]
            words += [("you", t + 0.3, t + 0.5, "SPEAKER_MAIN") for t in np.arange(0.5, length - 0.5, 0.5).tolist()]
            write_recording(folder / "wavs" / f"{i}.wav", length, seed=i, words=words)
            lines.append(json.dumps({"path": f"wavs/{i}.wav", "duration": length, **line}))
        (folder / "data.jsonl").write_text("\n".join(lines) + "\n")
        return folder / "data.jsonl"

    return make
