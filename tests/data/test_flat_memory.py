"""Memory of what reads long recordings: three hours take little more than ten minutes."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from benchmarks.data.amount import apart, make, prepare_all
from ttt_moshi.data.fit import loud_masks, measure
from ttt_moshi.data.transcripts import MAIN_SPEAKER, OTHER_SPEAKER, Word
from ttt_moshi.data.voiced import EnergyMeter

HOPS_A_SECOND = 50


def call(seconds: int, late: float = 0.0) -> tuple[list[Word], np.ndarray]:
    """Two who take turns every two seconds: their words, and the energies `[2, hops]`."""
    turn = np.arange(seconds * HOPS_A_SECOND) // (2 * HOPS_A_SECOND) % 2
    noise = np.random.default_rng(0).normal(0, 3, (2, len(turn)))
    decibels = (np.where(np.stack([turn, 1 - turn]) == 0, -20, -70) + noise).astype(np.float32)
    # Moshi is silent at times, so that a shift by two turns fits less.
    starts = [t for t in np.arange(0.05, seconds - 0.4, 0.4).tolist() if int(t // 2) % 14]
    for quiet in range(0, seconds, 28):
        decibels[0, quiet * HOPS_A_SECOND : (quiet + 2) * HOPS_A_SECOND] = -70
    words = [Word("so", t + late, t + late + 0.3, (MAIN_SPEAKER, OTHER_SPEAKER)[int(t // 2) % 2]) for t in starts]
    return words, decibels


def peak(work: Callable[[], object]) -> int:
    """Bytes that a piece of work holds at most."""
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_words_and_audio_of_hours_are_compared_piece_by_piece():
    short, long = call(600), call(10_800)
    measure(*short)  # what is loaded at the first call is nobody's
    assert peak(lambda: measure(*long)) < 5 * peak(lambda: measure(*short))  # for 18 times as much


def test_pieces_give_the_correlation_of_the_whole():
    words, decibels = call(1800)  # more than two pieces
    found = measure(words, decibels)
    said = np.zeros(decibels.shape, bool)
    for word in words:
        start, end = int(word.start * HOPS_A_SECOND), int(np.ceil(word.end * HOPS_A_SECOND))
        said[0 if word.speaker == MAIN_SPEAKER else 1, start:end] = True
    loud = loud_masks(decibels)

    def together(shift: int) -> float:
        """Of both channels, the words moved by so many hops."""
        length = decibels.shape[1]
        total, sizes = 0.0, np.zeros(2)
        for own, other in zip(said - said.mean(1, keepdims=True), loud - loud.mean(1, keepdims=True), strict=True):
            total += float(own[max(0, -shift) : length - max(0, shift)] @ other[max(0, shift) :][: length - abs(shift)])
            sizes += [own @ own, other @ other]
        return total / float(np.sqrt(sizes.prod()))

    assert found.own == pytest.approx(together(0), abs=1e-9)
    assert found.best == pytest.approx(together(round(found.lag * HOPS_A_SECOND)), abs=1e-9)
    assert found.best == pytest.approx(max(map(together, range(-600, 601))), abs=1e-9)
    late = measure(call(1800, late=5.0)[0], decibels)
    assert late.lag == pytest.approx(found.lag - 5, abs=0.05) and late.best == pytest.approx(found.best, abs=0.01)


def test_energies_take_four_bytes():
    blocks, seconds = np.zeros((2, 4 * 24_000), np.float32), 400
    tracemalloc.start()
    try:
        meter = EnergyMeter(2)
        for _ in range(seconds // 4):
            meter.add(blocks)
        held = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    assert meter.decibels().shape == (2, seconds * HOPS_A_SECOND)
    assert held / meter.decibels().size < 5.5


@pytest.mark.slow
def test_prepare_holds_no_more_of_two_hours_than_their_words_and_energies(tmp_path: Path):
    costs = []
    for seconds in (300, 7500):
        make(tmp_path / str(seconds), seconds, 1)
        costs.append(apart(prepare_all, "prepare", tmp_path / str(seconds), tmp_path / f"{seconds}.out"))
    short, long = costs
    assert long.memory - short.memory < 24, costs  # MB; 38 when everything was held several times over
