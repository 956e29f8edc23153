"""`ttt-moshi eval` with every kind of bad value: one line, the documented status, and nothing is touched."""

import json
import shutil
from pathlib import Path

import pytest

from ttt_moshi.cli.main import main


@pytest.fixture
def place(tmp_path) -> Path:
    """A folder of things that are not what they should be."""
    (tmp_path / "file").write_text("x")
    (tmp_path / "empty").mkdir()
    (tmp_path / "latin.yaml").write_bytes(b"run_dir: caf\xe9\n")
    (tmp_path / "broken.yaml").write_text("data: [")
    (tmp_path / "types.yaml").write_text("paper_metrics:\n  tasks: [1, 2]\n")
    (tmp_path / "negative.yaml").write_text("paper_metrics:\n  max_items: -3\n")
    (tmp_path / "unknown.yaml").write_text("dta:\n  eval_data: x\n")
    (tmp_path / "latin.jsonl").write_bytes(b'{"path": "caf\xe9.wav", "duration": 3}\n')
    (tmp_path / "gone.jsonl").write_text('{"path": "gone.wav", "duration": 3}\n')
    return tmp_path


def content(folder: Path) -> dict:
    return {p: p.is_file() and p.read_bytes() for p in folder.rglob("*")}


BAD = [
    *(["--device=" + name] for name in ("mps", "gpu", "", "cuda:9", "cuda:x")),
    *([flag, value] for flag in ("--batch_size", "--limit", "--max_items", "--chunk_frames", "--max_frames",
                                 "--sampled_texts", "--sink") for value in ("0", "-1", "x", "1.5", "", "²")),
    ["--seed", "x"], ["--split", "train"], ["--text", "mine"], ["--user", "loud"], ["--dtype", "float16"],
    ["--reference", "moshika2"], ["--eval_type", "all"],
    *(["--tasks", names] for names in ("swugy", "", ",", "all,x", "ppl,listt")),
    *(["--ttt", control] for control in ("of", "reset", "reset:0", "swapped:-1", "")),
    ["--ttt", "off", "--tasks", "inner"], ["--ttt", "reset:4", "--text", "sampled"],
    ["--outputs_of", "x", "--tasks", "ssc"], ["--outputs_of", " ", "--tasks", "full_duplex"],
    ["--outputs_of", "x", "--tasks", "full_duplex", "--sink", "2"],
    ["--sink", "2", "--text", "sampled"], ["--sink", "2", "--ttt", "swapped:4"], ["--sink", "9999"],
    ["--out", "{place}/file"], ["--cache_dir", "{place}/file"], ["--out", "{place}/file/below"],
    ["--cache_dir", "{place}/file/below"], ["--out", "/proc/nowhere"], ["--cache_dir", "/proc/nowhere"],
    *(["--ttt", f"{kind}:9999999999999999999999"] for kind in ("reset", "swapped")),
    ["--sampled_texts", "99999999", "--text", "sampled"], ["--answers", "99999999", "--tasks", "trivia_qa"],
    *([flag, ""] for flag in ("--out", "--data", "--data_root", "--cache_dir", "--config")), ["--data", " "],
    ["--reference", "moshiko", "--tasks", "perplexity"], ["--reference", "moshiko"],
    ["--data_root", "{place}/gone"], ["--data_root", "{place}/file"],
    *(["--config", f"{{place}}/{name}"] for name in ("gone.yaml", "empty", "latin.yaml", "broken.yaml", "types.yaml",
                                                     "negative.yaml", "unknown.yaml")),
    *(["--data", f"{{place}}/{name}"] for name in ("gone", "empty", "latin.jsonl", "gone.jsonl", "file")),
    ["--tasks", "ssc,tsc", "--data_root", "{place}/empty"],
    ["--hf_repo_id", "{place}/gone"], ["--hf_repo_id", "{place}/empty"],
    ["--checkpoint_dir", "{place}/gone"], ["--checkpoint_dir", "{place}/file"], ["--checkpoint_dir", "{place}/empty"],
    ["--checkpoint_dir", ""], ["--unknown", "1"], ["stray"],
]  # fmt: skip


@pytest.mark.parametrize("words", BAD, ids=lambda words: " ".join(words))
def test_a_bad_value_is_one_line_and_touches_nothing(words, place, tiny_material, capsys):
    usual = {
        "--checkpoint_dir": "base", "--hf_repo_id": str(tiny_material.base_model), "--out": str(place / "out"),
        "--data": str(tiny_material.eval_data), "--dtype": "float32",
    }  # fmt: skip
    words = [word.replace("{place}", str(place)) for word in words]
    for flag in words[::2]:
        usual.pop(flag, None)
    before = content(place)
    status = main(["eval", *(word for pair in usual.items() for word in pair), *words])
    error = capsys.readouterr().err
    assert status == 2
    assert error.startswith("error: ") and error.count("\n") == 1 and len(error) > 20
    assert content(place) == before


@pytest.mark.parametrize("name", ["gone", "empty", "latin.jsonl", "file"])
def test_recordings_that_are_not_there_are_refused_though_no_task_reads_them(name, place, tiny_material, bench, capsys):
    words = ["--checkpoint_dir", "base", "--hf_repo_id", tiny_material.base_model, "--out", place / "out"]
    words += ["--tasks", "ssc", "--data_root", bench, "--data", place / name]
    before = content(place)
    assert main(["eval", *map(str, words)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and str(place / name) in error
    assert content(place) == before


RESULTS = {
    "schema": 1, "checkpoint": {"state_id": "s", "step": 1, "kind": "full"}, "config": {}, "seed": 0,
    "data": {"ssc": {"digest": "d"}}, "versions": {},
    "tasks": {"ssc": {"status": "ok", "value": 0.5, "ci95": [0.4, 0.6], "n": 2, "metric": "m", "unit_of_n": "items",
                      "better": "higher"}},
}  # fmt: skip
SAMPLES = '{"id": "a", "score": 1.0}\n{"id": "b", "score": 0.0}\n'
NOT_RESULTS = {
    "truncated": json.dumps(RESULTS)[:-20].encode(),
    "empty": b"",
    "binary": bytes(range(256)),
    "latin": '{"schema": 1, "x": "é"}'.encode("latin-1"),
    "a list": b"[]",
    "another schema": json.dumps(RESULTS | {"schema": 9}).encode(),
    "no tasks": json.dumps({k: v for k, v in RESULTS.items() if k != "tasks"}).encode(),
    "tasks of another kind": json.dumps(RESULTS | {"tasks": [1]}).encode(),
    "a task of another kind": json.dumps(RESULTS | {"tasks": {"ssc": 3}}).encode(),
    "a task without a value": json.dumps(RESULTS | {"tasks": {"ssc": {"status": "ok"}}}).encode(),
    "a value that is a word": json.dumps(
        RESULTS | {"tasks": {"ssc": RESULTS["tasks"]["ssc"] | {"value": "high"}}}
    ).encode(),
    "an interval of one": json.dumps(RESULTS | {"tasks": {"ssc": RESULTS["tasks"]["ssc"] | {"ci95": [0.1]}}}).encode(),
    "details of another kind": json.dumps(
        RESULTS | {"tasks": {"ssc": RESULTS["tasks"]["ssc"] | {"reductions": 4, "pairs": 1, "voices": 1}}}
    ).encode(),
    "a protocol of another kind": json.dumps(
        RESULTS | {"tasks": {"ssc": RESULTS["tasks"]["ssc"] | {"protocol": ["dtype"]}}}
    ).encode(),
    "data of another kind": json.dumps(RESULTS | {"data": {"ssc": 3}}).encode(),
    "a task that names another folder": json.dumps(RESULTS | {"tasks": {"../../x": RESULTS["tasks"]["ssc"]}}).encode(),
    "no checkpoint": json.dumps(RESULTS | {"checkpoint": None}).encode(),
}


@pytest.fixture
def good(tmp_path) -> Path:
    folder = tmp_path / "good"
    (folder / "samples").mkdir(parents=True)
    (folder / "results.json").write_text(json.dumps(RESULTS))
    (folder / "samples" / "ssc.jsonl").write_text(SAMPLES)
    return folder


@pytest.mark.parametrize("kind", NOT_RESULTS)
def test_corrupt_results_are_named_by_every_command(kind, good, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "400")
    bad = tmp_path / "bad"
    shutil.copytree(good, bad)
    (bad / "results.json").write_bytes(NOT_RESULTS[kind])
    before = content(tmp_path)
    details = kind == "details of another kind"  # only a report looks at them
    for command in (["report", str(bad)], ["compare", str(good), str(bad), "--out", str(tmp_path / "cmp")]):
        if details and command[0] == "compare":
            continue
        assert main(["eval", *command]) == 2
        error = capsys.readouterr().err
        assert error.startswith("error: ") and error.count("\n") == 1 and "bad/results.json" in error
    assert content(tmp_path) == before
    assert main(["eval", "ls", str(tmp_path)]) == (0 if details else 1)
    shown = capsys.readouterr().out
    assert "good" in shown and ("bad/results.json" in shown) != details


def test_corrupt_samples_are_named(good, tmp_path, capsys):
    for content_ in (b"{", b"\xff", b'{"id": 1}', b"[1]", b'{"id": "a", "score": "x"}'):
        (good / "samples" / "ssc.jsonl").write_bytes(content_)
        assert main(["eval", "compare", str(good), str(good), "--out", str(tmp_path / "cmp")]) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1 and "ssc.jsonl" in error
    assert not (tmp_path / "cmp").exists()


@pytest.mark.parametrize("words", [
    ["ls", "{place}/gone"], ["ls", "{place}/file"], ["ls", "a", "b"], ["compare"], ["compare", "{place}/gone"],
    ["compare", "{place}/file", "{place}/file"], ["compare", "{place}/good"],
    ["compare", "{place}/good", "{place}/good", "--out", "{place}/file"], ["report"], ["report", "{place}/gone"],
    ["report", "{place}/file"],
    ["report", "{place}/good", "--out", "x"], ["report", "{place}/good", "{place}/gone"],
    ["lm-eval"], ["lm-eval", "{place}/gone"], ["lm-eval", "{place}/file"], ["lm-eval", "{place}/empty"],
    ["versa", "{place}/gone"], ["versa", "{place}/file"], ["versa", "{place}/empty"],
    ["versa", "{place}/empty", "--references", "{place}/gone"], ["versa", "{place}/empty", "--out", "{place}/file"],
], ids=" ".join)  # fmt: skip
def test_commands_on_evaluations_refuse_what_is_none(words, place, good, capsys, monkeypatch):
    monkeypatch.chdir(place)
    before = content(place)
    assert main(["eval", *(word.replace("{place}", str(place)) for word in words)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1
    assert content(place) == before
