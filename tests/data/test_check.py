"""`data check`: every fault is found in the file it is in, and a sound data set has none."""

import json

import numpy as np
import pytest
import soundfile

from ttt_moshi.cli.main import main
from ttt_moshi.data import Corpus, DataError
from ttt_moshi.data.check import check_data


def kinds(report, level="problem"):
    return [(f.kind, f.where.rsplit("/", 1)[-1]) for f in report.findings if f.level == level]


def test_a_sound_data_set_is_clean(data_set, codec, tokenizer):
    jsonl = data_set(2.0, 1.0)
    report = check_data(str(jsonl))
    assert (report.recordings, report.seconds, report.words, report.findings) == (2, 3.0, 4, [])
    assert check_data(str(jsonl.parent)).findings == []
    Corpus(str(jsonl), codec, tokenizer, 1.0)


def wav(jsonl):
    return jsonl.parent / "wavs" / "0.wav"


def rewrite(path, **options):
    sound, rate = soundfile.read(path, dtype="float32", always_2d=True)
    channels = options.pop("channels", 2)
    soundfile.write(path, sound[: options.pop("samples", None), :channels] * options.pop("gain", 1), rate, **options)


def words(jsonl, *entries):
    wav(jsonl).with_suffix(".json").write_text(json.dumps({"alignments": [list(entry) for entry in entries]}))


FAULTS = {
    "missing recording": (lambda j: wav(j).unlink(), "0.wav"),
    "unreadable": (lambda j: wav(j).write_text("hm"), "0.wav"),
    "missing transcript": (lambda j: wav(j).with_suffix(".json").unlink(), "0.json"),
    "bad transcript": (lambda j: wav(j).with_suffix(".json").write_text("{"), "0.json"),
    "empty transcript": (lambda j: words(j), "0.json"),
    "beyond the end": (lambda j: words(j, ("late", [1.9, 2.5], "SPEAKER_MAIN")), "0.json"),
    "duration": (lambda j: rewrite(wav(j), samples=30000), "0.wav"),
    "silence": (lambda j: rewrite(wav(j), gain=0), "0.wav"),
    "bad line": (lambda j: j.write_text("{}\n"), "data.jsonl, line 1"),
}


@pytest.mark.parametrize("kind", FAULTS)
def test_each_fault_is_found_where_it_is(data_set, kind):
    jsonl = data_set(2.0)
    fault, where = FAULTS[kind]
    fault(jsonl)
    assert (kind, where) in kinds(check_data(str(jsonl)))


def test_several_faults_at_once(data_set):
    jsonl = data_set(2.0, 2.0, 2.0)
    wav(jsonl).unlink()
    (jsonl.parent / "wavs" / "1.json").write_text("{")
    assert kinds(check_data(str(jsonl))) == [("missing recording", "0.wav"), ("bad transcript", "1.json")]


ODD_LINES = {
    "zero byte": json.dumps({"path": "wavs/a\0b.wav", "duration": 1.0}),
    "Infinity": '{"path": "wavs/0.wav", "duration": Infinity}',
    "a duration beyond all numbers": '{"path": "wavs/0.wav", "duration": 1' + "0" * 400 + "}",
    "more digits than Python reads": '{"path": "wavs/0.wav", "duration": 1' + "0" * 5000 + "}",
    "nested": '{"path": ' + "[" * 100_000,
    "name too long": json.dumps({"path": "x" * 300 + ".wav", "duration": 1.0}),
}


@pytest.mark.parametrize("odd", ODD_LINES)
def test_an_odd_line_costs_no_other_and_is_no_traceback_in_training(data_set, capsys, odd):
    jsonl = data_set(2.0, 1.0)
    good = jsonl.read_text().splitlines()
    jsonl.write_text("\n".join([good[0], ODD_LINES[odd], good[1]]))
    report = check_data(str(jsonl))
    assert (report.recordings, report.seconds, report.words, len(report.problems)) == (3, 3.0, 4, 1)
    (finding,) = report.problems
    assert finding.kind in ("bad line", "unreadable") and "line 2" in f"{finding.where} {finding.message}"
    with pytest.raises(DataError):
        Corpus(str(jsonl), None, None, 1.0)
    assert main(["data", "check", str(jsonl)]) == 1
    assert "1 problem, 0 notes" in capsys.readouterr().out


@pytest.mark.parametrize("time", [10**400, -(10**400), 10**300, 1e300])
def test_enormous_times_are_impossible_times(data_set, time):
    jsonl = data_set(2.0, 1.0)
    for layout in (
        {"alignments": [["hello", [time, time], "SPEAKER_MAIN"]]},
        [{"speaker": "A", "word": "hello", "start": time, "end": time}],
        {"segments": [{"start": time, "end": time, "text": "hello", "words": []}]},
        {"transcription": [{"offsets": {"from": time, "to": time}, "text": "hello"}]},
    ):
        wav(jsonl).with_suffix(".json").write_text(json.dumps(layout))
        report = check_data(str(jsonl))
        assert report.seconds == 3.0 and {where for _, where in kinds(report)} == {"0.json"}


def test_words_of_somebody_else_only(data_set):
    jsonl = data_set(2.0)
    words(jsonl, ("hi", [0.1, 0.2], "SPEAKER_00"))
    (finding,) = check_data(str(jsonl)).problems
    assert "SPEAKER_00" in finding.message and "--moshi_label" in finding.message and finding.kind == "bad transcript"


def test_shorter_than_a_frame(data_set):
    jsonl = data_set(2.0)
    rewrite(wav(jsonl), samples=1000)
    jsonl.write_text('{"path": "wavs/0.wav", "duration": 0.0416}\n')
    assert ("too short", "0.wav") in kinds(check_data(str(jsonl)))


def test_rules_that_apply_are_notes(tmp_path, write_recording):
    write_recording(tmp_path / "m.wav", 2.0, channels=1, rate=8000, words=[("hi", 0.1, 0.3, "SPEAKER_MAIN")])
    (tmp_path / "d.jsonl").write_text('{"path": "m.wav", "duration": 1.0, "prefix_secs": 2}\n')
    report = check_data(str(tmp_path / "d.jsonl"))
    assert not report.problems
    assert {f.kind for f in report.findings} == {"mono", "rate", "duration", "unknown key"}
    assert any("prefix_secs" in f.message for f in report.findings)


def test_a_silent_user_is_a_note_and_a_silent_moshi_a_problem(data_set):
    jsonl = data_set(1.0)
    sound, rate = soundfile.read(wav(jsonl))
    for silent, expected in ((1, "note"), (0, "problem")):
        one_sided = sound.copy()
        one_sided[:, silent] = 0
        soundfile.write(wav(jsonl), one_sided, rate)
        assert [f.level for f in check_data(str(jsonl)).findings] == [expected]


def test_training_and_evaluation_must_not_share_recordings(data_set):
    train, evaluation = data_set(1.0, 1.5, name="t"), data_set(2.0, 1.5, name="e")
    report = check_data(f"{train},{evaluation}:2")
    assert kinds(report) == [("in two lists", "1.wav")]
    assert "line 2" in report.problems[0].message
    train.write_text(train.read_text() + '{"path": "wavs/0.wav", "duration": 1.0}\n')
    assert kinds(check_data(str(train)), "note") == [("duplicate", "0.wav")]


def test_nothing_to_check_is_an_error(tmp_path):
    for spec in (tmp_path / "none", tmp_path):
        with pytest.raises(DataError):
            check_data(str(spec))
    (tmp_path / "d.jsonl").touch()
    with pytest.raises(DataError, match="lists no recordings"):
        check_data(str(tmp_path))


def test_the_command_reports_and_its_status_tells(data_set, capsys):
    jsonl = data_set(2.0, 1.0)
    assert main(["data", "check", str(jsonl)]) == 0
    assert capsys.readouterr().out == "2 recordings, 0:00:03, 4 words of the agent: no problems, 0 notes\n"
    wav(jsonl).unlink()
    assert main(["data", "check", str(jsonl)]) == 1
    out = capsys.readouterr().out
    assert f"{wav(jsonl)}\n  PROBLEM" in out and "1 problem, 0 notes" in out
    assert main(["data", "check", str(jsonl), "--json"]) == 1
    document = json.loads(capsys.readouterr().out)
    assert document["problems"] == 1 and document["findings"][0]["kind"] == "missing recording"
    assert np.isclose(document["seconds"], 1.0)


def test_the_command_explains_what_it_cannot_do(tmp_path, capsys):
    for argv, hint in (
        (["data", "check", str(tmp_path / "none")], "neither a jsonl file nor a folder"),
        (["data", "check", "x", "--jason"], "did you mean `--json`"),
        (["data", "chek"], "check, prepare"),
        (["data"], ""),
    ):
        assert main(argv) == 2
        assert hint in capsys.readouterr().err


def test_words_that_a_tokenizer_does_not_know_are_counted(data_set, tokenizer, tmp_path, capsys):
    jsonl = data_set(2.0, 1.0)
    (tmp_path / "t.model").write_bytes(tokenizer.serialized_model_proto())
    argv = ["data", "check", str(jsonl), "--tokenizer", str(tmp_path / "t.model")]
    assert main(argv) == 0
    known = [(w, 0.1 * i, 0.1 * i + 0.05, "SPEAKER_MAIN") for i, w in enumerate(["hello"] * 10)]
    words(jsonl, *([w, [a, b], s] for w, a, b, s in [*known, ("привет", 1.2, 1.4, "SPEAKER_MAIN")]))
    assert main(argv) == 0
    assert "does not know 1 and spells 0 byte by byte, such as 'привет'" in capsys.readouterr().out
    words(jsonl, *([w, [a, b], s] for w, a, b, s in [*known[:3], ("привет", 1.2, 1.4, "SPEAKER_MAIN")]))
    assert main(argv) == 1
    assert "of 5 words of the agent the tokenizer does not know 1" in capsys.readouterr().out
    assert main(argv[:3]) == 0
    for bad in (tmp_path / "none", jsonl):
        assert main([*argv[:3], "--tokenizer", str(bad)]) == 2
        assert "--tokenizer" in capsys.readouterr().err
