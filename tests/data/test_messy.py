"""A folder of recordings and one of transcripts as people have them: nothing is wrong in silence.

Each is used correctly, used and told of, repaired and counted, or refused by name. `make test-data` takes all of them
and prints what became of each; the daily tests take some.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import soundfile

from tests.data.made import place
from tests.data.messy_sounds import SECONDS, SOUNDS, Sound, voices
from tests.data.messy_words import CASES, RATE, SAMPLES, Case, expected
from ttt_moshi.data.check import check_data
from ttt_moshi.data.prepare import prepare
from ttt_moshi.data.prepare_one import Choices, Item, Outcome, prepare_one
from ttt_moshi.data.transcripts import MAIN_SPEAKER, find_transcript

DAILY_SOUNDS = ("cbr-headless.mp3", "browser.webm", "cut.mp3", "hole.ogg", "one microphone.wav", "integers.wav")
DAILY_WORDS = (
    "OpenAI, words alone", "WebVTT, rolling", "TextGrid of an aligner", "end before start", "XML's letters",
    "a web page", "all are Moshi's", "captions of both, unlabelled", "only the beginning", "exchanged sides",
)  # fmt: skip
SOME_SOUNDS = [sound for sound in SOUNDS if sound.name in DAILY_SOUNDS]
SOME_WORDS = [case for case in CASES if case.name in DAILY_WORDS]

Row = tuple[str, str, str]
"""what it is, what became of it, in which words"""


def judge_sounds(sounds: Sequence[Sound], tmp_path: Path) -> tuple[list[Row], list[str]]:
    """What `prepare` makes of a folder of these, and where that is not the right answer."""
    folder = tmp_path / "calls"
    for number, sound in enumerate(sounds):
        (folder / f"{number:03}").mkdir(parents=True)
        sound.write(folder / f"{number:03}" / sound.name)
    outcomes = {outcome.source: outcome for outcome in prepare(folder, tmp_path / "out").outcomes}
    assert len(outcomes) == len(sounds), "nothing is passed over"
    rows, wrong = [], []
    for number, sound in enumerate(sounds):
        outcome = outcomes[f"{number:03}/{sound.name}"]
        became, said = result(outcome, sound.answer)
        rows.append((sound.name, became, said))
        if became != sound.answer or not re.search(sound.says, said):
            wrong.append(f"{sound.name!r}: {became}, {said}; right is {sound.answer}, {sound.says}")
        elif outcome.path is not None:
            wrong += wrong_sound(sound, outcome, tmp_path / "out" / outcome.path)
    assert {f.kind for f in check_data(str(tmp_path / "out")).problems} <= {"missing transcript"}
    return rows, wrong + wrong_checks(sounds, folder, outcomes)


def wrong_checks(sounds: Sequence[Sound], folder: Path, outcomes: dict[str, Outcome]) -> list[str]:
    """Where `check` does not see in the files themselves what `prepare` leaves out."""
    names = [f"{number:03}/{sound.name}" for number, sound in enumerate(sounds)]
    lines = [json.dumps({"path": name, "duration": outcomes[name].seconds or 1.0}) for name in names]
    (folder / "data.jsonl").write_text("\n".join(lines))
    report = check_data(str(folder / "data.jsonl"))
    refused = {f.where for f in report.problems if f.kind != "missing transcript"}
    refused |= {f.where for f in report.findings if f.kind == "duplicate"}
    expected = {str(folder / name) for name, sound in zip(names, sounds, strict=True) if sound.answer == "refused"}
    return [f"{where}: `check` and `prepare` differ" for where in sorted(refused ^ expected)]


def wrong_sound(sound: Sound, outcome: Outcome, made: Path) -> list[str]:
    """How what was made differs from the two voices that were recorded."""
    with made.open("rb") as file:
        samples, rate = soundfile.read(file, dtype="float32", always_2d=True)
    found = []
    if rate != 24000 or abs(len(samples) / rate - outcome.seconds) > 1e-9:
        found.append(f"{sound.name!r}: {len(samples) / rate} s at {rate} Hz, said to be {outcome.seconds} s")
    if abs(outcome.seconds - sound.seconds) > sound.tolerance:
        found.append(f"{sound.name!r}: {outcome.seconds} s, right is {sound.seconds} s")
    if sound.name not in ("mains.wav", "constant.wav", "silent user.wav", "chained.ogg"):  # of other shapes
        for channel in range(sound.channels):
            length = round(24000 * min(SECONDS, outcome.seconds))
            original = voices(24000, sound.channels)[channel, :length]
            late, fit = place(samples[:length, channel], 24000, original, 24000)
            if fit < 0.9 or abs(late) > 0.1:
                found.append(f"{sound.name!r}: channel {channel} is {late} s late and fits by {fit:.2f}")
    return found


def judge_words(cases: Sequence[Case], tmp_path: Path) -> tuple[list[Row], list[str]]:
    """What `prepare` makes of the dialogue beside each of these transcripts, and where that is wrong."""
    rows, wrong = [], []
    for number, case in enumerate(cases):
        folder = tmp_path / f"{number:03}"
        folder.mkdir()
        audio, made = folder / "call.wav", folder / "made.wav"
        soundfile.write(audio, SAMPLES[:, : case.channels], RATE)
        audio.with_suffix(case.suffix).write_bytes(case.bytes())
        item = Item(audio.name, audio.name, (audio,), find_transcript(audio))
        outcome = prepare_one(item, made, Choices(moshi_label=case.label))
        became, said = result(outcome, case.answer)
        said = said.replace(f"{folder}/", "")
        rows.append((f"{case.name} ({case.suffix})", became, said))
        if became != case.answer or not re.search(case.says, said):
            wrong.append(f"{case.name}: {became}, {said}; right is {case.answer}, {case.says}")
        elif outcome.left_out is None:
            wrong += wrong_words(case, made.with_suffix(".json"))
    return rows, wrong


def wrong_words(case: Case, made: Path) -> list[str]:
    """How Moshi's words differ from those that were said."""
    found = [entry for entry in json.loads(made.read_text())["alignments"] if entry[2] == MAIN_SPEAKER]
    right = expected(case)
    if [entry[0] for entry in found] != [word.text for word in right]:
        return [f"{case.name}: the words are {' '.join(entry[0] for entry in found)}"]
    off = [abs(entry[1][0] - word.start) for entry, word in zip(found, right, strict=True)]
    worst = float(np.median(off)) if case.off >= 0.5 else max(off)
    return [f"{case.name}: starts are off by {worst:.3f} s"] if worst > case.off else []


def result(outcome: Outcome, answer: str) -> tuple[str, str]:
    """What became of a recording, in the answer's terms, and what was said of it."""
    if outcome.left_out is not None:
        return "refused", outcome.left_out
    assert outcome.done
    said = "; ".join([*outcome.done, f"word times {outcome.word_times}"])
    return (answer if answer != "refused" else "used"), said


def shown(title: str, rows: Sequence[Row]) -> str:
    """A table, and how many of each."""
    counts = Counter(became for _, became, _ in rows)
    lines = [f"{title}: {len(rows)}, " + ", ".join(f"{count} {became}" for became, count in sorted(counts.items()))]
    lines += [f"  {became:8}  {name!r:38}  {said}" for name, became, said in rows]
    return "\n".join(lines).encode("utf-8", "backslashreplace").decode()


@pytest.mark.parametrize(
    ("judge", "things"), [(judge_sounds, SOME_SOUNDS), (judge_words, SOME_WORDS)], ids=["sounds", "words"]
)
def test_some(tmp_path, judge: Callable, things: Sequence):
    assert len(things) == len(DAILY_SOUNDS if judge is judge_sounds else DAILY_WORDS)
    _, wrong = judge(things, tmp_path)
    assert wrong == []


@pytest.mark.slow
@pytest.mark.parametrize(("judge", "things"), [(judge_sounds, SOUNDS), (judge_words, CASES)], ids=["sounds", "words"])
def test_all(tmp_path, judge: Callable, things: Sequence):
    assert len(things) >= 60 and len({thing.name for thing in things}) == len(things)
    rows, wrong = judge(things, tmp_path)
    print("\n" + shown("recordings" if judge is judge_sounds else "transcripts", rows))
    assert wrong == []


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="needs the ffmpeg command")
def test_every_length_is_ffmpegs(tmp_path):
    """An independent reader of the same formats; to 20 ms, but where an old one counts what the encoder filled up."""
    wrong, compared = [], 0
    for number, sound in enumerate(SOUNDS):
        path = tmp_path / f"{number:03}" / sound.name
        path.parent.mkdir()
        sound.write(path)
        outcome = prepare_one(Item(sound.name, sound.name, (path,), None), path.parent / "made.wav", Choices())
        if outcome.left_out is None:
            compared += 1
            theirs = ffmpeg_seconds(path)
            if abs(outcome.seconds - theirs) > 0.02 < abs(outcome.seconds - sound.seconds):
                wrong.append((sound.name, outcome.seconds, theirs))
    print(f"\n{compared} lengths compared with ffmpeg's")
    assert wrong == [] and compared >= 60


def ffmpeg_seconds(path: Path) -> float:
    """How long ffmpeg finds a file, decoded to its end."""
    argv = ["ffmpeg", "-v", "error", "-nostdin", "-i", f"file:{path}", "-map", "a:0", "-ac", "1", "-ar", "48000"]
    done = subprocess.run([os.fsencode(word) for word in [*argv, "-f", "s16le", "-"]], capture_output=True, check=False)
    assert done.stdout, done.stderr.decode(errors="replace")
    return len(done.stdout) / 2 / 48000
