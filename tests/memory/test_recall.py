"""The reason for TTT layers, in three minutes: they recall what left the window, and only by writing it down."""

from functools import cache

import numpy as np
import pytest
import torch

from benchmarks.memory import measure
from benchmarks.memory.arms import WINDOW
from benchmarks.memory.run import AS_TRAINED, SILENCE, SILENT, bars, one_run, summarise
from ttt_moshi.config import LoraArgs, ModelPaths, TTTArgs
from ttt_moshi.moshi import build_model, resolve_model, set_context
from ttt_moshi.synthetic.recall import make_codes, recordings, share_right, share_right_with_memory_of_another
from ttt_moshi.synthetic.recall import task as recall
from ttt_moshi.synthetic.recall.base_model import reach, write_base_model

slow = pytest.mark.slow  # a second memory takes as long again
DISTANCES = (64, 256, 1024)


@pytest.fixture(scope="module")
def measured():
    """Models that heard the same recordings, trained when they are first asked for: attention alone, which learns
    nothing from more of them, or a memory beside it."""
    steps = {"window": 100, "ttt-linear": 250, "ttt-delta": 240}
    return cache(lambda name: one_run(name, 0, steps[name], recordings=16, distances=DISTANCES, late_recordings=0))


def worst(run, control, choose):
    return choose(point["value"] for point in run["recall"][control].values())


def test_attention_alone_guesses_beyond_its_reach(measured):
    assert reach(WINDOW) < min(DISTANCES)
    assert worst(measured("window"), AS_TRAINED, max) <= 0.12


# One test a memory: two test processes would train it twice.
@pytest.mark.parametrize(("memory", "share"), [pytest.param("ttt-linear", 0.75, marks=slow), ("ttt-delta", 0.9)])
def test_a_ttt_layer_recalls_far_beyond_training_and_guesses_without_its_memory(measured, memory, share):
    assert recordings.FAR[1] < min(DISTANCES) and SILENT >= 25 * 12.5 - 1
    run = measured(memory)
    assert worst(run, AS_TRAINED, min) >= share
    for control in ("reset", "inner lr 0", "gate 0"):
        assert set(run["recall"][control]) == {str(d) for d in DISTANCES}
        assert worst(run, control, max) <= 0.15, control
    if memory == "ttt-delta":  # the exact memory outlives 25 seconds of one sound
        assert worst(run, SILENCE, min) >= 0.9


@pytest.mark.parametrize(("pairs", "distance"), [(8, 32), (1, 2), (32, 100)])
def test_an_example_asks_for_every_pair_once_and_for_nothing_else(pairs, distance):
    example = recall.make_example(np.random.default_rng(0), pairs, distance)
    _, moshi, acoustic, user, _ = example.codes
    told, answers = np.arange(pairs), recall.answer_frames(pairs, distance)
    assert example.given == pairs and example.codes.shape == (5, recall.length(pairs, distance))
    assert set(np.flatnonzero(moshi >= 0)) == {*told, *answers} == set(np.flatnonzero(acoustic >= 0))
    assert set(np.flatnonzero(user < recall.KEYS)) == {*told, *(answers - 1)}
    assert answers[0] - 1 - told[-1] == distance + 1 and answers[-1] == example.codes.shape[1] - 1
    values = dict(zip(user[told], moshi[told], strict=True))
    assert len(values) == pairs
    assert [values[key] for key in user[answers - 1]] == moshi[answers].tolist()
    assert (example.codes[[0, 4]] == -1).all() and example.codes.max() < recall.CARD


def test_the_values_cannot_be_guessed():
    rng = np.random.default_rng(0)
    answers = np.concatenate(
        [recall.make_example(rng, 8, 20).codes[1, recall.answer_frames(8, 20)] for _ in range(2000)]
    )
    shares = np.bincount(answers, minlength=recall.VALUES) / len(answers)
    assert len(shares) == recall.VALUES and abs(shares - recall.CHANCE).max() < 0.01


def test_the_reach_of_the_window_is_what_it_is_said_to_be(tmp_path):
    """Changing a code further back than that changes no semantic prediction; changing the code at that place does."""
    info = resolve_model(ModelPaths(hf_repo_id=str(write_base_model(tmp_path / "base", seed=0))))
    model = build_model(info, TTTArgs(enable=False), LoraArgs(enable=False), dtype=torch.float32).eval()
    set_context(model, WINDOW)
    codes = torch.from_numpy(recall.make_example(np.random.default_rng(0), 8, 64).codes)[None]
    last = codes.shape[2] - 1

    def prediction(frame):
        changed = codes.clone()
        changed[:, 1:, frame] = (changed[:, 1:, frame] + 1) % recall.CARD
        with torch.no_grad():
            return model(changed).logits[0, 0, last]

    untouched = prediction(last - reach(WINDOW) - 1)
    assert torch.equal(prediction(last - reach(WINDOW) - 2), untouched)
    assert not torch.equal(prediction(last - reach(WINDOW)), untouched)


def test_a_bar_is_missed_by_the_worst_seed_alone():
    def run(value, control=0.06):
        points = {str(d): {"value": value} for d in DISTANCES}
        return {"recall": {AS_TRAINED: points, "reset": {d: {"value": control} for d in points}}}

    good = bars(summarise({"ttt-linear/0": run(0.99), "ttt-linear/1": run(0.97)}))
    assert [bar["met"] for bar in good] == [True, True] and good[0]["value"] == 0.97
    bad = bars(summarise({"ttt-linear/0": run(0.99), "ttt-linear/1": run(0.90, control=0.2)}))
    assert [bar["met"] for bar in bad] == [False, False]
    window = bars(summarise({"window/0": {"recall": {AS_TRAINED: {"16": {"value": 0.9}, "64": {"value": 0.07}}}}}))
    assert [(bar["value"], bar["met"]) for bar in window] == [(0.07, True)], "within its reach a window may recall"


def test_answers_are_counted_as_through_data_and_loader(tmp_path):
    """Two ways to the same numbers: recordings in memory at the frames of the answers, and files with their masks."""
    model = small_model(tmp_path)
    test = recordings.write_recall_test(tmp_path / "test", 96, 40)
    shares = share_right(model, make_codes(96, 40), 40)
    assert shares.tolist() == measure.recall(model, test, recall.length(recordings.PAIRS, 40)).tolist()
    assert 0 < shares.mean() < 0.5


def test_the_memory_of_another_is_another_ones(tmp_path):
    model, codes = small_model(tmp_path), make_codes(96, 40)
    alike = codes[:1].repeat(96, 1, 1)
    assert share_right_with_memory_of_another(model, alike, 40).tolist() == share_right(model, alike, 40).tolist()
    assert share_right_with_memory_of_another(model, codes, 40).tolist() != share_right(model, codes, 40).tolist()


def small_model(folder):
    """Untrained, with memories that write and are heard."""
    info = resolve_model(ModelPaths(hf_repo_id=str(write_base_model(folder / "base", seed=0))))
    ttt = TTTArgs(enable=True, layers="all", inner="linear", initial_gating_alpha=1.0)
    model = build_model(info, ttt, LoraArgs(enable=False), dtype=torch.float32).eval()
    set_context(model, WINDOW)
    generator = torch.Generator().manual_seed(0)
    for name, parameter in model.named_parameters():
        if name.endswith("ttt.wo.weight"):
            parameter.data.normal_(generator=generator)
    return model
