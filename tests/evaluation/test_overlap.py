"""Full-Duplex-Bench v1.5: known streams with known answers, its folders, and the command."""

import json
import sys

import numpy as np
import pytest
import soundfile

from ttt_moshi.cli.main import main
from ttt_moshi.data.voiced import Span
from ttt_moshi.data.words import TimedWord
from ttt_moshi.evaluation import EvaluationError
from ttt_moshi.evaluation.overlaps import Heard, adaptation, manner, response_latency, right, stop_latency
from ttt_moshi.evaluation.tasks.overlap import find_overlaps

RATE = 24_000
OVERLAP = Span(5.0, 8.0)


def bursts(*spans: tuple[float, float], seconds: float = 20, loudness: float = 0.1) -> np.ndarray:
    """Noise within the spans (its power is the square of `loudness`), silence between them."""
    signs = np.random.default_rng(0).choice([-1, 1], int(seconds * RATE)).astype(np.float32)
    loud = np.zeros(len(signs), np.float32)
    for start, end in spans:
        loud[round(start * RATE) : round(end * RATE)] = loudness
    return signs * loud


def said(*spans: tuple[float, float], words: int = 8) -> Heard:
    """One who speaks within the spans, so many words in each."""
    spoken = [
        TimedWord("w", start + i * (end - start) / words, start + (i + 1) * (end - start) / words)
        for start, end in spans
        for i in range(words)
    ]
    return Heard.of(bursts(*spans), spoken)


def test_planted_delays_are_measured():
    stops = said((2, 5.24), (8.24, 12))
    assert stop_latency(stops, OVERLAP) == pytest.approx(0.24, abs=0.021)
    assert response_latency(stops, OVERLAP) == pytest.approx(0.24, abs=0.021)
    breathes = said((2, 5.5), (6.2, 9))  # silence of less than a second is no stop
    assert (
        stop_latency(breathes, OVERLAP) == pytest.approx(4.0, abs=0.021) and response_latency(breathes, OVERLAP) is None
    )
    silent = said((1, 3))
    assert stop_latency(silent, OVERLAP) is None and response_latency(silent, OVERLAP) is None
    assert response_latency(said((1, 5.1), (7, 12)), OVERLAP) == 0.0


@pytest.mark.parametrize(("noisy", "answered", "passed_over"), [
    (said((2, 5.5), (8.5, 12)), True, False),  # stops and answers
    (said((2, 12)), False, True),  # goes on
    (said((2, 5.5)), False, False),  # falls silent
    (said((1, 3)), False, True),  # was not speaking, and takes no notice
    (said((1, 3), (6, 7.5)), False, False),  # breaks in, and is done before the interruption is
    (said((1, 3), (6, 9)), True, False),
    (said((1, 3), (8.4, 8.8), words=1), False, True),  # a backchannel is no turn
    (said((1, 3), (9.5, 12)), True, True),  # speaks again, well after it
])  # fmt: skip
def test_an_interruption_is_answered_and_anything_else_passed_over(noisy, answered, passed_over):
    clean = said((2, 12))
    assert right("user_interruption", noisy, clean, OVERLAP) == answered
    for kind in ("user_backchannel", "talking_to_other", "background_speech"):
        assert right(kind, noisy, clean, OVERLAP) == passed_over


def test_who_would_have_stopped_anyway_was_not_disturbed():
    assert right("background_speech", said((2, 6)), said((2, 6.9)), OVERLAP)
    assert not right("background_speech", said((2, 6)), said((2, 7.1)), OVERLAP)


def test_the_manner_of_speaking_is_that_of_speech():
    heard = Heard.of(
        bursts((0, 4)) + bursts((10, 12), loudness=0.2),
        [TimedWord("w", t, t + 0.1) for t in (0.0, 1.0, 2.0, 3.0, 10.0, 11.0)],
    )
    assert manner(heard, 0, 9) == {"words_per_minute": pytest.approx(60.0), "loudness": pytest.approx(-20, abs=0.01)}
    assert manner(heard, 10.5, 99)["words_per_minute"] == pytest.approx(40.0, rel=0.02)  # one word in 1.5 s
    assert manner(heard, 4.5, 9) == {} and manner(heard, 11.5, 99) == {}
    changed = adaptation(heard, said((9, 12), words=6), OVERLAP)
    assert changed["loudness_after_before"] == pytest.approx(20 * np.log10(2), abs=0.01)
    assert changed["words_per_minute_after_clean"] == pytest.approx(60 - 120)


@pytest.fixture
def bench(tmp_path):
    """A situation of two kinds, in which nobody need be heard: what the model says is put in."""
    for kind in ("user_interruption", "background_speech"):
        folder = tmp_path / "v1_5" / kind / "7"
        folder.mkdir(parents=True)
        for name in ("input", "clean_input"):
            soundfile.write(folder / f"{name}.wav", np.zeros(16000 * 3, np.float32), 16000)
        facts = {"context_text": "Where?", "current_turn_text": "And when?", "timestamps": [1.0, 2.0]}
        (folder / "metadata.json").write_text(json.dumps(facts))
    return tmp_path


@pytest.mark.parametrize(("file", "content", "message"), [
    ("input.wav", None, r"7 has no input\.wav"),
    ("clean_input.wav", None, r"7 has no clean_input\.wav"),
    ("metadata.json", None, r"there is no .*metadata\.json"),
    ("metadata.json", "{", r"metadata\.json is not valid JSON"),
    ("metadata.json", '{"timestamps": [1.0]}', r"metadata\.json: not enough values"),
    ("metadata.json", '{"timestamps": [2.0, 1.0]}', "2 to 1 is no stretch"),
    ("metadata.json", '{"timestamps": [1.0, NaN]}', "1 to nan is no stretch"),
    ("metadata.json", '{"timestamps": [1.0, 1e400]}', "1 to inf is no stretch"),
    ("metadata.json", '{"timestamps": [1.0, 2000]}', r"1 to 2000 is no stretch of a recording of 3\.000 s"),
    ("metadata.json", '{"timestamps": [-1.0, 2.0]}', "-1 to 2 is no stretch"),
    ("metadata.json", '{"timestamps": [1.0, 1.0]}', "lasts from 1 to 1 s"),
    ("metadata.json", '{"timestamps": [3.1, 3.2]}', "lasts from 3.1 to 3.2 s"),
    ("metadata.json", '{"timestamps": [4.0, 5.0]}', r"of a recording of 3\.000 s"),
])  # fmt: skip
def test_what_is_missing_or_wrong_is_named(bench, file, content, message):
    path = bench / "v1_5" / "background_speech" / "7" / file
    path.unlink()
    if content is not None:
        path.write_text(content)
    with pytest.raises(EvaluationError, match=message):
        find_overlaps(bench)


def test_no_folders_are_no_overlaps(tmp_path):
    with pytest.raises(EvaluationError, match=r"no overlaps: expected .*v1_5"):
        find_overlaps(tmp_path)


def test_the_command_measures_what_was_said(bench, tiny_material, tmp_path, capsys):
    out = tmp_path / "out"
    base = ["eval", "--checkpoint_dir", "base", "--hf_repo_id", str(tiny_material.base_model), "--dtype", "float32"]
    base += ["--tasks", "overlap", "--data_root", str(bench), "--out", str(out)]
    assert main(base) == 0
    folders = sorted((out / "conversations" / "overlap").iterdir())
    assert [f.name for f in folders] == [
        f"{kind}-7-{name}" for kind in ("background_speech", "user_interruption") for name in ("clean_input", "input")
    ]
    # What the model is found to have said is exchanged for something known; the same command goes on from there.
    spans = {"user_interruption-7-input": (2.24, 3.0), "background_speech-7-input": (0.0, 3.0)}
    for folder in folders:
        start, end = spans.get(folder.name, (0.0, 0.5))
        soundfile.write(folder / "output.wav", bursts((start, end), seconds=3), RATE)
        words = [[f"w{i}", [start + 0.1 * i, start + 0.1 * i + 0.1], "SPEAKER_MAIN"] for i in range(5)]
        (folder / "output.json").write_text(json.dumps({"alignments": words}))
    script = tmp_path / "judge.py"
    script.write_text(
        "import json, sys\n"
        "for case in map(json.loads, sys.stdin):\n"
        "    asked = case['question'] == 'Where? And when?' and case['reference'] == 'w0 w1 w2 w3 w4'\n"
        "    print(json.dumps({'id': case['id'], 'score': asked * len(case['answer'].split())}))\n"
    )
    assert main([*base, "--judge", f"{sys.executable} {script}"]) == 0
    task = json.loads((out / "results.json").read_text())["tasks"]["overlap"]
    assert task["value"] == 1.0 and task["n"] == 2
    answered, passed = task["overlaps"]["user_interruption"], task["overlaps"]["background_speech"]
    assert (
        answered["response_latency"]["value"] == pytest.approx(0.24, abs=0.021) and answered["speaking"]["value"] == 0
    )
    assert passed["stop_latency"]["value"] == pytest.approx(2.0, abs=0.021) and "response_latency" not in passed
    assert answered["rating"]["value"] == 5.0 and passed["rating"]["value"] == 0.0
    assert "stops after (s)" in (out / "report.md").read_text()
    ratings = tmp_path / "ratings.jsonl"
    ratings.write_text('{"id": "user_interruption/7", "score": 2}\n{"id": "background_speech/7", "score": 3}\n')
    capsys.readouterr()
    assert main([*base, "--judge", str(ratings)]) == 2 and "`judge` (" in capsys.readouterr().err
    assert main([*base, "--judge", str(ratings), "--overwrite"]) == 0
    task = json.loads((out / "results.json").read_text())["tasks"]["overlap"]
    assert task["overlaps"]["background_speech"]["rating"]["value"] == 3.0
    capsys.readouterr()
    assert main([*base, "--ttt", "off"]) == 2 and "about a model that reads" in capsys.readouterr().err
