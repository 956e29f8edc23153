"""`data plant`: what it says returns does return, nothing is cut within a word, and the rest is as it was."""

from __future__ import annotations

import json

import pytest
import torch

from ttt_moshi.cli.main import main
from ttt_moshi.data.encoded import read_encoded, write_encoded
from ttt_moshi.data.interleaver import MOSHI_STYLE

LENGTH, WORD = 700, 5
PAD = MOSHI_STYLE.pad


@pytest.fixture
def data(tmp_path):
    """Three recordings whose frames are all different, with a word of five tokens every ten frames."""
    folder = tmp_path / "data"
    folder.mkdir()
    lines = []
    for index in range(3):
        frame = torch.arange(LENGTH)
        audio = [(frame // 32 ** (k % 3) + index + k) % 32 for k in range(16)]
        codes = torch.stack([torch.full((LENGTH,), PAD), *audio])
        codes[0, frame % 10 < WORD] = 10 + index
        write_encoded(folder / f"{index}.safetensors", codes)
        given = {"prefix_sec": 4.0} if index == 0 else {}
        lines.append(json.dumps({"path": f"{index}.safetensors", "duration": LENGTH / 12.5, **given}))
    (folder / "data.jsonl").write_text("\n".join(lines) + "\n")
    return folder


def plant(tiny_material, data, out, *options):
    argv = ["data", "plant", str(data), "--out", str(out), "--hf_repo_id", str(tiny_material.base_model)]
    return main([*argv, "--passage", "1:3", "--distance", "8:30", *options])


def lines_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def passages(folder):
    return json.loads((folder / "planted.json").read_text())


def frames(seconds):
    return round(seconds * 12.5)


def test_what_is_planted_returns_when_it_is_said_to(tiny_material, data, tmp_path, capsys):
    out = tmp_path / "out"
    assert plant(tiny_material, data, out, "--repeats", "2", "--facts", "3") == 0
    assert "with 6 repeats and 9 facts" in capsys.readouterr().out
    planted, lists = passages(out), lines_of(out / "data.jsonl")
    assert [line.get("prefix_sec") for line in lists] == [4.0, None, None]
    for index, line in enumerate(lists):
        codes, old = read_encoded(out / line["path"]), read_encoded(data / f"{index}.safetensors")
        assert frames(line["duration"]) == codes.shape[1]
        own = [one for one in planted if one["path"] == line["path"]]
        new = torch.zeros(codes.shape[1], dtype=torch.bool)
        for one in own:
            first, again, length = frames(one["first_sec"]), frames(one["again_sec"]), frames(one["duration"])
            assert 13 <= length <= 38 and again - first - length >= 100 - (length if one["kind"] == "fact" else 0)
            assert torch.equal(codes[:, first : first + length], codes[:, again : again + length])
            new[again : again + length] = True
            if one["kind"] == "fact":
                new[first : first + length] = True
                assert set(codes[0, first : first + length].tolist()) <= {PAD, 10, 11, 12} - {10 + index}
        # Without what was planted, the recording is what it was; and its given frames are still its first.
        assert torch.equal(codes[:, ~new], old) and not new[: frames(line.get("prefix_sec", 0.0))].any()
        edges = torch.diff(torch.cat([torch.zeros(1), (codes[0] != PAD).float(), torch.zeros(1)]))
        runs = (edges == -1).nonzero()[:, 0] - (edges == 1).nonzero()[:, 0]
        assert (runs % WORD == 0).all(), "a word was cut"


def test_a_seed_decides_and_a_distance_is_kept(tiny_material, data, tmp_path):
    def made(name, *options):
        assert plant(tiny_material, data, tmp_path / name, "--facts", "0", *options) == 0
        return passages(tmp_path / name)

    first = made("a")
    assert made("b") == first and made("c", "--seed", "1") != first
    assert {one["kind"] for one in first} == {"repeat"}
    far = made("d", "--distance", "40:45", "--repeats", "1")
    assert far and all(one["again_sec"] - one["first_sec"] >= 40 for one in far)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (("--passage", "3:1"), "--passage"),
        (("--distance", "a"), "--distance"),
        (("--distance", "0:5"), "--distance"),
        (("--repeats", "0", "--facts", "0"), "nothing to plant"),
        (("--repeats", "-1"), "nothing to plant"),
        (("--facts", "9" * 30), "`--facts` counts passages in each recording, at most 10,000"),
        (("--distance", "3600:7200"), "no recording is 3601.04 s long"),
    ],
)
def test_what_cannot_be_planted_is_one_line_and_makes_nothing(tiny_material, data, tmp_path, capsys, options, told):
    assert plant(tiny_material, data, tmp_path / "out", *options) == 2
    error = capsys.readouterr().err
    assert told in error and error.count("\n") == 1 and not (tmp_path / "out").exists()


def test_a_folder_that_holds_something_is_left_alone(tiny_material, data, tmp_path, capsys):
    other = tmp_path / "other"
    other.mkdir()
    (other / "mine.txt").write_text("mine")
    for out, told in ((other, "is not empty"), (data, "which is read, and would be written")):
        before = {path: path.read_bytes() for path in out.iterdir() if path.is_file()}
        assert plant(tiny_material, data, out) == 2
        assert told in capsys.readouterr().err
        assert {path: path.read_bytes() for path in out.iterdir() if path.is_file()} == before


def test_what_an_interrupted_call_has_left_is_said_to_be_that(tiny_material, data, tmp_path, capsys):
    out = tmp_path / "out"
    assert plant(tiny_material, data, out) == 0
    capsys.readouterr()
    (out / "data.jsonl").unlink()  # which is written last
    before = {path: path.read_bytes() for path in out.iterdir()}
    assert plant(tiny_material, data, out) == 2
    assert f"{out} holds what a call that was interrupted has left: delete it" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in out.iterdir()} == before
    assert plant(tiny_material, data, next(iter(before))) == 2
    assert "is a file: name a new folder" in capsys.readouterr().err


def test_a_folder_may_be_named_by_a_url_of_the_disk(tiny_material, data, tmp_path, capsys):
    assert plant(tiny_material, f"file://{data}", f"file://{tmp_path}/out") == 0
    assert passages(tmp_path / "out")
    assert plant(tiny_material, data, "s3://bucket/out") == 2
    assert "s3://bucket/out is a URL, and this must be on a disk" in capsys.readouterr().err


def test_audio_is_planted_as_codes_with_its_words(tiny_material, tmp_path):
    out, source = tmp_path / "out", tiny_material.train_data
    argv = ["data", "plant", str(source), "--out", str(out), "--hf_repo_id", str(tiny_material.base_model)]
    argv += ["--cache_dir", str(tmp_path / "codes"), "--passage", "0.4:1", "--distance", "1:2"]
    assert main(argv) == 0
    assert passages(out)
    codes = read_encoded(out / lines_of(out / "data.jsonl")[0]["path"])
    assert (codes[0] > PAD).any() and (codes[1:] >= 0).all()
    assert main(["data", "check", str(out)]) == 0
    unspaced = tmp_path / "unspaced"
    argv[argv.index(str(out))] = str(unspaced)
    assert main([*argv, "--no_whitespace_before_word"]) == 0
    other = read_encoded(unspaced / lines_of(unspaced / "data.jsonl")[0]["path"])
    assert sorted(set(other[0].tolist())) != sorted(set(codes[0].tolist())), "words are encoded together"
