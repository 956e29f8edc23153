"""Gates: conversations that fail one, known by how they were made."""

from functools import partial

import numpy as np
import pytest
import soundfile

from ttt_moshi.evaluation.gates import judge
from ttt_moshi.inference.driver import Conversation

RATE, SECONDS = 24_000, 20
PAD, EPAD = 3, 0


def bursts(spans) -> np.ndarray:
    noise = 0.1 * np.random.default_rng(0).standard_normal(SECONDS * RATE).astype(np.float32)
    loud = np.zeros(len(noise), bool)
    for start, end in spans:
        loud[round(start * RATE) : round(end * RATE)] = True
    return noise * loud


@pytest.fixture
def conversation(tmp_path):
    """Speech in `spans`; `words` are the first text tokens, PAD the others."""
    return partial(make, tmp_path)


def make(folder, spans, words) -> Conversation:
    tokens = np.full((9, round(SECONDS * 12.5)), 5)
    tokens[0] = PAD
    tokens[0, : len(words)] = words
    soundfile.write(folder / "output.wav", bursts(spans), RATE)
    return Conversation(folder, tokens, SECONDS, [])


FINE = list(range(10, 30))
TURNS = [(1, 5), (8, 11)]


@pytest.mark.parametrize(("spans", "words", "failures"), [
    (TURNS, FINE, set()),
    (TURNS, [], {"empty"}),
    (TURNS, [EPAD, PAD, EPAD], {"empty"}),
    ([], FINE, {"empty"}),
    ([(1, 9), (9.9, 20)], FINE, {"endless"}),
    ([(1, 9), (10.1, 20)], FINE, set()),
    ([(1, 18.8)], FINE, set()),
    (TURNS, [7, 8, 9, 10, 11] * 4, {"loops"}),
    (TURNS, [*FINE, 10, 11, 12, 13, 14], set()),
    ([(1, 20)], [7] * 20, {"endless", "loops"}),
])  # fmt: skip
def test_a_conversation_fails_the_gates_that_it_was_made_to_fail(conversation, spans, words, failures):
    found = judge(conversation(spans, words), bursts(TURNS), (PAD, EPAD))
    assert {name for name in ("empty", "endless", "loops") if found[name]} == failures
    assert found["failed"] == bool(failures)


def test_lengths_are_held_against_the_recorded_agent(conversation):
    for spans, ratio, off in ((TURNS, 1.0, 0.0), ([(1, 4.5)], 0.5, 1.0), ([(1, 15)], 2.0, 1.0), ([], 0.0, 3.0)):
        found = judge(conversation(spans, FINE), bursts(TURNS), (PAD, EPAD))
        assert (found["length_ratio"], found["off_length"]) == pytest.approx((ratio, off), abs=0.02)
        assert found["silence"] == pytest.approx(1 - 7 * ratio / SECONDS, abs=0.005)
    silent = judge(conversation(TURNS, FINE), bursts([]), (PAD, EPAD))
    assert "length_ratio" not in silent and "off_length" not in silent
