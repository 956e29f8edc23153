"""Likelihood by position: a language whose voices are new, and measurements that agree with one another."""

import numpy as np
import pytest
import torch

from benchmarks.memory import measure, phones
from benchmarks.memory.base_model import write_base_model
from benchmarks.memory.position import BINS, by_position, compare
from benchmarks.memory.recordings import write_data_set
from ttt_moshi.config import LoraArgs, ModelPaths, TTTArgs
from ttt_moshi.moshi import build_model, resolve_model, set_context


def test_a_listener_who_knows_chain_and_voice_reaches_the_floor():
    chain, rng = phones.chain(), np.random.default_rng(0)
    phone, nats, frames = 0, 0.0, 40_000
    for _ in range(frames):
        following = rng.choice(phones.PHONES, p=chain[phone])
        nats -= np.log(chain[phone, following])
        phone = following
    assert nats / frames == pytest.approx(phones.entropy_rate(), abs=0.03)


def test_what_follows_a_code_depends_on_it_as_the_chain_says():
    """Counted over one long recording, the transitions between codes are the chain's, up to the names of the phones."""
    codes = phones.make_document(np.random.default_rng(3), 40_000).codes[1]
    names = np.unique(codes)
    place = np.searchsorted(names, codes)
    counts = np.zeros((len(names), len(names)))
    np.add.at(counts, (place[:-1], place[1:]), 1)
    rows = counts / counts.sum(1, keepdims=True)
    assert len(names) == phones.PHONES
    sharpness, wanted = np.sort((rows**2).sum(1)), np.sort((phones.chain() ** 2).sum(1))
    np.testing.assert_allclose(sharpness, wanted, atol=0.05)


def test_voices_differ_and_documents_repeat_exactly():
    first, second = (phones.make_document(np.random.default_rng(i), 300).codes for i in (0, 1))
    assert np.array_equal(first, phones.make_document(np.random.default_rng(0), 300).codes)
    assert set(first[1]) != set(second[1])
    assert (first[[0, 2, 3, 4]] == -1).all() and first[1].min() >= 0


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A TTT model whose layers write and read, with random weights throughout."""
    info = resolve_model(ModelPaths(hf_repo_id=str(write_base_model(tmp_path_factory.mktemp("m") / "base", seed=0))))
    args = TTTArgs(enable=True, layers="all", inner="linear", initial_gating_alpha=0.5, bidirectional_prefix=False)
    model = build_model(info, args, LoraArgs(), dtype=torch.float32).eval()
    set_context(model, 16)
    with torch.no_grad():
        for layer in model.layers:
            layer.ttt.wo.weight.normal_(std=0.3, generator=torch.Generator().manual_seed(1))
    return model


@pytest.fixture
def documents(tmp_path):
    def make(count: int):
        folder = tmp_path / str(count)
        if not folder.exists():
            write_data_set(folder, (phones.make_document(np.random.default_rng(i), 96) for i in range(count)))
        return folder / "data.jsonl"

    return make


def test_memory_of_oneself_changes_nothing(model, documents):
    """The list has one document, so the one before it is itself: two clips score as one long forward."""
    plain = measure.semantic_nll(model, documents(1), 96)
    swapped = measure.nll_with_memory_of_another(model, documents(1), 96, 48)
    assert plain.shape == (1, 96)
    np.testing.assert_allclose(swapped, plain, atol=2e-4)


def test_memory_of_another_matters_from_the_swap_on(model, documents):
    jsonl = documents(3)
    plain, swapped = measure.semantic_nll(model, jsonl, 96), measure.nll_with_memory_of_another(model, jsonl, 96, 48)
    np.testing.assert_allclose(swapped[:, :48], plain[:, :48], atol=2e-4)
    assert (abs(swapped[:, 48:] - plain[:, 48:]).max(1) > 1e-2).all()
    with measure.ablated(model, {"gate": 0.0}):
        plain, swapped = (
            measure.semantic_nll(model, jsonl, 96),
            measure.nll_with_memory_of_another(model, jsonl, 96, 48),
        )
    np.testing.assert_allclose(swapped, plain, atol=2e-4)


def test_comparisons_are_paired_by_document():
    rng = np.random.default_rng(0)
    difficulty = rng.normal(3, 1, (30, 1))
    window = np.repeat(difficulty, len(BINS) - 1, axis=1)
    better = window - 0.1 + rng.normal(0, 0.01, window.shape)
    models = {"window": {"by_bin": {"as trained": window.tolist()}}}
    models["ttt-linear"] = {"by_bin": {"as trained": better.tolist(), "gate 0": window.tolist()}}
    found = {entry["name"]: entry for entry in compare(models)}
    gain = found["ttt-linear against window, frames 128 to 256"]
    assert gain["value"] == pytest.approx(-0.1, abs=0.01) and gain["ci95"][1] < -0.09, (
        "voices differ far more than that"
    )
    assert found["ttt-linear, gate 0 against as trained, last bin"]["value"] == pytest.approx(0.1, abs=0.01)
    low, high = found["window, last bin against training length"]["ci95"]
    assert low == high == 0
    points = by_position(better)
    assert [point["from"] for point in points] == list(BINS[:-1]) and points[0]["ci95"][1] > points[0]["ci95"][0] + 0.3
