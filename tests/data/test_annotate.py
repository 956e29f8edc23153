"""`data annotate`: words with times for recordings that have none, by recognisers that are really loaded."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
from difflib import SequenceMatcher
from pathlib import Path

import numpy as np
import pytest
import soundfile

from tests.data.small_whisper import make_small_whisper
from ttt_moshi.cli.main import main
from ttt_moshi.data.annotate import annotate, pieces
from ttt_moshi.data.recognisers import Heard
from ttt_moshi.data.transcripts import MAIN_SPEAKER, read_transcript
from ttt_moshi.data.words import TimedWord
from ttt_moshi.frames import SAMPLE_RATE
from ttt_moshi.synthetic.espeak import Span, Voice, speak

AGENT = ["good morning", "what can i do for you today", "the train leaves at seven in the morning"]
CALLER = ["i want to go to london on monday", "thank you very much"]


def test_pieces_are_the_whole_channel_and_end_where_it_is_quiet():
    rng = np.random.default_rng(0)
    loud = rng.normal(0, 0.1, 60 * SAMPLE_RATE).astype(np.float32)
    pauses = [(7.0, 8.0), (15.5, 16.4), (24.0, 25.0), (33.0, 34.0), (41.0, 42.0), (50.5, 51.5)]
    for start, end in pauses:
        loud[round(start * SAMPLE_RATE) : round(end * SAMPLE_RATE)] = 0
    found = list(pieces(np.array_split(loud, 17), seconds=10.0))
    np.testing.assert_array_equal(np.concatenate([samples for _, samples in found]), loud)
    starts = [start for start, _ in found]
    assert len(starts) == len(pauses) + 1
    for start, (begin, end), (_, samples) in zip(starts[1:], pauses, found, strict=False):
        assert begin < start < end and len(samples) <= 10 * SAMPLE_RATE
    # An hour is never held at once: pieces come while blocks go in.
    given = []

    def hour():
        for number in range(3600):
            given.append(number)
            yield np.zeros(SAMPLE_RATE // 10, np.float32)

    next(pieces(hour(), seconds=10.0))
    assert len(given) < 120


@pytest.fixture(scope="module")
def calls(tmp_path_factory) -> tuple[Path, dict[str, list[Span]]]:
    """A folder with a stereo call, a mono one, one that has a transcript, a broken file; and what is said in stereo."""
    folder = tmp_path_factory.mktemp("calls")
    channels, said = [], {"A": [], "B": []}
    turns = [("A", AGENT[0]), ("B", CALLER[0]), ("A", AGENT[1]), ("B", CALLER[1]), ("A", AGENT[2])]
    at, silent = 0.4, np.random.default_rng(0).normal(0, 1e-4, (2, 30 * SAMPLE_RATE)).astype(np.float32)
    for speaker, text in turns:
        utterance = speak(text, Voice("en-us" if speaker == "A" else "en-us+f2", rate=140))
        begin = round(at * SAMPLE_RATE)
        silent["AB".index(speaker), begin : begin + len(utterance.samples)] += utterance.samples
        said[speaker] += [Span(w.text, at + w.start, at + w.end) for w in utterance.words]
        at += len(utterance.samples) / SAMPLE_RATE + 0.7
    channels = silent[:, : round(at * SAMPLE_RATE)].T
    soundfile.write(folder / "stereo.wav", channels, SAMPLE_RATE)
    (folder / "deep").mkdir()
    soundfile.write(folder / "deep" / "mono.flac", channels[:, 0], SAMPLE_RATE)
    soundfile.write(folder / "known.wav", channels[: 3 * SAMPLE_RATE], SAMPLE_RATE)
    (folder / "known.srt").write_text("1\n00:00:00,400 --> 00:00:01,200\ngood morning\n")
    (folder / "broken.wav").write_bytes(b"RIFF, or so it says")
    soundfile.write(folder / "silent.wav", np.zeros((SAMPLE_RATE, 2)), SAMPLE_RATE)
    return folder, said


def transcripts(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*.json"))}


def copied(folder: Path, to: Path) -> Path:
    """The recordings, without what a test has made of them."""
    for path in folder.rglob("*"):
        if path.is_file() and path.suffix != ".json":
            (to / path.relative_to(folder)).parent.mkdir(parents=True, exist_ok=True)
            (to / path.relative_to(folder)).write_bytes(path.read_bytes())
    return to


@pytest.mark.slow
def test_words_of_each_channel_with_their_times_reach_training(calls, tmp_path, capsys):
    folder, said = copied(calls[0], tmp_path / "calls"), calls[1]
    argv = ["data", "annotate", str(folder), "--engine", "pocketsphinx"]
    assert main(argv) == 1  # for the broken one
    out = capsys.readouterr().out
    assert re.search(r"ok +stereo\.wav: [\d.]+ s, A: \d+ words \(en\), B: \d+ words \(en\)", out)
    assert "left out  broken.wav: is not an audio file" in out
    assert "there     known.wav: has known.srt" in out
    assert "3 transcripts written" in out
    assert set(transcripts(folder)) == {"stereo.json", "deep/mono.json", "silent.json"}
    heard = json.loads((folder / "stereo.json").read_text())
    assert heard["language"] == "en" and heard["annotated_by"]["engine"] == "pocketsphinx"
    for speaker, segment in zip("AB", heard["segments"], strict=True):
        assert segment["speaker"] == speaker
        words = segment["words"]
        texts, spoken = [word["word"] for word in words], [span.text for span in said[speaker]]
        right = SequenceMatcher(None, texts, spoken).get_matching_blocks()
        pairs = [(words[m.a + i]["start"], said[speaker][m.b + i].start) for m in right for i in range(m.size)]
        assert len(pairs) >= 0.6 * len(spoken), texts
        assert np.median(np.abs(np.subtract(*zip(*pairs, strict=True)))) < 0.1
    # Nothing is done twice, nor anything that people wrote.
    before = transcripts(folder)
    assert main(argv) == 1
    assert "0 transcripts written" in capsys.readouterr().out
    assert transcripts(folder) == before

    assert main(["data", "prepare", str(folder), "--out", str(tmp_path / "set")]) == 1
    out = capsys.readouterr().out
    assert re.search(r"ok +stereo\.wav: [\d.]+ s, \d+ words of the agent; copied", out)
    prepared = read_transcript(tmp_path / "set" / "recordings" / "stereo.json").words
    assert [w.text for w in prepared if w.speaker == MAIN_SPEAKER] == [
        word["word"] for word in heard["segments"][0]["words"]
    ]


class Tones:
    """An engine that hears which tone sounds."""

    def __init__(self) -> None:
        self.facts = {"engine": "tones"}

    def hear(self, samples: np.ndarray, language: str | None) -> Heard:
        hertz = np.fft.rfftfreq(len(samples), 1 / SAMPLE_RATE)[np.abs(np.fft.rfft(samples)).argmax()]
        return Heard([TimedWord(f"{round(hertz / 100)}", 0.1, 0.4)], "en")


@pytest.mark.parametrize("channels", [(3, 1), (1, 3)])
def test_of_chosen_channels_a_is_the_one_that_comes_first(tmp_path, channels):
    t = np.arange(SAMPLE_RATE) / SAMPLE_RATE
    tones = [0.3 * np.sin(2 * np.pi * hertz * t) * (t < 0.7) for hertz in (300, 500, 700)]
    soundfile.write(tmp_path / "a.wav", np.stack(tones, axis=1), SAMPLE_RATE)
    list(annotate(tmp_path, Tones(), channels=channels))
    segments = json.loads((tmp_path / "a.json").read_text())["segments"]
    assert [(s["speaker"], s["words"][0]["word"]) for s in segments] == [("A", "3"), ("B", "7")]


TURNS = "SPEAKER call 1 0.0 1.0 <NA> <NA> SPEAKER_00 <NA> <NA>\n"
LEXEMES = "LEXEME call 1 0.1 0.3 hello lex SPEAKER_00 <NA> <NA>\n"


@pytest.mark.parametrize(
    ("beside", "there"),
    [
        ({"call.rttm": TURNS}, None),
        ({"call.wav.rttm": TURNS}, None),
        ({"call.rttm": TURNS, "call.srt": "1\n00:00:00,100 --> 00:00:00,300\nhello\n"}, "call.srt"),
        ({"call.rttm": TURNS + LEXEMES}, "call.rttm"),
    ],
)
def test_who_speaks_when_is_no_transcript(tmp_path, beside, there):
    rng = np.random.default_rng(0)
    soundfile.write(tmp_path / "call.wav", rng.normal(0, 0.1, SAMPLE_RATE) * ([1] * 12000 + [0] * 12000), SAMPLE_RATE)
    for name, text in beside.items():
        (tmp_path / name).write_text(text)
    (outcome,) = annotate(tmp_path, Tones())
    assert (outcome.there, outcome.left_out) == (there, None)
    assert [path.name for path in tmp_path.glob("*.json")] == ([] if there else ["call.json"])


@pytest.mark.slow
def test_overwrite_makes_again_and_channels_choose(calls, tmp_path, capsys):
    folder = copied(calls[0], tmp_path / "calls")
    (folder / "stereo.json").write_text("[]")
    argv = ["data", "annotate", str(folder), "--engine", "pocketsphinx"]
    main(argv)
    assert (folder / "stereo.json").read_text() == "[]"
    main([*argv, "--overwrite", "--channels", "2,1"])
    both = json.loads((folder / "stereo.json").read_text())["segments"]
    assert (folder / "known.json").is_file() and (folder / "known.srt").is_file()
    assert "left out  deep/mono.flac: there is no channel 2, it has 1" in capsys.readouterr().out
    main([*argv, "--overwrite", "--channels", "2"])
    alone = json.loads((folder / "stereo.json").read_text())["segments"]
    assert [segment["words"] for segment in alone] == [both[1]["words"]]
    assert "speaker" not in alone[0]


@pytest.mark.slow
def test_shards_and_a_kill_come_to_the_same(calls, tmp_path):
    whole = copied(calls[0], tmp_path / "whole")
    main(["data", "annotate", str(whole), "--engine", "pocketsphinx"])
    parts = copied(calls[0], tmp_path / "parts")
    made = []
    for shard in ("1/2", "2/2"):
        before = set(transcripts(parts))
        main(["data", "annotate", str(parts), "--engine", "pocketsphinx", "--shard", shard])
        made.append(set(transcripts(parts)) - before)
    assert all(made) and not made[0] & made[1]
    assert transcripts(parts) == transcripts(whole)

    killed = copied(calls[0], tmp_path / "killed")
    command = "import sys; from ttt_moshi.cli.main import main; sys.exit(main(sys.argv[1:]))"
    argv = [sys.executable, "-c", command, "data", "annotate", str(killed), "--engine", "pocketsphinx"]
    process = subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not transcripts(killed) and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    first = transcripts(killed)
    assert first and first.items() <= transcripts(whole).items()
    assert subprocess.run(argv, stdout=subprocess.DEVNULL, check=False).returncode == 1
    assert transcripts(killed) == transcripts(whole)


@pytest.mark.slow
def test_faster_whisper_loads_a_model_and_its_words_have_times(calls, tmp_path, capsys):
    """The model is random and for English, so its words are nonsense; everything but them is as with a real one."""
    folder = tmp_path / "calls"
    folder.mkdir()
    (folder / "stereo.wav").write_bytes((calls[0] / "stereo.wav").read_bytes())
    make_small_whisper(tmp_path / "model")
    argv = ["data", "annotate", str(folder), "--model", str(tmp_path / "model"), "--device", "cpu"]
    assert main(argv) == 0
    found = json.loads((folder / "stereo.json").read_text())
    assert found["language"] == "en"
    assert found["annotated_by"]["model"] == "model"
    seconds = soundfile.info(folder / "stereo.wav").duration
    assert any(segment["words"] for segment in found["segments"])
    for segment in found["segments"]:
        starts = [word["start"] for word in segment["words"]]
        assert starts == sorted(starts) and all(0 <= start <= seconds for start in starts)
        assert ("language" in segment) == bool(starts)
    first = (folder / "stereo.json").read_bytes()
    assert main([*argv, "--overwrite"]) == 0
    assert (folder / "stereo.json").read_bytes() == first
    capsys.readouterr()
    assert main([*argv, "--language", "fr"]) == 2
    assert "`--language fr`" in capsys.readouterr().err
    (tmp_path / "empty").mkdir()
    for model in (tmp_path / "empty", tmp_path / "nowhere"):
        assert main(["data", "annotate", str(folder), "--model", str(model), "--device", "cpu"]) == 2
        assert f"`--model {model}` cannot be used" in capsys.readouterr().err
