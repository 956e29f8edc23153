"""Do words and audio belong together, and is the audio what it should be: made faults are found, sound data are not."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile

from tests.data.made import dialogue
from ttt_moshi.data import Corpus, DataError
from ttt_moshi.data.check import check_data
from ttt_moshi.data.fit import measure
from ttt_moshi.data.prepare import prepare
from ttt_moshi.data.prepare_one import Choices
from ttt_moshi.data.rules import judge_fit
from ttt_moshi.data.transcripts import OTHER_SPEAKER, Word, read_transcript
from ttt_moshi.data.voiced import EnergyMeter

MAIN = "SPEAKER_MAIN"
RATE = 8000


def moved(words: Sequence[Word], by: float) -> tuple[Word, ...]:
    return tuple(replace(w, start=max(0.0, w.start + by), end=max(0.01, w.end + by)) for w in words)


def verdict(samples: np.ndarray, words: Sequence[Word]) -> str:
    meter = EnergyMeter(samples.shape[1])
    meter.add(np.repeat(samples.T, 3, axis=1))  # 24 kHz
    return ", ".join(finding.kind for finding in judge_fit("", measure(words, meter.decibels())))


@pytest.mark.parametrize("seed", range(4))
def test_each_misfit_is_called_by_its_name(seed):
    samples, words = dialogue(seed, 60.0, RATE)
    assert verdict(samples, words) == ""
    assert verdict(samples[:, ::-1], words) == "swapped channels"
    for by in (-5, -2, -1.2, 1.2, 2, 5):
        assert verdict(samples, moved(words, by)) == "shifted words", by
    assert verdict(samples, moved(words, 0.4)) == ""
    assert verdict(samples, dialogue(seed + 100, 60.0, RATE)[1]) in (
        "another recording",
        "words in silence",
        "shifted words",
    )
    assert verdict(samples, [replace(w, speaker=MAIN) for w in words]) == "words in silence"
    mine = [w for w in words if w.speaker == MAIN]
    assert verdict(samples, mine) == ""
    assert verdict(samples[:, :1], mine) == ""
    assert verdict(samples[:, :1], moved(mine, 3)) == "shifted words"
    assert verdict(samples, [w for w in words if w.start < 20]) == "speech without words"


def test_many_words_in_a_moment_are_judged_too():
    words = [Word("hello", 0.1 * i, 0.1 * i + 0.08, MAIN) for i in range(15)]
    assert verdict(0.1 * np.ones((RATE * 3 // 2, 2), np.float32), words) == ""


def write(
    folder: Path, samples: np.ndarray, words: Sequence[Word], subtype: str = "PCM_16", scale: float = 1.0
) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    soundfile.write(folder / "a.wav", samples, RATE, subtype=subtype)
    alignments = [[w.text, [w.start * scale, w.end * scale], w.speaker] for w in words]
    (folder / "a.json").write_text(json.dumps({"alignments": alignments}))
    (folder / "d.jsonl").write_text(json.dumps({"path": "a.wav", "duration": len(samples) / RATE}))
    return folder / "d.jsonl"


SAMPLES, WORDS = dialogue(7, 24.0, RATE)
LOUD = np.clip(6 * SAMPLES, -1, 1)
NEGATIVE = [replace(word, start=-word.start / 99) for word in WORDS[:9]]
FAULTS = {
    "swapped channels": lambda f: write(f, SAMPLES[:, ::-1], WORDS),
    "shifted words": lambda f: write(f, SAMPLES, moved(WORDS, 2)),
    "milliseconds": lambda f: write(f, SAMPLES, WORDS, scale=1000),
    "integer scale": lambda f: write(f, SAMPLES * 32767, WORDS, "FLOAT"),
    "identical channels": lambda f: write(f, SAMPLES[:, [0, 0]], WORDS),
    "silence": lambda f: write(f, SAMPLES * [0, 1], WORDS),
    "too many repairs": lambda f: write(f, SAMPLES, [*NEGATIVE, *WORDS[9:]]),
}  # fmt: skip


@pytest.mark.parametrize("kind", FAULTS)
def test_the_same_rule_holds_at_every_door(tmp_path, codec, tokenizer, caplog, kind):
    """`check` calls it a problem, `prepare` leaves it out and training refuses it or warns, in the same words."""
    jsonl = FAULTS[kind](tmp_path / "in")
    problems = check_data(str(jsonl)).problems
    assert kind in [finding.kind for finding in problems]
    message = next(finding.message for finding in problems if finding.kind == kind)
    with pytest.raises(DataError) as refused:
        prepare(tmp_path / "in", tmp_path / "out")
    assert any(finding.message in str(refused.value) for finding in problems)
    try:
        Corpus(str(jsonl), codec, tokenizer, 2.0).encode_all()
    except DataError as error:
        assert any(finding.message in str(error) for finding in problems)
    else:
        assert message in caplog.text and kind in ("shifted words", "silence")


def test_speech_is_neither_hum_nor_quiet(tmp_path):
    found = check_data(str(write(tmp_path / "in", SAMPLES, WORDS))).findings
    assert not {"hum", "quiet"} & {finding.kind for finding in found}


@pytest.mark.parametrize(
    ("samples", "told"),
    [
        (LOUD, "cut off at full scale"),
        (SAMPLES + np.float32([0.3, 0]), "constant offset"),
        (SAMPLES * [1, 0], "silent"),
        (SAMPLES * 0.2 + 0.3 * np.sin(2 * np.pi * 50 * np.arange(len(SAMPLES)) / RATE)[:, None], "hum of 50 Hz"),
        (SAMPLES * 0.2 + 0.3 * np.sin(2 * np.pi * 60 * np.arange(len(SAMPLES)) / RATE)[:, None], "hum of 60 Hz"),
        (SAMPLES * 0.01, "very quiet"),
    ],
)
def test_what_can_be_heard_is_a_note(tmp_path, samples, told):
    jsonl = write(tmp_path / "in", samples, WORDS)
    report = check_data(str(jsonl))
    assert not report.problems and any(told in finding.message for finding in report.findings)
    (outcome,) = prepare(tmp_path / "in", tmp_path / "out").outcomes
    assert outcome.left_out is None and any(told in done for done in outcome.done)


def test_good_data_pass_every_door(tmp_path, codec, tokenizer, caplog):
    jsonl = write(tmp_path / "in", SAMPLES, WORDS)
    assert [finding.kind for finding in check_data(str(jsonl)).findings] == ["rate"]
    prepare(tmp_path / "in", tmp_path / "out")
    assert not check_data(str(tmp_path / "out")).findings
    Corpus(str(tmp_path / "out"), codec, tokenizer, 2.0).encode_all()
    assert not caplog.records


def test_a_judgement_is_remembered(tmp_path, codec, tokenizer, monkeypatch):
    monkeypatch.setattr("ttt_moshi.data.digests._SETTLED_NS", 0)
    jsonl = write(tmp_path / "in", SAMPLES, WORDS)
    Corpus(str(jsonl), codec, tokenizer, 2.0).encode_all()
    monkeypatch.setattr("ttt_moshi.data.judge.listen", lambda *_: pytest.fail("listened again"))
    Corpus(str(jsonl), codec, tokenizer, 2.0).encode_all()


def test_a_file_a_speaker(tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    for number in (1, 2):
        samples, words = dialogue(number, 20.0, RATE)
        soundfile.write(folder / f"call_{number}_agent.wav", samples[:, 0], RATE)
        soundfile.write(folder / f"call_{number}_customer.wav", samples[: 15 * RATE, 1], RATE)
        for name, main in (("agent", True), ("customer", False)):
            own = [[w.text, [w.start, w.end], MAIN] for w in words if (w.speaker == MAIN) == main and w.end < 15]
            (folder / f"call_{number}_{name}.json").write_text(json.dumps({"alignments": own}))
    soundfile.write(folder / "call_3_agent.wav", samples[:, 0] * 0.5, RATE)
    result = prepare(folder, tmp_path / "out", pair="call_*_{agent,customer}.wav")
    assert [outcome.left_out is None for outcome in result.outcomes] == [True, True, False]
    assert "call_3_customer.wav" in str(result.outcomes[2].left_out)
    made, _ = soundfile.read(tmp_path / "out" / result.outcomes[0].path)
    assert made.shape == (20 * 24000, 2) and not made[round(15.1 * 24000) :, 1].any()
    assert any("ends 5.00 s earlier" in done for done in result.outcomes[0].done)
    found = read_transcript((tmp_path / "out" / result.outcomes[0].path).with_suffix(".json"))
    assert {word.speaker for word in found.words} == {MAIN, OTHER_SPEAKER}
    assert (
        prepare(folder, tmp_path / "no", pair="call_*_{customer,agent}.wav")
        .outcomes[0]
        .source.startswith("call_1_cust")
    )
    for bad in ("call_*.wav", "call_{a,b,c}.wav", "talk_{agent,customer}.wav"):
        with pytest.raises(DataError, match="--pair"):
            prepare(folder, tmp_path / "bad", pair=bad)


def test_recordings_that_are_named_as_no_pair_are_told_of(tmp_path, capsys, write_recording):
    from ttt_moshi.cli.main import main

    names = ("call_1_agent", "call_1_customer", "call_2_Agent", "call_2_Customer", "greeting")
    for seed, name in enumerate(names):
        write_recording(tmp_path / "in" / f"{name}.wav", 0.5, channels=1, seed=seed)
    pair = "call_*_{agent,customer}.wav"
    assert main(["data", "prepare", str(tmp_path / "in"), "--out", str(tmp_path / "out"), "--pair", pair]) == 1
    told = capsys.readouterr().out.splitlines()
    assert [line for line in told if line.startswith("left out")] == [
        f"left out  {name}.wav: it is not named as `--pair {pair}` says" for name in names[2:]
    ]
    assert len((tmp_path / "out" / "data.jsonl").read_text().splitlines()) == 1
    with pytest.raises(DataError, match="one recording cannot be split"):
        prepare(tmp_path / "in", tmp_path / "split", pair=pair, eval_fraction=0.5)
    assert not list(tmp_path.glob(".split*")), "before anything was read"


def test_channels_are_chosen_by_number(tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    samples, words = dialogue(3, 20.0, RATE)
    noise = np.zeros((len(samples), 1), np.float32)
    soundfile.write(folder / "a.wav", np.concatenate([noise, samples[:, 1:], noise, samples[:, :1]], axis=1), RATE)
    (folder / "a.json").write_text(json.dumps({"alignments": [[w.text, [w.start, w.end], w.speaker] for w in words]}))
    with pytest.raises(DataError, match=r"4 channels: `--channels 1,2`"):
        prepare(folder, tmp_path / "out")
    with pytest.raises(DataError, match="no channel 5"):
        prepare(folder, tmp_path / "out", Choices(channels=(4, 5)))
    with pytest.raises(DataError, match="exchanged"):
        prepare(folder, tmp_path / "out", Choices(channels=(2, 4)))
    (outcome,) = prepare(folder, tmp_path / "out", Choices(channels=(4, 2))).outcomes
    assert outcome.done[-1] == "channel 4 of 4 is Moshi, channel 2 the user"


def test_words_beyond_the_end_are_cut_and_counted(tmp_path):
    write(tmp_path / "in", SAMPLES[: 20 * RATE], [w for w in WORDS if w.end < 19] + [Word("late", 19.5, 20.5, MAIN)])
    (outcome,) = prepare(tmp_path / "in", tmp_path / "out").outcomes
    assert any(done.startswith("1 word ending after") for done in outcome.done)
    assert not check_data(str(tmp_path / "out")).problems


def test_links_names_of_other_systems_and_what_belongs_to_nothing(tmp_path, capsys):
    from ttt_moshi.cli.main import main

    folder, elsewhere = tmp_path / "in", tmp_path / "elsewhere"
    for place in (folder, elsewhere):
        place.mkdir()
    for seed, path in enumerate((elsewhere / "linked.wav", folder / "CALL.WAV", folder / ("n" * 252 + ".au"))):
        soundfile.write(tmp_path / "plain.wav", dialogue(seed, 6.0, RATE)[0], RATE)
        (tmp_path / "plain.wav").rename(path)
    (folder / "disk").symlink_to(elsewhere)
    (elsewhere / "back").symlink_to(folder)  # a circle
    (folder / "gone.wav").symlink_to(tmp_path / "nothing.wav")
    (folder / "CALL.TXT").write_text("A: hello you\n")
    for name in ("CALL.en.srt", "notes of it.txt"):
        (folder / name).write_text("1\n00:00:01,000 --> 00:00:02,000\nhello\n")
    assert main(["data", "prepare", str(folder), "--out", str(tmp_path / "out")]) == 1
    told = capsys.readouterr().out
    assert "ok        disk/linked.wav" in told and told.count("linked.wav") == 1
    assert re.search(r"ok        CALL\.WAV: .*words of CALL\.TXT spread", told)
    assert "left out  gone.wav: cannot read" in told
    assert "nnn.au: its name is too long for a transcript beside it" in told
    assert "nor the transcript of one: 1 .srt, 1 .txt" in told


def test_any_name_and_what_is_passed_over(tmp_path, capsys):
    from ttt_moshi.cli.main import main

    folder = tmp_path / "in"
    folder.mkdir()
    names = ["-i.wav", "a\nb.wav", "caf\udce9.wav", "a\u2028b.wav", "%03d.wav", "ツ.wav"]
    for seed, name in enumerate(names):
        soundfile.write(tmp_path / "plain.wav", dialogue(seed, 6.0, RATE)[0], RATE)
        (tmp_path / "plain.wav").rename(folder / name)
    for name in ("notes.docx", "old.docx", "scan.pdf"):
        (folder / name).touch()
    assert main(["data", "prepare", str(folder), "--out", str(tmp_path / "out")]) == 0
    told = capsys.readouterr().out
    assert "passed over, neither audio nor the transcript of one: 2 .docx, 1 .pdf" in told
    assert r"ok        a\nb.wav" in told and r"caf\udce9.wav" in told
    assert len(check_data(str(tmp_path / "out")).problems) == 6, "no transcripts, nothing else"
    assert main(["data", "check", str(tmp_path / "out")]) == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--channels", "0,1"], "--channels"),
        (["--channels", "1,1"], "--channels"),
        (["--channels", "1,2,3"], "--channels"),
        (["--channels", "2,1", "--moshi_speaker", "B"], "leave `--moshi_speaker`"),
        (["--max_repaired", "2"], "--max_repaired"),
        (["--eval_fraction", "nan"], "--eval_fraction"),
        (["--jobs", "0"], "--jobs"),
        (["--pair", "x"], "--pair"),
    ],
)
def test_bad_values_are_one_line_and_touch_nothing(tmp_path, capsys, options, message):
    from ttt_moshi.cli.main import main

    write(tmp_path / "in", SAMPLES, WORDS)
    assert main(["data", "prepare", str(tmp_path / "in"), "--out", str(tmp_path / "out"), *options]) == 2
    told = capsys.readouterr().err
    assert message in told and told.count("\n") == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in"]
