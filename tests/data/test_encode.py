"""`data encode`: shards together make every code that training needs, and none twice."""

from __future__ import annotations

import shutil

import pytest

from ttt_moshi.cli.main import main


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


@pytest.mark.parametrize("shard", ["0/2", "3/2", "1", "a/b", "1/0", "-1/2"])
def test_a_bad_shard_is_one_line(tmp_path, capsys, shard):
    assert main(["data", "encode", str(tmp_path), f"--shard={shard}"]) == 2
    told = capsys.readouterr().err
    assert "--shard" in told and told.count("\n") == 1
