"""The small Mimi: an official model whose codes carry speech."""

from __future__ import annotations

import json
import math
import random
from collections import Counter
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from moshi.models.compression import MimiModel
from moshi.models.loaders import get_mimi

from ttt_moshi.synthetic.dialogues import MOSHI_VOICES
from ttt_moshi.synthetic.espeak import Utterance, speak
from ttt_moshi.synthetic.kmeans import kmeans, residual_codebooks
from ttt_moshi.synthetic.small_mimi import (
    MimiSize,
    _join,
    discriminants,
    fit_mimi,
    mimi_config,
    principal_components,
    save_mimi,
)


def purity(codes: list[int], labels: list[str]) -> float:
    """Share of frames whose label is the commonest one of their code."""
    best: dict[int, int] = {}
    for (code, _), count in Counter(zip(codes, labels, strict=True)).items():
        best[code] = max(best.get(code, 0), count)
    return sum(best.values()) / len(codes)


@pytest.fixture(scope="module")
def unheard() -> tuple[torch.Tensor, list[str]]:
    """Audio [1, 1, N] of sentences that Mimi was not fitted on, and the phone of every frame."""
    texts = ["An old man walked across the road.", "We never said that it was easy.", "Please bring me the other one."]
    return _join([speak(text, voice) for text in texts for voice in MOSHI_VOICES], 1920)


def test_codes_of_unheard_speech_use_every_level(mimi: MimiModel, unheard: tuple[torch.Tensor, list[str]]) -> None:
    codes = mimi.encode(unheard[0])[0]
    assert codes.shape == (8, unheard[0].shape[-1] // 1920)
    for level in codes:
        share = torch.bincount(level, minlength=64).double() / len(level)
        entropy = -(share[share > 0] * share[share > 0].log()).sum().item()
        assert entropy > 0.7 * math.log(64)


def test_semantic_codes_tell_phones_apart(mimi: MimiModel, unheard: tuple[torch.Tensor, list[str]]) -> None:
    audio, phones = unheard
    spoken = [i for i, phone in enumerate(phones) if phone != "_"]
    labels = [phones[i] for i in spoken]
    codes = mimi.encode(audio)[0]
    semantic, acoustic = (purity([codes[level][i].item() for i in spoken], labels) for level in (0, 7))
    shuffled = random.Random(0).sample(labels, len(labels))
    chance = purity([codes[0][i].item() for i in spoken], shuffled)
    assert semantic > chance + 0.1
    assert semantic > acoustic + 0.1


def test_codes_tell_speakers_apart(mimi: MimiModel) -> None:
    spoken = [speak("My name is Emma.", voice).samples[: 10 * 1920] for voice in MOSHI_VOICES[:2]]
    one, other = (mimi.encode(torch.from_numpy(samples)[None, None])[0] for samples in spoken)
    assert (one[1:] == other[1:]).float().mean() < 0.3


def test_official_random_weights_carry_nothing(unheard: tuple[torch.Tensor, list[str]], mimi_size: MimiSize) -> None:
    """The reason for the fitting."""
    assert get_mimi(None, mimi_config(mimi_size)).encode(unheard[0]).unique().tolist() == [0]


def test_files_load_with_the_official_loader(mimi: MimiModel, mimi_size: MimiSize, tmp_path: Path) -> None:
    save_mimi(mimi, mimi_size, tmp_path / "m.safetensors", tmp_path / "m.json")
    loaded = get_mimi(tmp_path / "m.safetensors", json.loads((tmp_path / "m.json").read_text()))
    assert (loaded.sample_rate, loaded.frame_rate, loaded.num_codebooks, loaded.cardinality) == (24_000, 12.5, 8, 64)
    audio = 0.1 * torch.randn(1, 1, 24_000, generator=torch.Generator().manual_seed(0))
    assert torch.equal(loaded.encode(audio), mimi.encode(audio))
    assert torch.isfinite(loaded.decode(loaded.encode(audio))).all()


def log_spectrum(samples: torch.Tensor) -> torch.Tensor:
    """Energy of 32 bands every 20 ms, in nats: [bands * frames]."""
    frames = samples[: len(samples) // 480 * 480].view(-1, 480)
    power = torch.fft.rfft(frames * torch.hann_window(480)).abs().square()[:, 1:161]
    return (power.view(len(frames), 32, 5).sum(2) + 1e-3).log().flatten()


def test_decoded_speech_resembles_the_original(mimi: MimiModel, unheard: tuple[torch.Tensor, list[str]]) -> None:
    codes = mimi.encode(unheard[0])
    original, decoded = unheard[0][0, 0], mimi.decode(codes)[0, 0]
    other = mimi.decode(codes.roll(codes.shape[-1] // 2, -1))[0, 0]
    likeness, chance = (
        torch.corrcoef(torch.stack([log_spectrum(original), log_spectrum(x)]))[0, 1] for x in (decoded, other)
    )
    assert likeness > 0.7
    assert likeness > chance + 0.3
    assert 0.7 < (decoded.square().mean() / original.square().mean()).sqrt() < 1.4
    silence = mimi.decode(mimi.encode(torch.zeros(1, 1, 20 * 1920)))
    assert silence.square().mean() < 0.01 * decoded.square().mean()


def test_silence_has_one_code_once_nothing_else_is_in_reach(mimi: MimiModel) -> None:
    codes = mimi.encode(torch.zeros(1, 1, 40 * 1920))[0]
    assert (codes[:, 4:] == codes[:, 4:5]).all()


def test_fitting_depends_on_speech_and_seed_alone(utterances: list[Utterance], mimi_size: MimiSize) -> None:
    torch.manual_seed(5)
    state = torch.get_rng_state()
    first = fit_mimi(utterances[:20], mimi_size).state_dict()
    assert torch.equal(torch.get_rng_state(), state), "the caller's generator is left as it was"
    torch.manual_seed(6)
    second = fit_mimi(utterances[:20], mimi_size).state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)


@given(st.integers(0, 1000), st.integers(1, 12))
@settings(max_examples=20, deadline=None)
def test_kmeans_gives_used_centroids_and_residuals_shrink(seed: int, count: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    points = torch.randn(60, 3, generator=generator)
    centroids, usage = kmeans(points, count, generator)
    assert centroids.shape == (count, 3) and (usage >= 1).all()
    residual, norms = points, [points.square().sum().item()]
    for level, _ in residual_codebooks(points, 3, count, generator):
        residual = residual - level[torch.cdist(residual, level).argmin(1)]
        norms.append(residual.square().sum().item())
    assert norms[1] <= norms[0] * 1.0001
    assert norms[-1] <= norms[0]


def test_kmeans_needs_as_many_points_as_clusters() -> None:
    with pytest.raises(ValueError, match="at least as many points"):
        kmeans(torch.randn(3, 2), 4, torch.Generator())


def test_kmeans_finds_separate_clusters() -> None:
    generator = torch.Generator().manual_seed(0)
    centres = torch.tensor([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0]])
    points = centres.repeat_interleave(20, 0) + 0.01 * torch.randn(60, 2, generator=generator)
    centroids, usage = kmeans(points, 3, generator)
    assert torch.cdist(centres, centroids).min(1).values.max() < 0.1
    assert usage.tolist() == [20, 20, 20]


def test_discriminants_ignore_variance_that_says_nothing_about_the_label() -> None:
    generator = torch.Generator().manual_seed(0)
    labels = ["a", "b"] * 100
    features = torch.randn(200, 3, generator=generator) * torch.tensor([1.0, 30.0, 1.0])
    features[:, 2] += torch.tensor([1.0, -1.0] * 100) * 3
    direction = discriminants(features, labels, 2)
    assert direction[0].abs().argmax() == 2
    assert direction[1].abs().max() == 0, "two classes have one discriminant"
    assert principal_components(features, 1)[0][0].abs().argmax() == 1
