"""Intervals and tests of significance, against closed forms and enumerations."""

import itertools
import math

import numpy as np
import pytest

from ttt_moshi.evaluation.statistics import (
    bootstrap_mean,
    bootstrap_ratio,
    mcnemar,
    means_by_name,
    paired_difference,
)


def test_the_interval_of_a_mean_has_the_width_of_its_standard_error():
    values = np.random.default_rng(0).normal(3.0, 2.0, 400)
    low, high = bootstrap_mean(values)
    half = 1.96 * values.std() / 20
    assert low == pytest.approx(values.mean() - half, abs=0.05)
    assert high == pytest.approx(values.mean() + half, abs=0.05)
    assert bootstrap_mean(values) == (low, high)  # no hidden state
    np.random.seed(1)
    assert bootstrap_mean(values) == (low, high)


def test_intervals_cover_the_truth_about_as_often_as_they_say():
    rng = np.random.default_rng(1)
    covered = 0
    for _ in range(200):
        low, high = bootstrap_mean((rng.random(60) < 0.7).astype(float), resamples=400)
        covered += low <= 0.7 <= high
    assert 0.88 <= covered / 200 <= 0.99


def test_tokens_of_one_item_are_not_independent():
    """Ten items of a hundred equal tokens: the interval is that of ten values, not of a thousand."""
    means = np.arange(10.0)
    low, high = bootstrap_ratio(means * 100, np.full(10, 100.0))
    assert (low, high) == pytest.approx(bootstrap_mean(means))
    assert high - low > 3


def test_samples_of_one_item_are_not_independent_either():
    """Twenty items, each of them twice: the mean and the interval are those of twenty, not of forty."""
    values = np.random.default_rng(2).random(20)
    twice = [{"item": f"task {i}", "taken": value + way} for way in (-0.25, 0.25) for i, value in enumerate(values)]
    found = means_by_name(twice, ["taken", "rating"])["taken"]
    assert found["value"] == pytest.approx(values.mean()) and found["n"] == 20
    assert found["ci95"] == pytest.approx(bootstrap_mean(values))
    alone = means_by_name([{"taken": value} for value in values], ["taken"])["taken"]
    assert alone["ci95"] == pytest.approx(found["ci95"]) and alone["n"] == 20


def test_a_ratio_is_weighted_by_tokens_and_ignores_items_without_any():
    low, high = bootstrap_ratio(np.array([10.0, 0.0, 1000.0]), np.array([10.0, 0.0, 10.0]))
    assert low == 1.0 and high == 100.0


def test_pairing_removes_what_items_have_in_common():
    rng = np.random.default_rng(2)
    difficulty = rng.normal(0, 10, 300)
    first = difficulty + rng.normal(0, 0.1, 300)
    second = difficulty + 0.2 + rng.normal(0, 0.1, 300)
    low, high = paired_difference(first, second)
    assert 0.15 < low < 0.2 < high < 0.25
    unpaired_width = np.diff(bootstrap_mean(first))[0]
    assert high - low < unpaired_width / 20


@pytest.mark.parametrize(("a", "b"), list(itertools.product(range(6), range(6))))
def test_mcnemar_equals_the_enumeration_of_all_coin_tosses(a, b):
    n = a + b
    tosses = [sum(t) for t in itertools.product((0, 1), repeat=n)]
    extreme = sum(abs(2 * heads - n) >= abs(a - b) for heads in tosses)
    assert mcnemar(a, b) == pytest.approx(min(1.0, extreme / len(tosses)))


def test_mcnemar_works_with_thousands_of_items():
    assert mcnemar(1000, 1000) == 1.0
    p = mcnemar(900, 1100)
    z = (200 - 1) / math.sqrt(2000)
    assert p == pytest.approx(math.erfc(z / math.sqrt(2)), rel=0.02)
