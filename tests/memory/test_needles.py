"""Facts told at one time and asked at another: what the recordings of the benchmark say, and what is counted."""

from itertools import pairwise

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.memory import needles, told
from ttt_moshi.synthetic.recall.task import KEYS, MOSHI_SEMANTIC, USER_SEMANTIC


def heard(codes):
    """(frame, key, Moshi's value in that frame or None) of everything the user says that is a key."""
    user, moshi = codes[USER_SEMANTIC], codes[MOSHI_SEMANTIC]
    return [(f, int(user[f]), int(moshi[f]) if moshi[f] >= 0 else None) for f in np.flatnonzero(user < KEYS)]


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 12), st.integers(2, 60), st.integers(1, 8))
def test_a_long_recording_asks_what_was_told_last_and_never_more_than_once(seed, held, shortest, spread):
    codes = told.busy(np.random.default_rng(seed), 1500, held, (shortest, shortest * spread)).codes
    known, waited = {}, []
    for frame, key, value in heard(codes):
        if value is not None:  # it is told
            assert key not in known
            known[key] = frame, value
            assert len(known) <= held
        else:
            when, value = known.pop(key)
            assert codes[MOSHI_SEMANTIC, frame + 1] == value
            waited.append(frame - when)
    # Asked when they are due, or in one of the next places, since as many may be due at once as wait.
    assert waited and min(waited) >= shortest and max(waited) <= shortest * spread + told.SLOT * (held + 1)
    said = int((codes[MOSHI_SEMANTIC] >= 0).sum())
    assert said == 2 * len(waited) + len(known)


@settings(max_examples=30, deadline=None)
@given(
    st.integers(0, 2**32 - 1), st.integers(1, 6), st.lists(st.integers(20, 400), min_size=1, max_size=3, unique=True)
)
def test_groups_of_facts_are_asked_at_once_after_their_own_distance(seed, facts, distances):
    distances = sorted(distances, reverse=True)
    if any(a - b < told.SLOT * facts for a, b in pairwise(distances)):
        return  # groups that would lie on one another
    codes, answers = told.told_before(np.random.default_rng(seed), facts, distances)
    events = heard(codes)
    tellings = {key: (frame, value) for frame, key, value in events if value is not None}
    questions = {key: frame for frame, key, value in events if value is None}
    assert len(events) == 2 * facts * len(distances) == 2 * len(tellings) and tellings.keys() == questions.keys()
    first = min(questions.values())
    for distance, frames in zip(distances, answers, strict=True):
        group = [key for key, frame in questions.items() if frame + 1 in frames]
        assert len(group) == facts
        assert all(codes[MOSHI_SEMANTIC, questions[key] + 1] == tellings[key][1] for key in group)
        last_told = max(tellings[key][0] for key in group)
        assert distance <= first - last_told <= distance + told.SLOT
    assert max(questions.values()) + 2 == codes.shape[1]


def test_one_sound_lies_between_where_it_is_asked_for():
    codes, (answers,) = told.told_before(np.random.default_rng(0), 4, [300], silent=True)
    between = codes[USER_SEMANTIC, 8 : answers.min() - 1]
    assert len(between) == 300 and len(set(between.tolist())) == 1 and between[0] >= KEYS


def test_what_is_counted_are_the_answers_of_each_distance():
    """Two recordings, two distances, two facts; more than half of the probability is on the truth below ln 2."""
    nll = np.full((2, 9), 0.1)
    nll[0, [3, 5]], nll[1, 7] = 0.7, 0.6931
    answers = np.array([[[1, 3], [5, 7]], [[3, 5], [1, 7]]])
    assert needles.shares_right(nll, answers).tolist() == [[0.5, 1.0], [0.5, 1.0]]


def test_a_bar_is_missed_by_the_worst_seed_alone():
    runs = {
        f"ttt-delta/{seed}": {"recall": {"4096 (both)": {"value": value}}} for seed, value in ((0, 0.99), (1, 0.94))
    }
    (bar,) = needles.bars(runs | {"window/0": {"recall": {"4096 (both)": {"value": 0.06}}}})
    assert (bar["value"], bar["met"]) == (0.94, False)
    runs["ttt-delta/1"]["recall"]["4096 (both)"]["value"] = 0.95
    assert needles.bars(runs)[0]["met"] and needles.bars({}) == []
