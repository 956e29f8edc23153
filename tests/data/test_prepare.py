"""`data prepare`: from a folder of anything to a data set that the loader takes and `data check` finds clean."""

import hashlib
import json
import multiprocessing
import os
import re
import resource
import signal
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path
from threading import Thread

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from ttt_moshi.cli.main import main
from ttt_moshi.data import Corpus, DataError
from ttt_moshi.data.audio import read_audio
from ttt_moshi.data.check import check_data
from ttt_moshi.data.prepare import Prepared, prepare
from ttt_moshi.data.prepare_one import Choices
from ttt_moshi.data.sound_files import write_sound
from ttt_moshi.data.transcripts import read_transcript
from ttt_moshi.data.turns import assign_spans
from ttt_moshi.data.voiced import EnergyMeter, Span, spread_words, voiced_spans


def digests(folder: Path) -> dict[str, str]:
    files = [file for file in sorted(folder.rglob("*")) if file.is_file()]
    return {str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def bursts(path: Path, *spans: tuple[float, float, int], seconds: float, rate: int = 8000, channels: int = 2) -> Path:
    """A tone in the given (start, end, channel) spans over faint noise."""
    t = np.arange(round(seconds * rate)) / rate
    sound = np.random.default_rng(0).normal(0, 3e-4, (len(t), channels))
    for start, end, channel in spans:
        inside = (t >= start) & (t < end)
        sound[inside, channel] += 0.3 * np.sin(2 * np.pi * 400 * t[inside])
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, sound, rate)
    return path


WORDS = [("hello", 0.1, 0.4, "SPEAKER_MAIN"), ("yes", 0.5, 0.6, "SPEAKER_00")]
DIALOGUE = [
    {"speaker": "A", "word": "hello", "start": 0.1, "end": 0.4},
    {"speaker": "B", "word": "fine", "start": 0.5, "end": 0.8},
]


@pytest.fixture
def recordings(tmp_path, write_recording) -> Path:
    """One of each kind."""
    folder = tmp_path / "mine"
    write_recording(folder / "right.wav", 1.0, seed=1, words=WORDS)
    write_recording(folder / "sub" / "phone.wav", 1.3, rate=8000, seed=2, document=DIALOGUE)
    write_recording(folder / "mono.flac", 1.1, channels=1, rate=16000, seed=3).with_suffix(".txt").write_text("hi you")
    write_recording(folder / "music.mp3", 1.2, rate=44100, seed=4)
    return folder


def outcomes(result) -> dict:
    return {outcome.source: outcome for outcome in result.outcomes}


def test_one_of_each_kind(recordings, tmp_path, codec, tokenizer):
    before = digests(recordings)
    result = prepare(recordings, tmp_path / "out")
    assert digests(recordings) == before
    by = outcomes(result)
    assert [o.left_out for o in result.outcomes] == [None] * 4 and result.lists == {"data.jsonl": 4}
    assert by["right.wav"].done == ["copied"]
    assert by["sub/phone.wav"].done == ["resampled from 8000 Hz"]
    assert by["mono.flac"].done[:2] == ["resampled from 16000 Hz", "mono: taken as Moshi's voice, with a silent user"]
    assert "no transcript" in by["music.mp3"].done[-1]
    assert [by[n].word_times for n in ("right.wav", "mono.flac", "music.mp3")] == ["given", "approximate", "none"]
    for outcome in result.outcomes:
        info = soundfile.info(tmp_path / "out" / outcome.path)
        assert (info.samplerate, info.channels, info.format) == (24000, 2, "WAV")
    assert (tmp_path / "out" / by["right.wav"].path).read_bytes() == (recordings / "right.wav").read_bytes()
    report = check_data(str(tmp_path / "out"))
    assert [f.kind for f in report.problems] == ["missing transcript"]
    assert len(Corpus(str(tmp_path / "out"), codec, tokenizer, 1.0).recordings) == 4
    assert list(tmp_path.glob(".*partial*")) == []


def test_sound_and_words_are_those_of_the_source(recordings, tmp_path):
    out = tmp_path / "out" / "recordings"
    prepare(recordings, tmp_path / "out")
    assert np.abs(read_audio(out / "sub" / "phone.wav") - read_audio(recordings / "sub" / "phone.wav")).max() < 1e-4
    mono = read_audio(out / "mono.wav")
    assert np.abs(mono[0] - read_audio(recordings / "mono.flac")[0]).max() < 1e-4 and not mono[1].any()
    expected = read_transcript(recordings / "sub" / "phone.json").words
    assert read_transcript(out / "sub" / "phone.json").words == expected


def test_moshi_may_be_the_right_channel(tmp_path, write_recording):
    source = write_recording(tmp_path / "in" / "a.wav", 1.0, document=DIALOGUE)
    result = prepare(tmp_path / "in", tmp_path / "out", Choices(moshi_speaker="B"))
    assert result.outcomes[0].done == ["channels swapped"]
    made = tmp_path / "out" / "recordings" / "a.wav"
    assert np.abs(read_audio(made) - read_audio(source)[::-1]).max() < 1e-4
    assert [w.text for w in read_transcript(made.with_suffix(".json")).words if w.speaker == "SPEAKER_MAIN"] == ["fine"]


def test_a_transcript_that_says_who_moshi_is_cannot_be_overruled(recordings, tmp_path):
    result = prepare(recordings, tmp_path / "out", Choices(moshi_speaker="B"))
    assert "SPEAKER_MAIN" in outcomes(result)["right.wav"].left_out


SIDES = [
    {"speaker": "A", "word": "left", "start": 0.1, "end": 0.4},
    {"speaker": "B", "word": "right", "start": 0.5, "end": 0.8},
]
MAIN_LEFT = {"alignments": [["left", [0.1, 0.4], "SPEAKER_MAIN"], ["right", [0.5, 0.8], "SPEAKER_01"]]}


@pytest.mark.parametrize(
    ("document", "options", "said", "channel"),
    [
        (SIDES, ["--channels", "2,1"], "right", 1),
        ("A: left\nB: right\n", ["--channels", "2,1"], "right", 1),
        (SIDES, ["--channels", "2"], "right", 1),
        (SIDES, ["--channels", "1,2"], "left", 0),
        (SIDES, ["--channels", "2,1", "--moshi_label", "Agent"], "right", 1),
        (SIDES, ["--moshi_label", "B", "--moshi_speaker", "B"], "right", 1),
        (SIDES, ["--moshi_label", "A", "--channels", "2,1"], "left", 1),
        (MAIN_LEFT, ["--moshi_label", "SPEAKER_01", "--channels", "2,1"], "right", 1),
        (MAIN_LEFT, ["--moshi_label", "SPEAKER_01", "--moshi_speaker", "B"], "right", 1),
        (MAIN_LEFT, ["--moshi_label", "SPEAKER_MAIN", "--channels", "2,1"], "left", 1),
        (SIDES, ["--moshi_label", "B"], "B on the right channel.* add `--moshi_speaker B`", None),
        ("A: left\nB: right\n", ["--moshi_label", "b"], "B on the right channel.* add `--moshi_speaker B`", None),
        (SIDES, ["--moshi_label", "A", "--moshi_speaker", "B"], "A on the left channel.* `--moshi_speaker A`", None),
        (MAIN_LEFT, ["--moshi_label", "SPEAKER_01"], "SPEAKER_01 on the right channel", None),
        (MAIN_LEFT, ["--channels", "2,1"], "SPEAKER_MAIN, left.*--moshi_label.*SPEAKER_01, SPEAKER_MAIN", None),
        (MAIN_LEFT, ["--channels", "2"], "SPEAKER_MAIN, left", None),
    ],
)
def test_moshis_words_are_those_of_moshis_channel(tmp_path, write_recording, capsys, document, options, said, channel):
    source = write_recording(tmp_path / "in" / "a.wav", 1.0, document=None if isinstance(document, str) else document)
    if isinstance(document, str):
        source.with_suffix(".txt").write_text(document)
    done = main(["data", "prepare", str(tmp_path / "in"), "--out", str(tmp_path / "out"), *options])
    if channel is None:
        assert done == 2 and re.search(said, capsys.readouterr().err)
        return
    made = tmp_path / "out" / "recordings" / "a.wav"
    assert np.abs(read_audio(made)[0] - read_audio(source)[channel]).max() < 1e-4
    words = read_transcript(made.with_suffix(".json")).words
    assert [w.text for w in words if w.speaker == "SPEAKER_MAIN"] == [said] and len(words) == 2


def test_a_label_goes_before_a_and_b_where_they_are_no_channels(tmp_path, write_recording):
    folder = tmp_path / "in"
    write_recording(folder / "mixed.wav", 1.0, channels=1, seed=1).with_suffix(".txt").write_text("A: left\nB: right\n")
    result = prepare(folder, tmp_path / "mono", Choices(moshi_label="B", mono_mix=True))
    assert moshis_words(tmp_path / "mono", result) == [["right"]]
    (folder / "mixed.wav").unlink()
    for seed, name in enumerate(("c_a.wav", "c_b.wav")):
        write_recording(folder / name, 1.0, channels=1, seed=seed)
    (folder / "c.json").write_text(json.dumps(SIDES))
    result = prepare(folder, tmp_path / "pair", Choices(moshi_label="B"), pair="c_{b,a}.wav")
    assert moshis_words(tmp_path / "pair", result) == [["right"]]


def test_of_many_channels_a_is_the_one_that_comes_first(tmp_path, write_recording):
    write_recording(tmp_path / "in" / "a.wav", 1.0, channels=4, document=SIDES)
    for channels, said in (((2, 4), "left"), ((4, 2), "right")):
        result = prepare(tmp_path / "in", tmp_path / said, Choices(channels=channels))
        assert moshis_words(tmp_path / said, result) == [[said]]
    with pytest.raises(DataError, match=r"has the speakers A, B: .*--moshi_label"):
        prepare(tmp_path / "in", tmp_path / "out", Choices(channels=(3,)))


def test_a_transcript_of_one_file_of_a_pair_has_one_speaker(tmp_path, write_recording):
    for seed, (name, speaker) in enumerate((("c_agent.wav", "Anna"), ("c_customer.wav", "Ben"))):
        path = write_recording(tmp_path / "in" / name, 1.0, channels=1, seed=seed)
        path.with_suffix(".srt").write_text(f"1\n00:00:00,100 --> 00:00:00,400\n{speaker}: {speaker.lower()}\n")
    result = prepare(tmp_path / "in", tmp_path / "out", pair="c_{customer,agent}.wav")
    assert moshis_words(tmp_path / "out", result) == [["ben"]]
    (tmp_path / "in" / "c_agent.json").write_text(json.dumps(SIDES))
    with pytest.raises(DataError, match=r"c_agent\.json has the speakers A, B"):
        prepare(tmp_path / "in", tmp_path / "no", pair="c_{customer,agent}.wav")


def moshis_words(out: Path, result: Prepared) -> list[list[str]]:
    transcripts = [read_transcript((out / str(outcome.path)).with_suffix(".json")) for outcome in result.outcomes]
    return [[word.text for word in found.words if word.speaker == "SPEAKER_MAIN"] for found in transcripts]


def test_plain_words_lie_where_their_speaker_is_loud(tmp_path):
    path = bursts(tmp_path / "in" / "a.wav", (1, 3, 0), (3.5, 5.5, 1), (6, 7, 0), seconds=8)
    path.with_suffix(".txt").write_text("well hello there my\ndear\nB: good day to you sir\nA: friend\n")
    prepare(tmp_path / "in", tmp_path / "out", Choices(moshi_speaker="A"))
    transcript = read_transcript(tmp_path / "out" / "recordings" / "a.json")
    assert transcript.approximate
    mine = [w for w in transcript.words if w.speaker == "SPEAKER_MAIN"]
    yours = [w for w in transcript.words if w.speaker != "SPEAKER_MAIN"]
    assert [w.text for w in mine] == ["well", "hello", "there", "my", "dear", "friend"]
    assert [w.text for w in yours] == ["good", "day", "to", "you", "sir"]
    assert all(0.95 < w.start < w.end < 3.05 or 5.95 < w.start < w.end < 7.05 for w in mine)
    assert all(3.45 < w.start < w.end < 5.55 for w in yours)
    assert mine[0].start < 1.05 and mine[-1].end > 6.95


def test_turns_anchor_the_words(tmp_path):
    """Speaker A is slower in the first turn; from the pace alone, words of the second would slip into it."""
    path = bursts(tmp_path / "in" / "a.wav", (1, 7, 0), (8, 10, 1), (11, 14, 0), seconds=15)
    path.with_suffix(".txt").write_text("A: one two three\nB: four five\nA: one two three\n")
    prepare(tmp_path / "in", tmp_path / "out")
    words = read_transcript(tmp_path / "out" / "recordings" / "a.json").words
    assert [w.text for w in words] == ["one", "two", "three", "four", "five", "one", "two", "three"]
    assert [0.9 < w.start < w.end < 7.1 for w in words] == [True] * 3 + [False] * 5
    assert [7.9 < w.start < w.end < 10.1 for w in words] == [False] * 3 + [True] * 2 + [False] * 3
    assert all(10.9 < w.start < w.end < 14.1 for w in words[5:])


def test_in_mono_both_speakers_share_the_channel(tmp_path):
    path = bursts(tmp_path / "in" / "a.wav", (1, 3, 0), (4, 6, 0), seconds=7, channels=1)
    path.with_suffix(".txt").write_text("A: hello there\nB: hello again\n")
    with pytest.raises(DataError, match="one channel, and its transcript has two speakers"):
        prepare(tmp_path / "in", tmp_path / "out")
    prepare(tmp_path / "in", tmp_path / "out", Choices(mono_mix=True))
    words = read_transcript(tmp_path / "out" / "recordings" / "a.json").words
    assert [(w.text, w.speaker == "SPEAKER_MAIN") for w in words] == [
        ("hello", True), ("there", True), ("hello", False), ("again", False),
    ]  # fmt: skip
    assert words[1].end <= 3.05 < 3.95 <= words[2].start


def test_a_transcript_of_a_silent_channel_is_refused(tmp_path):
    path = bursts(tmp_path / "in" / "a.wav", (1, 3, 0), seconds=4)
    sound, rate = soundfile.read(path)
    sound[:, 1] = 0
    soundfile.write(path, sound, rate)
    path.with_suffix(".txt").write_text("A: hello\nB: hello\n")
    bursts(tmp_path / "in" / "b.wav", (1, 3, 0), seconds=5)
    left_out = outcomes(prepare(tmp_path / "in", tmp_path / "out"))["a.wav"].left_out
    assert "the user's channel, which is silent throughout" in left_out
    assert not (tmp_path / "out" / "recordings" / "a.wav").exists(), "a file that no list names"


def test_useless_files_are_left_out_with_a_reason(recordings, tmp_path):
    (recordings / "broken.wav").write_text("hm")
    (recordings / "right.flac").write_bytes((recordings / "mono.flac").read_bytes())
    (recordings / "z again.wav").write_bytes((recordings / "right.wav").read_bytes())
    soundfile.write(recordings / "blip.wav", np.ones(100), 24000)
    (recordings / "music.json").write_text("[")
    (recordings / "music.txt").write_text("never read")
    by = outcomes(prepare(recordings, tmp_path / "out"))
    assert "not an audio file" in by["broken.wav"].left_out
    assert by["right.wav"].left_out is None and by["z again.wav"].left_out == "right.wav has the same audio"
    assert "one channel, and its transcript has two speakers" in by["right.flac"].left_out
    assert by["blip.wav"].left_out == "0.004 s are less than one frame (0.08 s)"
    assert "not valid JSON" in by["music.mp3"].left_out
    assert sum(o.left_out is None for o in by.values()) == len(
        (tmp_path / "out" / "data.jsonl").read_text().splitlines()
    )


def test_the_split_is_by_content_and_repeatable(tmp_path, write_recording):
    for i in range(10):
        write_recording(tmp_path / "in" / f"{i}.wav", 0.2, seed=i, words=WORDS[:1])
    first = prepare(tmp_path / "in", tmp_path / "one", eval_fraction=0.3)
    assert first.lists == {"train.jsonl": 7, "eval.jsonl": 3}
    prepare(tmp_path / "in", tmp_path / "two", eval_fraction=0.3)
    assert digests(tmp_path / "one") == digests(tmp_path / "two")

    def held_out(folder):
        return {json.loads(line)["path"] for line in (folder / "eval.jsonl").read_text().splitlines()}

    for i in range(10):
        (tmp_path / "in" / f"{i}.wav").rename(tmp_path / "in" / f"r{i}.wav")
    prepare(tmp_path / "in", tmp_path / "three", eval_fraction=0.3)
    assert {path.replace("r0", "0") for path in held_out(tmp_path / "three")} != set()
    assert {path.replace("/r", "/") for path in held_out(tmp_path / "three")} == held_out(tmp_path / "one")
    assert not kinds_shared(tmp_path / "one")


def kinds_shared(folder: Path) -> list:
    return [f for f in check_data(str(folder)).problems if f.kind == "in two lists"]


def test_nothing_is_destroyed(recordings, tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").touch()
    for out, message in (
        (recordings, "holds the recordings themselves"),
        (recordings.parent, "holds the recordings themselves"),
        (tmp_path / "full", "was not made by this command"),
    ):
        before = digests(tmp_path)
        with pytest.raises(DataError, match=message):
            prepare(recordings, out, overwrite=True)
        assert digests(tmp_path) == before
    prepare(recordings, tmp_path / "out")
    with pytest.raises(DataError, match="--overwrite"):
        prepare(recordings, tmp_path / "out")
    (recordings / "music.mp3").unlink()
    prepare(recordings, tmp_path / "out", overwrite=True)
    assert not (tmp_path / "out" / "recordings" / "music.wav").exists()


def test_an_interrupted_run_goes_on_where_it_was(recordings, tmp_path):
    def interrupt(name: str, done: int, total: int) -> None:
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare(recordings, tmp_path / "out", on_file=interrupt)
    assert not (tmp_path / "out").exists()
    done = {path.name: path.stat().st_mtime_ns for path in (tmp_path / ".out.partial" / "done").iterdir()}
    assert len([name for name in done if name.endswith(".wav")]) == 2

    # The same command goes on, and ends as if nothing had happened; another one begins anew.
    tried = []
    prepare(recordings, tmp_path / "out", on_file=lambda name, *_: tried.append(name))
    assert len(tried) == 2
    prepare(recordings, tmp_path / "whole")
    assert digests(tmp_path / "out") == digests(tmp_path / "whole")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine", "out", "whole"]


def test_a_killed_process_loses_at_most_what_it_was_doing(recordings, tmp_path):
    script = """
import os, signal, sys
from pathlib import Path
from ttt_moshi.data.prepare import prepare
def kill(name, done, total):
    if done == 3:
        os.kill(os.getpid(), signal.SIGKILL)
prepare(Path(sys.argv[1]), Path(sys.argv[2]), on_file=kill)
"""
    ended = subprocess.run([sys.executable, "-c", script, recordings, tmp_path / "out"], check=False)
    assert ended.returncode == -9 and not (tmp_path / "out").exists()
    tried = []
    prepare(recordings, tmp_path / "out", on_file=lambda name, *_: tried.append(name))
    assert len(tried) == 1
    prepare(recordings, tmp_path / "whole")
    assert digests(tmp_path / "out") == digests(tmp_path / "whole")


def test_choices_of_another_call_are_not_mixed_in(recordings, tmp_path):
    def interrupt(name: str, done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare(recordings, tmp_path / "out", Choices(moshi_speaker="B"), on_file=interrupt)
    tried = []
    prepare(recordings, tmp_path / "out", on_file=lambda name, *_: tried.append(name))
    assert len(tried) == 4


def test_jobs_change_nothing_but_the_time(recordings, tmp_path):
    (recordings / "broken.wav").write_text("hm")
    one, two = (prepare(recordings, tmp_path / str(jobs), jobs=jobs) for jobs in (1, 2))
    assert digests(tmp_path / "1") == digests(tmp_path / "2") and one.outcomes == two.outcomes


def test_a_data_set_inside_the_source_is_not_its_own_source(recordings):
    prepare(recordings, recordings / "out")
    assert len(prepare(recordings, recordings / "out", overwrite=True).outcomes) == 4


def test_the_command(recordings, tmp_path, capsys):
    argv = ["data", "prepare", str(recordings), "--out", str(tmp_path / "out"), "--eval_fraction", "0.25"]
    assert main(argv) == 0
    out = capsys.readouterr().out
    assert "ok        right.wav: 1.00 s, 1 word of the agent; copied\n" in out
    assert "4 recordings, 0:00:04" in out and "eval.jsonl: 1 recording\n" in out
    assert main(argv) == 2
    assert "--overwrite" in capsys.readouterr().err
    (recordings / "broken.wav").touch()
    assert main([*argv, "--overwrite"]) == 1
    assert "left out  broken.wav: " in capsys.readouterr().out
    assert main(["data", "prepare", str(tmp_path / "none"), "--out", str(tmp_path / "o")]) == 2
    assert main([*argv, "--overwrite", "--eval_fraction", "1.5"]) == 2


@settings(deadline=None, max_examples=100)
@given(
    st.lists(st.text("abc", min_size=1, max_size=12), max_size=30),
    st.lists(st.tuples(st.floats(0.05, 2), st.floats(0.2, 3)), min_size=1, max_size=8),
)
def test_spread_words_are_ordered_and_inside_their_spans(words, gaps):
    spans, at = [], 0.0
    for length, gap in gaps:
        spans.append(Span(at, at + length))
        at += length + gap
    times = spread_words(words, spans)
    assert len(times) == len(words)
    assert all(t.start < t.end for t in times)
    assert all(a.end <= b.start + 1e-9 for a, b in pairwise(times))
    assert all(any(s.start - 1e-9 <= t.start and t.end <= s.end + 1e-9 for s in spans) for t in times)


spans = st.lists(st.tuples(st.floats(0.1, 2), st.floats(0.2, 3)), min_size=1, max_size=8)


def laid_out(gaps: list[tuple[float, float]]) -> list[Span]:
    ends = np.cumsum([length + gap for length, gap in gaps])
    return [Span(end - gap - length, end - gap) for end, (length, gap) in zip(ends.tolist(), gaps, strict=True)]


@settings(deadline=None, max_examples=100)
@given(st.lists(st.lists(st.text("abc", min_size=1), min_size=1, max_size=4), min_size=2, max_size=12), spans, spans)
def test_no_turn_loses_a_word_and_spans_stay_in_order(texts, left, right):
    turns = [(i % 2, words) for i, words in enumerate(texts)]
    both = [laid_out(left), laid_out(right)]
    found = assign_spans(turns, both)
    for channel in (0, 1):
        mine = [turn for turn in found if turn.channel == channel]
        assert [w for turn in mine for w in turn.words] == [w for c, words in turns if c == channel for w in words]
        used = [span for turn in mine for span in turn.spans]
        assert all(turn.spans for turn in mine) and all(span in both[channel] for span in used)
        assert used == sorted(used, key=lambda span: span.start) and len(set(used)) == len(used)


def test_energy_does_not_depend_on_blocks():
    sound = np.random.default_rng(0).normal(0, 0.1, (2, 24000)).astype(np.float32)
    whole, pieces = EnergyMeter(2), EnergyMeter(2)
    whole.add(sound)
    for piece in np.split(sound, [7, 480, 481, 9999], axis=1):
        pieces.add(piece)
    assert np.array_equal(whole.decibels(), pieces.decibels())
    assert whole.decibels().shape == (2, 50) and np.allclose(whole.decibels(), -20, atol=1.5)


def test_voiced_spans_bridge_short_pauses_and_drop_clicks():
    decibels = np.full(200, -70.0)
    decibels[20:60] = -20
    decibels[40:46] = -70  # a pause of 0.12 s
    decibels[100:102] = -10  # a click
    decibels[150:190] = -25
    spans = [(round(s.start, 3), round(s.end, 3)) for s in voiced_spans(decibels)]
    assert spans == [(0.4, 1.2), (3.0, 3.8)]
    assert voiced_spans(np.full(100, -90.0)) == [] and voiced_spans(np.zeros(0)) == []


def test_a_broken_file_does_not_block_another_of_its_name(tmp_path, write_recording):
    (tmp_path / "calls").mkdir()
    (tmp_path / "calls" / "a.flac").write_bytes(b"fLaC, cut short")
    write_recording(tmp_path / "calls" / "a.wav", words=[("hello", 0.1, 0.4, "SPEAKER_MAIN")])
    result = prepare(tmp_path / "calls", tmp_path / "out")
    assert [(o.source, o.path) for o in result.outcomes] == [("a.flac", None), ("a.wav", "recordings/a.wav")]


def test_one_recording_is_not_split_before_it_is_read(tmp_path, write_recording):
    write_recording(tmp_path / "calls" / "a.wav")
    with pytest.raises(DataError, match="cannot be split"):
        prepare(tmp_path / "calls", tmp_path / "out", eval_fraction=0.5)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["calls"]


@pytest.mark.slow
def test_a_process_that_dies_costs_no_recording(tmp_path, write_recording):
    """As a decoder might that meets a file nobody thought of, or when memory is short."""
    for i in range(6):
        write_recording(tmp_path / "calls" / f"{i}.wav", 20.0, seed=i, rate=44100)
    found: list[Prepared] = []
    thread = Thread(target=lambda: found.append(prepare(tmp_path / "calls", tmp_path / "out", jobs=2)))
    thread.start()
    while not (children := multiprocessing.active_children()):
        time.sleep(0.01)
    os.kill(children[0].pid, signal.SIGKILL)
    thread.join()
    assert [outcome.left_out for outcome in found[0].outcomes] == [None] * 6


def test_levels_are_brought_to_a_loudness_only_when_asked(tmp_path, capsys):
    """A sine of 997 Hz has -3.01 LUFS at full scale, which is how the measure is defined."""
    t = np.arange(10 * 24000) / 24000
    sine = np.sin(2 * np.pi * 997 * t)
    calls = tmp_path / "calls"
    calls.mkdir()
    quiet = np.stack([0.05 * sine, 0.2 * sine], axis=1)
    soundfile.write(calls / "quiet.wav", quiet, 24000)
    spiky = quiet.copy()
    spiky[12000] = 0.8  # a click that must not be lifted beyond full scale
    soundfile.write(calls / "spiky.wav", spiky, 24000)
    soundfile.write(calls / "unanswered.wav", quiet * [1, 0], 24000)
    argv = ["data", "prepare", str(calls)]
    assert main([*argv, "--out", str(tmp_path / "as_is")]) == 0
    assert (tmp_path / "as_is/recordings/quiet.wav").read_bytes() == (calls / "quiet.wav").read_bytes()
    assert "LUFS" not in capsys.readouterr().out
    assert main([*argv, "--out", str(tmp_path / "even"), "--normalise", "-23"]) == 0
    assert "towards -23 LUFS: +6.0 dB and -6.0 dB" in capsys.readouterr().out
    even = read_audio(tmp_path / "even/recordings/quiet.wav")
    loudness = 20 * np.log10(np.abs(even[:, 24000:-24000]).max(axis=1)) - 3.01
    assert loudness == pytest.approx([-23, -23], abs=0.1)
    assert np.abs(read_audio(tmp_path / "even/recordings/spiky.wav")).max() == pytest.approx(10 ** (-1 / 20), abs=1e-3)
    assert not read_audio(tmp_path / "even/recordings/unanswered.wav")[1].any()
    report = json.loads((tmp_path / "even/prepare.json").read_text())
    assert report["normalise"] == -23 and "+6.0 dB" in str(report["recordings"][0]["done"])


@pytest.mark.parametrize("loudness", ["3", "-61", "nan", "loud"])
def test_a_loudness_that_is_none_is_refused(tmp_path, capsys, loudness):
    (tmp_path / "calls").mkdir()
    assert (
        main(["data", "prepare", str(tmp_path / "calls"), "--out", str(tmp_path / "o"), f"--normalise={loudness}"]) == 2
    )
    told = capsys.readouterr().err
    assert "--normalise" in told and told.count("\n") == 1 and not (tmp_path / "o").exists()


def same_samples(out: Path, source: str, original: Path) -> bool:
    """Whether what a data set holds of `source` is that recording."""
    report = json.loads((out / "prepare.json").read_text())
    path = next(one["path"] for one in report["recordings"] if one["source"] == source)
    return bool((soundfile.read(out / path)[0] == soundfile.read(original)[0]).all())


def test_long_names_that_end_alike_do_not_share_what_is_made(tmp_path, write_recording):
    tail = f"{'recordings of the customer service ' * 3}/call.wav"
    for seed, day in enumerate(("0001", "0002", "0003")):
        words = [(f"word{seed}", 0.1, 0.4, "SPEAKER_MAIN")]
        write_recording(tmp_path / "in" / day / tail, 0.5, seed=seed, words=words)
    result = prepare(tmp_path / "in", tmp_path / "out")
    assert result.lists == {"data.jsonl": 3}
    for seed, day in enumerate(("0001", "0002", "0003")):
        assert same_samples(tmp_path / "out", f"{day}/{tail}", tmp_path / "in" / day / tail)
        transcript = tmp_path / "out" / "recordings" / day / tail
        assert read_transcript(transcript.with_suffix(".json")).words[0].text == f"word{seed}"


def test_a_plus_in_a_name_is_part_of_it(tmp_path, write_recording):
    for seed, name in enumerate(("Anna + Ben.wav", "Anna + Carl.wav")):
        write_recording(tmp_path / "in" / name, 0.5, seed=seed)
    assert [o.path for o in prepare(tmp_path / "in", tmp_path / "out").outcomes] == [
        "recordings/Anna + Ben.wav", "recordings/Anna + Carl.wav",
    ]  # fmt: skip


def test_what_is_left_out_costs_no_other_its_place(tmp_path, write_recording):
    """b.flac (X) cannot stay beside a.wav (X); so b.wav (Y) has the name, and c.wav (Y) is its double."""
    first = write_recording(tmp_path / "in" / "a.wav", 0.5, seed=1)
    (tmp_path / "in" / "b.flac").write_bytes(first.read_bytes())
    double = write_recording(tmp_path / "in" / "b.wav", 0.5, seed=2)
    (tmp_path / "in" / "c.wav").write_bytes(double.read_bytes())
    result = prepare(tmp_path / "in", tmp_path / "out")
    assert [(o.source, o.left_out) for o in result.outcomes] == [
        ("a.wav", None), ("b.flac", "a.wav has the same audio"), ("b.wav", None), ("c.wav", "b.wav has the same audio"),
    ]  # fmt: skip
    assert same_samples(tmp_path / "out", "b.wav", double)
    wavs = sorted(path.name for path in (tmp_path / "out").rglob("*.wav"))
    assert wavs == ["a.wav", "b.wav"], "files that no list names"


@pytest.mark.parametrize(
    ("first", "second", "why"),
    [
        ("a.flac", "a.wav/b.wav", "a.flac has the name of its folder"),
        ("a.wav/b.wav", "a.wav.flac", None),
        ("A/a.wav/c/b.wav", "A/a.wma", "its name is that of a folder of A/a.wav/c/b.wav"),
    ],
)
def test_a_recording_with_the_name_of_a_folder_is_left_out_by_name(tmp_path, write_recording, first, second, why):
    for seed, name in enumerate((first, second)):
        path = tmp_path / "in" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        write_recording(tmp_path / "one.wav", 0.5, seed=seed).replace(path)
    outcomes = prepare(tmp_path / "in", tmp_path / "out").outcomes
    assert [outcome.left_out for outcome in outcomes if outcome.left_out] == ([why] if why else [])


def test_a_folder_is_read_where_it_lies_and_not_by_a_link_beside_it(tmp_path, write_recording):
    write_recording(tmp_path / "in" / "monday" / "x.wav", 0.5)
    (tmp_path / "in" / "latest").symlink_to("monday")
    (tmp_path / "in" / "zuletzt").symlink_to("monday")
    (tmp_path / "in" / "monday" / "up").symlink_to("..")
    write_recording(tmp_path / "elsewhere" / "y.wav", 0.5, seed=1)
    for name in ("one", "two"):
        (tmp_path / "in" / name).symlink_to(tmp_path / "elsewhere")
    outcomes = prepare(tmp_path / "in", tmp_path / "out").outcomes
    assert [(o.source, o.left_out) for o in outcomes] == [("monday/x.wav", None), ("one/y.wav", None)]


def test_a_link_to_the_place_of_the_data_set_is_followed(recordings, tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "out").symlink_to("disk")
    prepare(recordings, tmp_path / "out")
    prepare(recordings, tmp_path / "whole")
    assert digests(tmp_path / "disk") == digests(tmp_path / "whole") and (tmp_path / "out").is_symlink()
    with pytest.raises(DataError, match="--overwrite"):
        prepare(recordings, tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["disk", "mine", "out", "whole"]


@pytest.mark.parametrize(("out", "why"), [("/proc", "is a mount point"), (".", "is where this command runs")])
def test_what_cannot_be_replaced_is_refused_before_the_work(recordings, tmp_path, monkeypatch, out, why):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    tried = []
    with pytest.raises(DataError, match=why):
        prepare(recordings, Path(out), overwrite=True, on_file=lambda name, *_: tried.append(name))
    assert not tried and sorted(path.name for path in tmp_path.iterdir()) == ["here", "mine"]


def test_what_appears_in_its_place_meanwhile_is_spared_and_costs_nothing(recordings, tmp_path):
    def appear(name: str, done: int, total: int) -> None:
        (tmp_path / "out").mkdir(exist_ok=True)
        (tmp_path / "out" / "thesis.tex").touch()

    with pytest.raises(DataError, match="was not made by this command"):
        prepare(recordings, tmp_path / "out", on_file=appear)
    (tmp_path / "out" / "thesis.tex").unlink()
    tried = []
    prepare(recordings, tmp_path / "out", on_file=lambda name, *_: tried.append(name))
    assert not tried, "everything had been done"
    prepare(recordings, tmp_path / "whole")
    assert digests(tmp_path / "out") == digests(tmp_path / "whole")


def test_an_interruption_at_any_rename_of_the_end_costs_nothing(tmp_path, write_recording, monkeypatch):
    for seed, name in enumerate(("a.wav", "b.wav")):
        write_recording(tmp_path / "in" / name, 0.9, seed=seed, document=DIALOGUE)
    (tmp_path / "in" / "a.flac").write_bytes((tmp_path / "in" / "a.wav").read_bytes())  # one of them is left out
    prepare(tmp_path / "in", tmp_path / "whole", Choices(moshi_speaker="B"))
    left = [0]

    def counting(rename):
        def renamed(*args, **options):
            left[0] -= 1
            if left[0] == 0:
                raise KeyboardInterrupt
            return rename(*args, **options)

        return renamed

    for call in ("rename", "replace"):
        monkeypatch.setattr(os, call, counting(getattr(os, call)))
    for number in range(1, 100):
        out = tmp_path / f"out{number}"
        prepare(tmp_path / "in", out)
        before, left[0] = digests(out), number
        try:
            prepare(tmp_path / "in", out, Choices(moshi_speaker="B"), overwrite=True)
        except KeyboardInterrupt:
            tried = []
            left[0] = 0
            assert not out.exists() or digests(out) == before
            prepare(
                tmp_path / "in", out, Choices(moshi_speaker="B"), overwrite=True,
                on_file=lambda name, *_, tried=tried: tried.append(name),
            )  # fmt: skip
            assert not tried
        else:
            break
        assert digests(out) == digests(tmp_path / "whole") and not list(tmp_path.glob(".*"))
    assert number > 7, "two recordings with their transcripts, what was there and what is made"


def stop_after(wanted: int):
    def stop(name: str, done: int, total: int) -> None:
        if done == wanted:
            raise KeyboardInterrupt

    return stop


def test_a_lack_of_memory_is_no_reason_to_leave_a_recording_out_for_good(recordings, tmp_path, monkeypatch):
    (recordings / "broken.wav").write_text("hm")

    def no_memory(*args, **options):
        raise MemoryError

    with monkeypatch.context() as short, pytest.raises(KeyboardInterrupt):
        short.setattr(soundfile, "SoundFile", no_memory)
        prepare(recordings, tmp_path / "out", on_file=stop_after(4))
    tried = []
    result = prepare(recordings, tmp_path / "out", on_file=lambda name, *_: tried.append(name))
    assert tried == ["mono.flac", "music.mp3", "sub/phone.wav"], "neither what was copied nor what is broken"
    assert [o.source for o in result.outcomes if o.left_out] == ["broken.wav"]
    prepare(recordings, tmp_path / "whole")
    assert digests(tmp_path / "out") == digests(tmp_path / "whole")


@pytest.mark.parametrize("jobs", ["1", "2"])
def test_a_full_disk_ends_the_call_and_costs_nothing_that_was_done(tmp_path, write_recording, jobs):
    folder = tmp_path / "mine"
    write_recording(folder / "a_short.wav", 1.0, rate=8000, words=WORDS)
    for name in ("b_long", "c_long"):
        write_recording(folder / f"{name}.wav", 8.0, rate=8000, words=WORDS, seed=ord(name[0]))
    command = ["data", "prepare", str(folder), "--out", str(tmp_path / "out"), "--jobs", jobs]
    ended = with_largest_file(300_000, command)  # of 24 kHz stereo, 8 s are 768 kB
    assert ended.returncode == 2 and ended.stdout == ""
    assert "File too large: '" in ended.stderr and ended.stderr.count("\n") == 1, ended.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == [".out.partial", "mine"]
    tried = []
    result = prepare(folder, tmp_path / "out", Choices(), on_file=lambda name, *_: tried.append(name))
    done = {"a_short.wav"} - set(tried)  # of two processes the other one may have met the full disk first
    assert done == {"a_short.wav"} or jobs == "2"
    assert {*tried, *done} == {"a_short.wav", "b_long.wav", "c_long.wav"}
    assert all(outcome.path for outcome in result.outcomes)
    prepare(folder, tmp_path / "whole")
    assert digests(tmp_path / "out") == digests(tmp_path / "whole")


FAR_OFF = [
    ({2: (None, 1e9)}, ["1 word ending far after the recording, given a length"], ()),
    ({2: (100.0, 101.0)}, ["1 word with impossible times, left out"], (2,)),
    ({0: (None, 1e9), 3: (1e6, 1e9)}, ["1 word with impossible times", "1 word ending far after"], (3,)),
    ({29: (None, 30.5)}, ["1 word ending after the recording, cut there"], ()),
    ({n: (100.0 + n, 101.0 + n) for n in (2, 3, 4, 5)}, None, ()),
    ({n: (100.0 + n, 101.0 + n) for n in range(30)}, None, ()),
]


@pytest.mark.parametrize(("changed", "told", "gone"), FAR_OFF)
def test_a_few_far_off_times_cost_no_recording(tmp_path, capsys, changed, told, gone):
    """30 words over 30 s, of which three may be repaired."""
    times = [(n + 0.2, n + 0.6) for n in range(30)]
    bursts(tmp_path / "mine" / "a.wav", *((start, end, 0) for start, end in times), (0.7, 0.9, 1), seconds=30)
    words = [{"speaker": "A", "word": f"word{n}", "start": start, "end": end} for n, (start, end) in enumerate(times)]
    for n, (start, end) in changed.items():
        words[n] |= {"start": words[n]["start"] if start is None else start, "end": end}
    (tmp_path / "mine" / "a.json").write_text(json.dumps(words))
    command = ["data", "prepare", str(tmp_path / "mine"), "--out", str(tmp_path / "out")]
    if told is None:
        assert main(command) == 2
        assert f"{len(changed)} words (first 'word" in capsys.readouterr().err
        return
    assert main(command) == 0
    shown = capsys.readouterr().out
    assert all(text in shown for text in told), shown
    found = {word.text: word for word in read_transcript(tmp_path / "out" / "recordings" / "a.json").words}
    assert found.keys() == {f"word{n}" for n in range(30) if n not in gone}
    for n, (start, end) in enumerate(times):
        if n not in gone:
            word = found[f"word{n}"]
            assert word.start == start and (word.end == end if n not in changed else start + 0.2 < word.end <= 30)
            assert word.end < start + 1


@pytest.mark.parametrize("channels", ["²", "1,³", "0", "1,1", "1,2,3", "x", 5000 * "9"])
def test_channels_that_are_no_numbers_are_one_line(tmp_path, capsys, channels):
    assert main(["data", "prepare", str(tmp_path), "--out", str(tmp_path / "out"), "--channels", channels]) == 2
    told = capsys.readouterr().err
    assert "--channels" in told and told.count("\n") == 1


def with_largest_file(size: int, command: list[str]) -> subprocess.CompletedProcess[str]:
    """The command where no file may have more bytes, which is for the kernel what a full disk is."""
    script = """
import resource, sys
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]), resource.RLIM_INFINITY))
from ttt_moshi.cli.main import main
if __name__ == "__main__":
    sys.exit(main(sys.argv[2:]))
"""
    words = [sys.executable, "-c", script, str(size), *command]
    return subprocess.run(words, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("kind", ["wav", "flac"])
@pytest.mark.parametrize("size", [0, 30, 44, 1000, 100_000])
def test_what_soundfile_cannot_write_is_an_error_of_the_disk(tmp_path, capfd, kind, size):
    path, samples = tmp_path / f"a.{kind}", np.random.default_rng(0).normal(0, 0.3, (100_000, 2))
    soundfile.write(tmp_path / f"same.{kind}", samples, 24000)
    write_sound(path, samples, 24000)
    assert path.read_bytes() == (tmp_path / f"same.{kind}").read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
        with pytest.raises(OSError, match=f"File too large: '{path}'"):
            write_sound(path, samples, 24000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert capfd.readouterr().err == ""


def test_outcomes_of_another_version_are_not_believed(recordings, tmp_path, monkeypatch):
    with pytest.raises(KeyboardInterrupt):
        prepare(recordings, tmp_path / "out", on_file=stop_after(2))
    monkeypatch.setattr("ttt_moshi.data.prepare.__version__", "99.0")
    tried = []
    prepare(recordings, tmp_path / "out", on_file=lambda name, *_: tried.append(name))
    assert len(tried) == 4
