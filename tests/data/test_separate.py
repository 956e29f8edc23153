"""`data prepare --separate`: a mono call and a diarizer's RTTM become two channels."""

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
    ("anna", 0.5, "good morning this is the bakery on market street"),
    ("bert", 4.5, "hello i want to know when you are open"),
    ("anna", 8.5, "we are open from seven in the morning until six"),
    ("bert", 10.9, "thank you very much and good bye"),  # breaks in
]
LATE = 16.0
"""where something is said that the RTTM does not know of"""


def make_call(folder: Path) -> np.ndarray:
    """A mono call with its RTTM, whose times are sloppy, and a transcript without speakers; gives the true channels."""
    samples = np.random.default_rng(0).normal(0, 1e-4, (20 * SAMPLE_RATE, 2)).astype(np.float32)
    rttm, words = ["SPKR-INFO call 1 <NA> <NA> <NA> unknown anna <NA> <NA>"], []
    for who, at, text in [*TURNS, ("bert", LATE, "nobody knows me at all")]:
        said = speak(text, Voice("en-us" if who == "anna" else "en-us+f2", rate=150))
        begin = round(at * SAMPLE_RATE)
        samples[begin : begin + len(said.samples), int(who == "bert")] += said.samples
        if at == LATE:
            continue
        words += [{"word": word.text, "start": at + word.start, "end": at + word.end} for word in said.words]
        early, late = (0.0, 0.0) if who == "bert" else (0.25, 0.3)
        length = len(said.samples) / SAMPLE_RATE + early + late
        rttm.append(f"SPEAKER call 1 {at - early:.3f} {length:.3f} <NA> <NA> {who} <NA> <NA>")
    folder.mkdir()
    soundfile.write(folder / "call.wav", samples.sum(axis=1), SAMPLE_RATE)
    (folder / "call.rttm").write_text("\n".join(rttm) + "\n")
    (folder / "call.json").write_text(json.dumps({"segments": [{"words": words}], "language": "en"}))
    return samples


def prepare(folder: Path, out: Path, *options: str) -> int:
    return main(["data", "prepare", str(folder), "--out", str(out), *options])


def energy(samples: np.ndarray, start: float, end: float) -> float:
    return float(np.square(samples[round(start * SAMPLE_RATE) : round(end * SAMPLE_RATE)]).mean())


@pytest.mark.skipif(installed("silero_vad"), reason="this is about its absence")
def test_without_the_packages_the_message_installs_them(tmp_path, capsys):
    make_call(tmp_path / "calls")
    assert prepare(tmp_path / "calls", tmp_path / "out", "--separate", "--moshi_label", "anna") == 2
    assert "pip install 'ttt-moshi[separate]'" in capsys.readouterr().err


@pytest.mark.slow
def test_each_voice_and_its_words_get_a_channel(tmp_path, capsys):
    truth = make_call(tmp_path / "calls")
    assert prepare(tmp_path / "calls", tmp_path / "out", "--separate", "--moshi_label", "Anna") == 0
    out = capsys.readouterr().out
    assert "separated by call.rttm: " in out and "of both at once stay with who spoke first" in out
    assert "of speech that call.rttm gives to nobody are silenced" in out
    assert "taken as Moshi's voice" not in out
    (recording,) = json.loads((tmp_path / "out" / "prepare.json").read_text())["recordings"]
    assert recording["separated"] is True

    made, _ = soundfile.read(tmp_path / "out" / "recordings" / "call.wav")
    assert made.shape == truth.shape
    # Where one speaks alone his channel has all of him and the other one nothing.
    for own, start, end in ((0, 0.6, 3.4), (1, 4.6, 6.6), (0, 8.6, 10.8)):
        heard = energy(made[:, own], start, end) / energy(truth[:, own], start, end)
        assert 0.98 < heard < 1.02, (own, start, heard)
        assert energy(made[:, 1 - own], start, end) < 1e-4 * energy(made[:, own], start, end)
    assert energy(made, LATE, 20) < 1e-3 * energy(truth, LATE, 20)

    words = read_transcript(tmp_path / "out" / "recordings" / "call.json").words
    mine = " ".join(word.text for word in words if word.speaker == MAIN_SPEAKER)
    assert mine.startswith(TURNS[0][2] + " we are open from seven") and "hello" not in mine and "bye" not in mine

    # The other one becomes Moshi by name.
    assert prepare(tmp_path / "calls", tmp_path / "bert", "--separate", "--moshi_label", "bert") == 0
    other, _ = soundfile.read(tmp_path / "bert" / "recordings" / "call.wav")
    alone = slice(round(0.6 * SAMPLE_RATE), round(8 * SAMPLE_RATE))
    np.testing.assert_array_equal(other[alone, ::-1], made[alone])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("rttm", "told"),
    [
        (None, "`--separate` needs call.rttm"),
        ("SPEAKER call 1 0.5 3.0 <NA> <NA> carl <NA> <NA>\n", "has the speakers carl, none of them is anna"),
        ("SPEAKER call 1 0.5 nan <NA> <NA> anna <NA> <NA>\n", "line 1 has an impossible time"),
        ("SPEAKER call 1 0.5\n", "line 1 is not `SPEAKER"),
        ("LEXEME call 1 0.5 0.3 hello lex anna <NA>\n", "does not say who speaks when"),
    ],
)
def test_what_does_not_say_who_speaks_is_told(tmp_path, capsys, rttm, told):
    make_call(tmp_path / "calls")
    (tmp_path / "calls" / "call.rttm").unlink()
    if rttm is not None:
        (tmp_path / "calls" / "call.rttm").write_text(rttm)
    assert prepare(tmp_path / "calls", tmp_path / "out", "--separate", "--moshi_label", "anna") == 2
    assert told in capsys.readouterr().err


@pytest.mark.slow
def test_words_without_speakers_and_times_are_nobodys(tmp_path, capsys):
    make_call(tmp_path / "calls")
    (tmp_path / "calls" / "call.json").unlink()
    (tmp_path / "calls" / "call.txt").write_text("good morning this is the bakery")
    assert prepare(tmp_path / "calls", tmp_path / "out", "--separate", "--moshi_label", "anna") == 2
    assert "call.txt has neither times nor speakers" in capsys.readouterr().err
    (tmp_path / "calls" / "call.txt").write_text("".join(f"{who}: {text}\n" for who, _, text in TURNS))
    assert prepare(tmp_path / "calls", tmp_path / "out", "--separate", "--moshi_label", "anna") == 0
    words = read_transcript(tmp_path / "out" / "recordings" / "call.json").words
    mine = [word.text for word in words if word.speaker == MAIN_SPEAKER]
    assert mine == f"{TURNS[0][2]} {TURNS[2][2]}".split()
