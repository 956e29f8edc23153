"""Story pairs, consistency pairs and long recordings hold what their names say."""

from __future__ import annotations

import json
import random
import re
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
import soundfile

from ttt_moshi.synthetic.benchmarks.salmon import beeps, hiss, hum
from ttt_moshi.synthetic.benchmarks.stories import clozes

NAME = re.compile(
    r"(\d+)_([0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12})_(correct|incorrect)\.wav"
)


def common_prefix(first: np.ndarray, second: np.ndarray) -> int:
    """How many samples are equal, up to the last bit that resampling may change."""
    length = min(len(first), len(second))
    different = np.abs(first[:length] - second[:length]) > 2 / 32768
    return int(different.argmax()) if different.any() else length


@pytest.mark.parametrize("folder", ["sSC", "tSC", "needle/2s", "needle/4s"])
def test_story_pairs_are_named_as_in_spoken_storycloze_and_share_their_beginning(bench: Path, folder: str) -> None:
    pairs: dict[str, dict[str, Path]] = defaultdict(dict)
    for path in (bench / folder).glob("*.wav"):
        number, name, label = NAME.fullmatch(path.name).groups()  # type: ignore[union-attr]
        assert int(number) % 2 == (label == "incorrect")
        pairs[name][label] = path
    for pair in pairs.values():
        right, wrong = (soundfile.read(pair[label])[0] for label in ("correct", "incorrect"))
        shared = common_prefix(right, wrong)
        assert 1.0 * 16_000 < shared < min(len(right), len(wrong)) - 0.3 * 16_000


def test_unfitting_ends_contradict_the_story() -> None:
    rng = random.Random(0)
    for topic in (False, True):
        for _ in range(100):
            one, twin = clozes(rng, topic)
            assert (one.fitting, one.unfitting) == (twin.unfitting, twin.fitting), "a liking for an end cancels out"
            assert one.sentences[:-1] == twin.sentences[:-1] and one.sentences[-1] != twin.sentences[-1]
            for cloze in (one, twin):
                taken_up = cloze.sentences[-1].strip(".").split()[-1]
                assert cloze.fitting == f"The {taken_up} is happy."
                animal = cloze.unfitting.split()[1]
                told = " ".join(cloze.sentences).replace(".", "").split()
                assert (animal in told) == (not topic), "only the topic variant brings in something new"


def test_needle_twins_swap_what_is_true(bench: Path) -> None:
    for distance in (2, 4):
        folder = bench / "needle" / f"{distance}s"
        twins = json.loads((folder / "needles.json").read_text())
        names = {NAME.fullmatch(path.name).group(2) for path in folder.glob("*.wav")}  # type: ignore[union-attr]
        assert names == {name for twin in twins for name in twin["pairs"]}
        for twin in twins:
            ends = {}
            for name in twin["pairs"]:
                for label in ("correct", "incorrect"):
                    (path,) = folder.glob(f"*_{name}_{label}.wav")
                    ends[name, label] = soundfile.read(path)[0][-8_000:]
            one, other = twin["pairs"]
            assert np.abs(ends[one, "correct"] - ends[other, "incorrect"]).max() < 1e-3
            assert np.abs(ends[one, "incorrect"] - ends[other, "correct"]).max() < 1e-3
            assert np.abs(ends[one, "correct"] - ends[one, "incorrect"]).max() > 0.05
            lengths = [len(soundfile.read(path)[0]) for path in folder.glob("*_correct.wav")]
            assert min(lengths) / 16_000 > distance


@pytest.mark.parametrize("part", ["speaker_consistency", "gender_consistency", "bg_all_consistency"])
def test_salmon_pairs_are_equal_until_the_change(bench: Path, part: str) -> None:
    same, changed = (soundfile.read(bench / "salmon" / part / f"sample_0_{label}.wav")[0] for label in (0, 1))
    assert 0.2 < common_prefix(same, changed) / len(same) < 0.8


def test_backgrounds_differ_in_kind_and_not_in_level() -> None:
    kinds = [make(24_000, 7) for make in (hum, hiss, beeps)]
    levels = [float(np.sqrt(np.mean(np.square(kind)))) for kind in kinds]
    assert max(levels) / min(levels) < 1.01
    spectra = [np.abs(np.fft.rfft(kind)) ** 2 for kind in kinds]
    low = [spectrum[:1000].sum() / spectrum.sum() for spectrum in spectra]
    assert low[0] > 0.9 and low[1] < 0.2 and low[2] < 0.1


def test_voice_activity_of_books_is_where_the_energy_is(bench: Path) -> None:
    for path in (bench / "librilight" / "small").rglob("*.flac"):
        about = json.loads(path.with_suffix(".json").read_text())
        assert {"speaker", "book_meta", "snr", "voice_activity"} <= set(about)
        assert path.parent.parent.name == about["speaker"]
        samples, rate = soundfile.read(path)
        voiced = np.zeros(len(samples), bool)
        for start, end in about["voice_activity"]:
            voiced[round(start * rate) : round(end * rate)] = True
        energy = np.square(samples)
        assert energy[voiced].sum() > 0.99 * energy.sum()
        assert 0.5 < voiced.mean() < 1.0


def test_long_form_has_a_transcript_beside_it(bench: Path) -> None:
    for path in (bench / "librispeech-long").rglob("*.flac"):
        speaker, chapter, _ = path.stem.split("-")
        assert path.parent == bench / "librispeech-long" / "test-clean" / speaker / chapter
        line = (path.parent / f"{speaker}-{chapter}.trans.txt").read_text()
        name, _, text = line.strip().partition(" ")
        assert name == path.stem
        assert text == text.upper() and " LIVES IN " in text


def test_repeated_passages_are_equal_and_at_their_distance(bench: Path) -> None:
    for distance in (2, 4):
        for path in (bench / "repeat" / f"{distance}s").glob("*.json"):
            about = json.loads(path.read_text())
            samples, rate = soundfile.read(path.with_suffix(".wav"))
            (first, first_end), (second, second_end) = about["first"], about["second"]
            assert second - first_end >= distance
            assert second_end - second == pytest.approx(first_end - first)
            one = samples[round(first * rate) :][: round((first_end - first) * rate)]
            two = samples[round(second * rate) :][: len(one)]
            # The two lie at different fractions of a sample, so they are compared by correlation.
            assert np.corrcoef(one[: len(two)], two)[0, 1] > 0.95
