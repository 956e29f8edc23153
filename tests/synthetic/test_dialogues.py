"""Dialogues: the format, the turn-taking, and facts that come back."""

from __future__ import annotations

import json
import random
from itertools import pairwise
from pathlib import Path

import numpy as np
import soundfile
from hypothesis import given
from hypothesis import strategies as st

from ttt_moshi.synthetic import grammar
from ttt_moshi.synthetic.dialogues import CHANNELS, SPEAKER_LABELS, make_dialogues, read_words, schedule
from ttt_moshi.synthetic.grammar import Turn


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_equal_seeds_give_equal_files_and_a_larger_set_begins_with_the_smaller(tmp_path: Path) -> None:
    make_dialogues(tmp_path / "a", "s", 2, questions=1, stories=0)
    make_dialogues(tmp_path / "b", "s", 1, questions=1, stories=0)
    make_dialogues(tmp_path / "c", "t", 1, questions=1, stories=0)
    a, b, c = (contents(tmp_path / name) for name in "abc")
    first = "data_stereo/dialogue_0000.wav"
    assert {name: content for name, content in b.items() if name != "data.jsonl"} == {
        name: content for name, content in a.items() if "0000" in name
    }
    assert a["data.jsonl"].startswith(b["data.jsonl"])
    assert a[first] != c[first] and a[first] != a["data_stereo/dialogue_0001.wav"]


def test_format_is_that_of_moshi_finetune(tmp_path: Path) -> None:
    index = make_dialogues(tmp_path, "s", 2)
    lines = [json.loads(line) for line in index.read_text().splitlines()]
    assert len(lines) == 2
    for line in lines:
        assert set(line) == {"path", "duration"}
        wav = index.parent / line["path"]
        samples, rate = soundfile.read(wav)
        assert rate == 24_000 and samples.shape[1] == 2
        assert line["duration"] == len(samples) / rate
        assert 20 < line["duration"] < 50
        rows = json.loads(wav.with_suffix(".json").read_text())["alignments"]
        assert {row[2] for row in rows} == {"SPEAKER_MAIN", "SPEAKER_OTHER"}
        starts = [row[1][0] for row in rows]
        assert starts == sorted(starts)
        assert all(0 <= start < end <= line["duration"] for _, (start, end), _ in rows)


def test_every_word_sounds_on_its_speakers_channel(tmp_path: Path) -> None:
    index = make_dialogues(tmp_path, "s", 1)
    wav = index.parent / json.loads(index.read_text())["path"]
    samples, rate = soundfile.read(wav)
    covered = np.zeros(samples.shape, bool)
    for _, (start, end), speaker in json.loads(wav.with_suffix(".json").read_text())["alignments"]:
        channel = CHANNELS[next(who for who, label in SPEAKER_LABELS.items() if label == speaker)]
        span = slice(round(start * rate), round(end * rate))
        covered[span, channel] = True
        assert np.sqrt(np.mean(np.square(samples[span, channel]))) > 0.01
    energy = np.square(samples)
    for channel in (0, 1):
        assert energy[covered[:, channel], channel].sum() > 0.99 * energy[:, channel].sum()


TURNS = st.lists(
    st.tuples(
        st.builds(Turn, st.sampled_from(["moshi", "user"]), st.just("x"), st.booleans()),
        st.floats(0.2, 5.0),
    ),
    min_size=1,
    max_size=30,
)


@given(TURNS, st.integers())
def test_nobody_talks_over_themselves_and_the_conversation_moves_on(turns: list[tuple[Turn, float]], seed: int) -> None:
    starts = schedule(turns, random.Random(seed))
    for speaker in ("moshi", "user"):
        own = [
            (start, start + length)
            for start, (turn, length) in zip(starts, turns, strict=True)
            if turn.speaker == speaker
        ]
        assert all(start >= 0 for start, _ in own)
        rounding = 1e-6  # seconds, a fortieth of a sample
        assert all(before[1] <= after[0] + rounding for before, after in pairwise(own))
    assert all(abs(start / 0.08 - round(start / 0.08)) < 1e-6 for start in starts), "on a frame boundary"
    floor = [(start, length) for start, (turn, length) in zip(starts, turns, strict=True) if not turn.backchannel]
    assert [start for start, _ in floor] == sorted(start for start, _ in floor)


def test_dialogues_have_overlaps_gaps_and_backchannels(tmp_path: Path) -> None:
    index = make_dialogues(tmp_path, "s", 4)
    overlap = silence = 0.0
    for line in index.read_text().splitlines():
        samples, _ = soundfile.read(index.parent / json.loads(line)["path"])
        frames = samples[: len(samples) // 480 * 480].reshape(-1, 480, 2)
        active = np.sqrt(np.mean(np.square(frames), axis=1)) > 0.005  # [frames of 20 ms, 2]
        overlap += active.all(axis=1).mean() / 4
        silence += (~active.any(axis=1)).mean() / 4
    assert 0.01 < overlap < 0.2
    assert 0.05 < silence < 0.4
    assert {"hmm.", "Right.", "see.", "Really?"} & set(read_words(index))


def test_answers_are_the_facts_told_earlier() -> None:
    for seed in range(50):
        turns = grammar.dialogue(random.Random(seed), questions=5)
        texts = [turn.text for turn in turns]
        for question, start in (("What is my name?", "My name is "), ("Where do I live?", "I live in ")):
            fact = next(text for text in texts if text.startswith(start)).removeprefix(start).split()[0].strip(".")
            answer = texts[texts.index(question) + 1]
            assert fact in answer
        hero = next(text.split()[0] for text in texts if " lives in " in text)
        ending = next(text for text in texts if "So " in text[:3] or "In the end" in text)
        assert hero in ending
        assert (hero in grammar.WOMEN) == any(f"{hero} made herself" in text for text in texts)


def test_facts_of_user_and_hero_are_never_shared() -> None:
    rng = random.Random(0)
    for _ in range(200):
        user = grammar.random_person(rng)
        hero = grammar.random_person(rng, unlike=user)
        assert not {user.name, user.city, user.animal, user.number} & {hero.name, hero.city, hero.animal, hero.number}
