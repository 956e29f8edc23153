"""VoiceBench, Big Bench Audio and URO-Bench as they are published. Parquet needs `make test-extras`."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

from ttt_moshi.cli.main import main
from ttt_moshi.errors import UserError
from ttt_moshi.evaluation import EvaluationError
from ttt_moshi.evaluation.tasks.published_questions import _options, choices, judged
from ttt_moshi.evaluation.tasks.spoken_questions import some

BIG_BENCH = "big_bench_audio-navigate"
TEXT = "a\u2028b"


def sound(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, 0.1 * np.ones(4800, np.float32), 24_000)
    return path


def lines(path: Path, *values) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(value, ensure_ascii=False) + "\n" for value in values), encoding="utf-8")
    return path


@pytest.fixture
def bench(tmp_path):
    sound(tmp_path / "big_bench_audio" / "data" / "question_0.wav")
    lines(
        tmp_path / "big_bench_audio" / "metadata.jsonl",
        # As written on Windows, and with a line separator within a text.
        {
            "file_name": "data\\question_0.wav",
            "category": "navigate",
            "official_answer": "Yes",
            "id": 0,
            "transcript": TEXT,
        },
    )
    uro = tmp_path / "URO-Bench-data"
    for name in ("Repeat", "Gsm8kEval"):
        sound(uro / "basic" / name / "audio" / "0.wav")
    line = {"id": "0", "source_wav": "./audio/0.wav", "source_text": "Say so."}
    lines(uro / "basic" / "Repeat" / "test.jsonl", line)
    lines(uro / "basic" / "Gsm8kEval" / "test.jsonl", line | {"target_text": "18"})
    lines(uro / "pro" / "MtBenchEval-en" / "test.jsonl", {"id": "0", "dialogue": [{"round": 1}]})
    return tmp_path


def test_lists_are_read_as_they_are_published(bench):
    found = judged(bench)
    assert [(q.group, q.id, q.text, q.answers) for q in found.questions] == [
        ("big_bench_audio-navigate", "0", "a\u2028b", ("Yes",)),
        ("Gsm8kEval", "0", "Say so.", ("18",)),
        ("Repeat", "0", "Say so.", ("Say so.",)),
    ]
    assert all(q.audio.is_file() for q in found.questions)
    assert found.left_out == {"MtBenchEval-en": "it asks in several rounds"}


def test_the_command_asks_them_and_says_what_is_left_out(bench, tiny_material, tmp_path):
    ratings = lines(
        bench / "ratings.jsonl",
        *({"id": f"{name}-0-0", "score": i} for i, name in enumerate(("Repeat", "Gsm8kEval", BIG_BENCH))),
    )
    base = ["eval", "--checkpoint_dir", "base", "--hf_repo_id", str(tiny_material.base_model), "--dtype", "float32"]
    base += ["--tasks", "judged_answers", "--data_root", str(bench), "--answer_seconds", "0.8", "--judge", str(ratings)]
    assert main([*base, "--out", str(tmp_path / "out")]) == 0
    task = json.loads((tmp_path / "out" / "results.json").read_text())["tasks"]["judged_answers"]
    assert {name: one["value"] for name, one in task["lists"].items()} == {
        "Repeat": 0.0,
        "Gsm8kEval": 1.0,
        "big_bench_audio-navigate": 2.0,
    }
    assert task["left_out"] == {"MtBenchEval-en": "it asks in several rounds"}
    assert "Left out: MtBenchEval-en" in (tmp_path / "out" / "report.md").read_text()


ANSWER = {"category": "x", "official_answer": "y"}


@pytest.mark.parametrize(("path", "line", "message"), [
    ("big_bench_audio/metadata.jsonl", ANSWER, r"metadata\.jsonl, line 1: lacks 'file_name'"),
    ("big_bench_audio/metadata.jsonl", ANSWER | {"file_name": "../up.wav"}, "leaves the folder"),
    ("big_bench_audio/metadata.jsonl", ANSWER | {"file_name": "data/no.mp3"}, "not there"),
    ("big_bench_audio/metadata.jsonl", [], "is no JSON object"),
    ("URO-Bench-data/basic/Repeat/test.jsonl", {"source_wav": "audio/0.wav"}, r"line 1: lacks 'source_text'"),
])  # fmt: skip
def test_what_is_wrong_is_named(bench, path, line, message):
    lines(bench / path, line)
    with pytest.raises(EvaluationError, match=message):
        judged(bench)


def test_nothing_and_the_same_name_twice_are_refused(bench, tmp_path):
    for find in (choices, judged):
        with pytest.raises(EvaluationError, match="no spoken questions: expected"):
            find(tmp_path / "nowhere")
    path = bench / "URO-Bench-data" / "basic" / "Repeat" / "test.jsonl"
    line = json.loads(path.read_text())
    lines(path, line, line)
    with pytest.raises(EvaluationError, match="2 questions are called Repeat-0"):
        some(judged(bench).questions, None, 0)
    lines(path, line | {"id": "../../x"})
    with pytest.raises(EvaluationError, match="cannot name a question"):
        some(judged(bench).questions, None, 0)


def test_options_are_found_in_a_prompt():
    assert _options("What is hot?\nA. ice\nB. the sun, a star\nC. snow D. 4") == {
        "A": "ice",
        "B": "the sun, a star",
        "C": "snow",
        "D": "4",
    }
    assert _options("Nothing of that kind") == dict.fromkeys("ABCD", "")


def test_parquet_says_what_it_needs(tmp_path, monkeypatch):
    path = tmp_path / "voicebench" / "mmsu" / "test-00000-of-00001.parquet"
    lines(path)
    monkeypatch.setitem(sys.modules, "pyarrow", None)  # as where it is not installed
    with pytest.raises(UserError, match=r"Parquet .* needs the package pyarrow: pip install 'ttt-moshi\[parquet\]'"):
        choices(tmp_path)


@pytest.mark.slow  # needs pyarrow
def test_parquet_is_read_lazily_in_its_order(tmp_path, tiny_material):
    import pyarrow
    import pyarrow.parquet

    def table(path: Path, **columns) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        pyarrow.parquet.write_table(pyarrow.table(columns), path, row_group_size=2)
        return path

    wavs = [sound(tmp_path / f"{i}.wav") for i in range(3)]
    for i, wav in enumerate(wavs):
        soundfile.write(wav, np.full(2400 * (i + 1), 0.1, np.float32), 24_000)
    audio = [{"bytes": wav.read_bytes(), "path": wav.name} for wav in wavs]
    prompts = ["Which? A. ice B. sun C. sea D. air"] * 3
    root = tmp_path / "voicebench"
    table(root / "openbookqa" / "test-00000-of-00001.parquet", audio=audio, prompt=prompts, reference=["A", "B", "D"])
    table(root / "sd-qa" / "usa-00000-of-00002.parquet", audio=audio[:1], prompt=["One?"], reference=["1"])
    table(root / "sd-qa" / "usa-00001-of-00002.parquet", audio=audio[1:2], prompt=["Two?"], reference=["2"])
    table(root / "alpacaeval" / "test-00000-of-00001.parquet", audio=audio[:1], prompt=["Tell me"], output=["x"])
    table(root / "mtbench" / "test-00000-of-00001.parquet", audio1=audio[:1], turns=[["a", "b"]])
    asked = choices(tmp_path).questions
    assert [(q.id, q.answers, q.audio.samples().shape) for q in asked] == [
        ("00000.0", ("A",), (1, 2400)),
        ("00000.1", ("B",), (1, 4800)),
        ("00000.2", ("D",), (1, 7200)),
    ]
    assert asked[0].choices == {"A": "ice", "B": "sun", "C": "sea", "D": "air"}
    rated = judged(tmp_path)
    assert [(q.group, q.id, q.text, q.answers) for q in rated.questions] == [
        ("alpacaeval", "00000.0", "Tell me", ()),
        ("sd-qa-usa", "00000.0", "One?", ("1",)),
        ("sd-qa-usa", "00001.0", "Two?", ("2",)),
    ]
    assert list(rated.left_out) == ["mtbench"]
    base = ["eval", "--checkpoint_dir", "base", "--hf_repo_id", str(tiny_material.base_model), "--dtype", "float32"]
    base += ["--tasks", "spoken_choices", "--data_root", str(tmp_path), "--answer_seconds", "0.8"]
    assert main([*base, "--out", str(tmp_path / "out")]) == 0
    task = json.loads((tmp_path / "out" / "results.json").read_text())["tasks"]["spoken_choices"]
    assert task["n"] == 3 and task["chance"] == 0.25
    table(root / "openbookqa" / "test-00000-of-00001.parquet", audio=audio, prompt=prompts, reference=["A", "B", "E"])
    with pytest.raises(EvaluationError, match="row 2: the answer 'E' is not one of ABCD"):
        choices(tmp_path)
    table(root / "openbookqa" / "test-00000-of-00001.parquet", audio=[None] * 3, prompt=prompts, reference=["A"] * 3)
    with pytest.raises(EvaluationError, match="holds no audio"):
        choices(tmp_path).questions[0].audio.samples()
    (root / "openbookqa" / "test-00000-of-00001.parquet").write_bytes(b"PAR1 and nothing else")
    with pytest.raises(EvaluationError, match=r"cannot read .*test-00000-of-00001\.parquet"):
        choices(tmp_path)
