"""`data encode`: shards together make every code that training needs, and none twice."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from ttt_moshi.cli.data_shown import encoding, throughput
from ttt_moshi.cli.main import main
from ttt_moshi.config import ModelPaths
from ttt_moshi.data import Codec, Corpus
from ttt_moshi.moshi import resolve_model
from ttt_moshi.moshi.paths import text_tokenizer


def test_shards_make_all_codes_between_them(tiny_material, tmp_path, capsys):
    folder = shutil.copytree(
        tiny_material.train_data.parent, tmp_path / "train", ignore=shutil.ignore_patterns(".mimi*")
    )
    argv = ["data", "encode", str(folder), "--hf_repo_id", str(tiny_material.base_model), "--device", "cpu"]
    made = []
    for shard in ("1/2", "2/2"):
        assert main([*argv, "--shard", shard, "--cache_dir", str(tmp_path / "codes")]) == 0
        assert f"shard {shard[0]} of 2" in capsys.readouterr().out
        made.append({path.name: path.stat().st_mtime_ns for path in (tmp_path / "codes").glob("*.safetensors")})
    recordings = len((folder / "data.jsonl").read_text().splitlines())
    assert 0 < len(made[0]) < len(made[1]) == recordings
    assert made[0].items() <= made[1].items()
    assert main([*argv, "--cache_dir", str(tmp_path / "whole")]) == 0
    whole = {path.name: path.read_bytes() for path in (tmp_path / "whole").glob("*.safetensors")}
    assert whole == {path.name: path.read_bytes() for path in (tmp_path / "codes").glob("*.safetensors")}


@pytest.fixture
def codes_alone(tiny_material, tmp_path) -> tuple[Path, list[str]]:
    """A copy of the training dialogues, one with given frames, and the command that encodes them."""
    folder = shutil.copytree(
        tiny_material.train_data.parent, tmp_path / "train", ignore=shutil.ignore_patterns(".mimi*")
    )
    lines = (folder / "data.jsonl").read_text().splitlines()
    lines[0] = json.dumps({**json.loads(lines[0]), "prefix_sec": 0.8})
    (folder / "data.jsonl").write_text("\n".join(lines))
    argv = ["data", "encode", str(folder), "--hf_repo_id", str(tiny_material.base_model), "--device", "cpu"]
    return folder, [*argv, "--cache_dir", str(tmp_path / "codes")]


def everything(corpus: Corpus) -> list[tuple[bytes, int]]:
    return sorted((corpus.whole(r).numpy().tobytes(), r.prefix_frames) for r in corpus.recordings)


def test_a_data_set_of_codes_alone_is_what_training_would_have_read(codes_alone, tiny_material, tmp_path, capsys):
    folder, argv = codes_alone
    out = tmp_path / "alone"
    for shard in ("1/2", "2/2"):
        assert main([*argv, "--out", str(out), "--shard", shard]) == 0
        assert "codes alone" in capsys.readouterr().out
    info = resolve_model(ModelPaths(hf_repo_id=str(tiny_material.base_model)))
    codec = Codec(info.get_mimi(device="cpu"), info.mimi_config)
    heard = Corpus(str(folder), codec, text_tokenizer(info), 1.0, tmp_path / "codes")
    expected = everything(heard)
    shutil.rmtree(folder)
    alone = Corpus(str(out), None, None, 1.0)
    assert everything(alone) == expected and len({prefix for _, prefix in expected}) == 2
    assert main([*argv[:2], str(out), "--hf_repo_id", str(tiny_material.base_model), "--out", str(tmp_path / "2")]) == 0
    assert everything(Corpus(str(tmp_path / "2"), None, None, 1.0)) == expected, "codes of codes are the same codes"


def test_what_is_written_is_not_written_again_and_what_is_broken_is(codes_alone, tmp_path):
    folder, argv = codes_alone
    out = tmp_path / "alone"
    assert main([*argv, "--out", str(out)]) == 0
    files = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in (out / "codes").iterdir()}
    broken, *others = sorted(files)
    broken.write_bytes(files[broken][1][:100])
    others[0].unlink()
    assert main([*argv, "--out", str(out)]) == 0
    assert {path: path.read_bytes() for path in (out / "codes").iterdir()} == {p: c for p, (_, c) in files.items()}
    assert all(path.stat().st_mtime_ns == files[path][0] for path in others[1:])
    transcript = next((folder / "data_stereo").glob("*.json"))
    words = json.loads(transcript.read_text())
    words["alignments"][0][0] += "ly"
    transcript.write_text(json.dumps(words))
    assert main([*argv, "--out", str(out)]) == 0
    listed = [json.loads(line)["path"] for line in (out / "data.jsonl").read_text().splitlines()]
    assert len(set(listed) - {f"codes/{path.name}" for path in files}) == 1, "other words are another recording"


def test_what_is_remembered_in_a_folder_is_no_list_of_it(codes_alone, capsys, monkeypatch):
    monkeypatch.setattr("ttt_moshi.data.digests._SETTLED_NS", 0)
    folder, argv = codes_alone
    argv = argv[: argv.index("--cache_dir")]
    for _ in range(2):
        assert main(argv) == 0
    assert (folder / ".mimi_codes" / ".digests.jsonl").is_file()
    assert main(["data", "check", str(folder)]) == 0
    assert "4 recordings" in capsys.readouterr().out


def test_an_out_that_is_a_file_is_one_line(codes_alone, tmp_path, capsys):
    (tmp_path / "file").touch()
    assert main([*codes_alone[1], "--out", str(tmp_path / "file")]) == 2
    told = capsys.readouterr().err
    assert "--out" in told and told.count("\n") == 1


def test_throughput_and_the_time_left():
    assert throughput(600, 3600, 30) == "0:10:00 of 1:00:00, 20.0x real time, 0:02:30 left"
    assert throughput(0, 3600, 0) == "0:00:00 of 1:00:00, 0.0x real time"


def test_a_log_has_a_line_a_minute_and_a_screen_none(capsys, monkeypatch):
    monkeypatch.setattr("ttt_moshi.cli.data_shown.LOG_EVERY", 0.0)
    with encoding() as (on_recording, summary):
        on_recording("a.wav", 125, 250)
        assert summary().startswith("0:00:10 of audio in 0:00:00")
    told = capsys.readouterr().err
    assert told.startswith("encoding a.wav: 0:00:10 of 0:00:20, ") and told.count("\n") == 1


@pytest.mark.parametrize("shard", ["0/2", "3/2", "1", "a/b", "1/0", "-1/2"])
def test_a_bad_shard_is_one_line(tmp_path, capsys, shard):
    assert main(["data", "encode", str(tmp_path), f"--shard={shard}"]) == 2
    told = capsys.readouterr().err
    assert "--shard" in told and told.count("\n") == 1
