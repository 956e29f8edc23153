"""`data prepare --align`: words without times are found where they are said."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile

from ttt_moshi.cli.main import main
from ttt_moshi.data.transcripts import MAIN_SPEAKER, read_transcript
from ttt_moshi.extras import installed
from ttt_moshi.frames import SAMPLE_RATE
from ttt_moshi.synthetic.espeak import Voice, speak

TURNS = [
    ("A", "good morning this is the bakery on market street"),
    ("B", "hello i want to know when you are open"),
    ("A", "we are open from seven in the morning until 6 in the evening"),
    ("B", "thank you and do you have rye bread today"),
    ("A", "yes we do but Xanthippa wants the last one"),
]


def make_call(folder: Path) -> list[tuple[str, float]]:
    """A stereo call with its words as text; gives who says a word and when. Voices are quick and slow in turn."""
    samples = np.random.default_rng(0).normal(0, 1e-4, (60 * SAMPLE_RATE, 2)).astype(np.float32)
    at, truth = 0.5, []
    for number, (who, text) in enumerate(TURNS):
        halves = text.split()
        parts = [" ".join(halves[: len(halves) // 2]), " ".join(halves[len(halves) // 2 :])]
        for rate, part in zip((110, 190), parts, strict=True):  # no letters tell that the first half takes longer
            said = speak(part, Voice("en-us" if who == "A" else "en-us+f2", rate=rate))
            begin = round(at * SAMPLE_RATE)
            samples[begin : begin + len(said.samples), "AB".index(who)] += said.samples
            truth += [(who, at + word.start) for word in said.words]
            at += len(said.samples) / SAMPLE_RATE + 0.25
        at += 0.5 + 0.1 * number
    folder.mkdir()
    soundfile.write(folder / "call.wav", samples[: round(at * SAMPLE_RATE)], SAMPLE_RATE)
    (folder / "call.txt").write_text("".join(f"{who}: {text}\n" for who, text in TURNS))
    return truth


def starts(data_set: Path) -> list[tuple[str, float]]:
    words = read_transcript(data_set / "recordings" / "call.json").words
    return [("A" if word.speaker == MAIN_SPEAKER else "B", word.start) for word in words]


@pytest.mark.skipif(installed("pocketsphinx"), reason="this is about its absence")
def test_without_the_package_the_message_installs_it(tmp_path, capsys):
    make_call(tmp_path / "calls")
    assert (
        main(["data", "prepare", str(tmp_path / "calls"), "--out", str(tmp_path / "out"), "--align", "pocketsphinx"])
        == 2
    )
    assert "pip install 'ttt-moshi[align]'" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_words_are_found_where_they_are_said(tmp_path, capsys):
    truth = make_call(tmp_path / "calls")
    argv = ["data", "prepare", str(tmp_path / "calls"), "--out"]
    assert main([*argv, str(tmp_path / "guessed")]) == 0
    assert "spread over the voiced parts" in capsys.readouterr().out
    assert main([*argv, str(tmp_path / "aligned"), "--align", "pocketsphinx"]) == 0
    assert "words of call.txt aligned by pocketsphinx" in capsys.readouterr().out
    errors = {}
    for name in ("guessed", "aligned"):
        found = starts(tmp_path / name)
        assert [who for who, _ in found] == [who for who, _ in truth]
        errors[name] = np.abs([a - b for (_, a), (_, b) in zip(found, truth, strict=True)])
    assert np.median(errors["aligned"]) < 0.04 < np.median(errors["guessed"])
    assert np.percentile(errors["aligned"], 90) < np.percentile(errors["guessed"], 90)
    assert json.loads((tmp_path / "aligned" / "prepare.json").read_text())["align"] == "pocketsphinx"
    assert json.loads((tmp_path / "guessed" / "prepare.json").read_text())["align"] is None


@pytest.mark.slow
@pytest.mark.parametrize("words", ["доброе утро это пекарня", "bjqrk zvxt wpfgh qqzzk mnbvc"])
def test_what_is_not_english_keeps_its_times_by_letters_and_is_counted(tmp_path, capsys, words):
    make_call(tmp_path / "calls")
    (tmp_path / "calls" / "call.txt").write_text(words)
    argv = ["data", "prepare", str(tmp_path / "calls"), "--out"]
    main([*argv, str(tmp_path / "guessed")])
    capsys.readouterr()
    main([*argv, str(tmp_path / "aligned"), "--align", "pocketsphinx"])
    count = len(words.split())
    assert f"aligned by pocketsphinx, but {count} of {count} spread over" in capsys.readouterr().out
    files = [(tmp_path / name / "recordings" / "call.json").read_bytes() for name in ("guessed", "aligned")]
    assert files[0] == files[1]


@pytest.mark.slow
def test_the_number_of_processes_changes_nothing(tmp_path):
    for number in range(3):
        make_call(tmp_path / f"calls{number}")
        (tmp_path / "all" / str(number)).mkdir(parents=True)
        samples, rate = soundfile.read(tmp_path / f"calls{number}" / "call.wav")
        soundfile.write(tmp_path / "all" / str(number) / "call.wav", samples * (1 - 0.2 * number), rate)
        (tmp_path / "all" / str(number) / "call.txt").write_bytes((tmp_path / "calls0" / "call.txt").read_bytes())
    for jobs in ("1", "2"):
        argv = ["data", "prepare", str(tmp_path / "all"), "--out", str(tmp_path / jobs), "--align", "pocketsphinx"]
        assert main([*argv, "--jobs", jobs]) == 0
    made = [
        {path.relative_to(tmp_path / jobs): path.read_bytes() for path in (tmp_path / jobs).rglob("*.json")}
        for jobs in ("1", "2")
    ]
    assert made[0] == made[1] and len(made[0]) == 4
