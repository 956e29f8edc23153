"""Likelihood by position: a language whose voices are new, and measurements that agree with one another."""

import numpy as np
import pytest
import torch

from benchmarks.memory import arms, hour, measure, phones
from benchmarks.memory.compare import compare, gather, points
from benchmarks.memory.curves import BINS
from benchmarks.memory.plots import AS_TRAINED, COLOURS, colour_of
from ttt_moshi.config import LoraArgs, ModelPaths, TTTArgs
from ttt_moshi.moshi import build_model, resolve_model, set_context
from ttt_moshi.synthetic.recall.base_model import write_base_model


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
def documents(tmp_path, model):
    """Codes of so many recordings of 96 frames."""

    def make(count: int):
        jsonl = phones.write_recordings(tmp_path / str(count), [96] * count, seed=0)
        return measure.read_codes(model, jsonl, 96)

    return make


def test_memory_of_oneself_changes_nothing(model, documents):
    """The list has one document, so the one before it is itself: two clips score as one long forward."""
    codes = documents(1)
    plain = measure.semantic_nll(model, codes)
    swapped = measure.nll_with_memory_of_another(model, codes, 48)
    assert plain.shape == (1, 96)
    np.testing.assert_allclose(swapped, plain, atol=2e-4)


def test_memory_of_another_matters_from_the_swap_on(model, documents):
    codes = documents(3)
    plain, swapped = measure.semantic_nll(model, codes), measure.nll_with_memory_of_another(model, codes, 48)
    np.testing.assert_allclose(swapped[:, :48], plain[:, :48], atol=2e-4)
    assert (abs(swapped[:, 48:] - plain[:, 48:]).max(1) > 1e-2).all()
    with measure.ablated(model, {"gate": 0.0}):
        plain, swapped = measure.semantic_nll(model, codes), measure.nll_with_memory_of_another(model, codes, 48)
    np.testing.assert_allclose(swapped, plain, atol=2e-4)


def test_a_bound_acts_once_the_memory_has_gone_so_far(model, documents):
    codes = documents(2)
    plain = measure.semantic_nll(model, codes)
    np.testing.assert_allclose(measure.nll_with_bounded_memory(model, codes, 100.0), plain, atol=2e-4)
    tight = measure.nll_with_bounded_memory(model, codes, 0.0)
    first = measure.BOUND_EVERY
    np.testing.assert_allclose(tight[:, :first], plain[:, :first], atol=2e-4)
    assert (abs(tight[:, first:] - plain[:, first:]).max(1) > 1e-2).all()
    with measure.ablated(model, {"reset_every": first}):
        forgotten = measure.semantic_nll(model, codes)
    np.testing.assert_allclose(tight, forgotten, atol=2e-4, err_msg="a memory held to its start is one that forgets")


def test_comparisons_are_paired_by_document_and_pool_seeds():
    rng = np.random.default_rng(0)
    difficulty = rng.normal(3, 1, (30, 1))
    bins = len(BINS) - 1
    runs = {}
    for seed in range(3):
        window = np.repeat(difficulty, bins, axis=1)
        better = window - 0.1 + rng.normal(0, 0.01, window.shape)
        runs[f"window/{seed}"] = {"by_bin": {AS_TRAINED: window.tolist()}}
        runs[f"ttt-linear/{seed}"] = {"by_bin": {AS_TRAINED: better.tolist(), "gate 0": window.tolist()}}
    curves = gather(runs)
    found = {entry["name"]: entry for entry in compare(curves)}
    gain = found["ttt-linear - window, frames 128 to 256"]
    assert gain["value"] == pytest.approx(-0.1, abs=0.01) and gain["ci95"][1] < -0.09, "documents differ far more"
    assert gain["met"] and len(gain["seeds"]) == 3
    assert found["ttt-linear, as trained - gate 0, last bin"]["met"]
    assert found["window, frames 2048 to 4096 - 128 to 256"]["value"] == 0
    curve = points(curves)["ttt-linear"][AS_TRAINED]
    assert [point["from"] for point in curve] == list(BINS[:-1]) and curve[0]["ci95"][1] > curve[0]["ci95"][0] + 0.3


def test_drift_and_a_seed_that_gains_nothing_miss_their_bounds():
    """A model that is better by 0.1 with two seeds, equal with the third, and worse from frame 512 on with all."""
    rng = np.random.default_rng(1)
    window = rng.normal(3, 1, (30, 1)) + rng.normal(0, 0.01, (30, len(BINS) - 1))
    runs = {f"window/{seed}": {"by_bin": {AS_TRAINED: window.tolist()}} for seed in range(3)}
    for seed, gain in enumerate((0.1, 0.1, 0.0)):
        drifting = window - gain
        drifting[:, -3:] += 0.05
        runs[f"ttt-mlp/{seed}"] = {"by_bin": {AS_TRAINED: drifting.tolist()}}
    met = {entry["name"]: entry.get("met") for entry in compare(gather(runs))}
    assert not met["ttt-mlp - window, frames 128 to 256"]
    assert not met["ttt-mlp, frames 512 to 1024 - 128 to 256"]
    assert met["ttt-mlp, frames 256 to 512 - 128 to 256"]


def test_the_bars_of_an_hour_are_met_and_missed_by_what_they_say():
    rng = np.random.default_rng(2)
    window = rng.normal(4, 0.3, (8, 1)) + rng.normal(0, 0.005, (8, 7))
    good, drifting = window - 0.2, window - 0.2 + np.linspace(0, 0.25, 7)

    def met(**by_bin):
        names = {"window": window, "window-sink": window + 0.05, **by_bin}
        runs = {f"{name.replace('_', '-')}/0": {"by_bin": nll.tolist()} for name, nll in names.items()}
        return [bar["met"] for bar in hour.bars(runs, 0.15)]

    assert met() == [], "a window is asked nothing"
    assert met(ttt_delta_both_lasting=good) == [True, True, True], "nor need a memory forget"
    assert met(ttt_delta_fading=good) == [True, True, True]
    assert met(ttt_delta_fading=drifting) == [False, False, False]
    assert met(ttt_delta_fading=window - 0.1) == [True, False, True]
    seeds = {"window/0": window, "ttt-delta-fading/0": good, "window/1": window, "ttt-delta-fading/1": window - 0.4}
    bars = hour.bars({name: {"by_bin": nll.tolist()} for name, nll in seeds.items()}, 0.15)
    assert bars[1]["value"] == pytest.approx(-0.3) and [seed["value"] for seed in bars[1]["seeds"]] == pytest.approx(
        [-0.2, -0.4]
    )


def test_every_model_can_be_drawn():
    assert {colour_of(name) for name in arms.ARMS} == set(COLOURS.values())
