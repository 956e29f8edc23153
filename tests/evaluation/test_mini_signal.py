"""The control beside the small benchmarks' accuracies: labels without meaning."""

import numpy as np
import pytest

from benchmarks.evaluation.mini_signal import shuffled_labels, signal
from ttt_moshi.evaluation.files import write_evaluation
from ttt_moshi.evaluation.results import Results
from ttt_moshi.evaluation.suite import run_suite
from ttt_moshi.evaluation.tasks.registry import Benchmarks


def test_shuffled_labels_know_luck_from_knowledge():
    items = np.random.default_rng(0).random((200, 100)) < 0.5
    lucky = [shuffled_labels(row.astype(float), 500, seed=1)["p"] for row in items]
    assert 0.4 < np.mean(lucky) < 0.6 and 0.01 <= np.mean(np.array(lucky) < 0.05) <= 0.1
    knowing = shuffled_labels(np.array([1.0] * 65 + [0.0] * 35), 2000, seed=1)
    assert knowing["p"] < 0.01 and knowing["range95"] == pytest.approx([0.4, 0.6], abs=0.02)


def test_voices_are_exchanged_together():
    """Items are what is drawn: eight voices of one item are not eight witnesses."""
    low, high = shuffled_labels(np.array([1.0]), 1000, seed=0)["range95"]
    assert (low, high) == (0.0, 1.0)


def test_the_table_is_of_the_evaluation_that_was_written(tmp_path, toy, oracle):
    for i in range(12):
        for k, kind in enumerate(("correct", "incorrect")):
            toy(tmp_path / "sSC" / f"{2 * i + k}_u{i}_{kind}.wav", [1, 2, 3 + 5 * k, 4])
    found = run_suite(["ssc"], Benchmarks(tmp_path, frames_of=len), lambda name: oracle())
    results = Results({"state_id": "s", "step": 0, "kind": "full"}, found.tasks, {"max_items": None, "split": "test"})
    write_evaluation(tmp_path / "out", results, found.outcomes, {})
    task = signal(tmp_path / "out", shuffles=2000)["ssc"]
    assert (task["value"], task["n"]) == (1.0, 12)
    assert task["shuffled_labels"]["p"] < 0.01 and task["shuffled_labels"]["range95"][1] < 1.0
