"""`data encode`: shards together make every code that training needs, and none twice."""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load

from ttt_moshi.cli.data_shown import encoding, throughput
from ttt_moshi.cli.main import main
from ttt_moshi.config import ModelPaths
from ttt_moshi.data import Codec, Corpus, DataError
from ttt_moshi.data.encoded import write_encoded
from ttt_moshi.data.pretokenize import pretokenize
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


class _Opened:
    """Names of the files below a folder that anything in this process opens. Audit hooks stay, so there is one."""

    def __init__(self) -> None:
        self.folder: Path | None = None
        self.names: set[str] = set()
        sys.addaudithook(self._see)

    def _see(self, event: str, arguments: tuple[object, ...]) -> None:
        if event == "open" and self.folder is not None and str(arguments[0]).startswith(f"{self.folder}{os.sep}"):
            self.names.add(str(Path(str(arguments[0])).relative_to(self.folder)))

    def during(self, folder: Path, work: Callable[[], int]) -> set[str]:
        self.folder, self.names = folder, set()
        try:
            assert work() == 0
        finally:
            self.folder = None
        return self.names


@pytest.fixture(scope="module")
def opened() -> _Opened:
    return _Opened()


def test_a_shard_reads_its_own_recordings_alone(codes_alone, opened, tmp_path):
    folder, argv = codes_alone
    first, second, *_ = (folder / "data.jsonl").read_text().splitlines()
    with (folder / "data.jsonl").open("a") as file:  # one twice, and the same once more under another name
        again = json.loads(second)
        again["path"] = again["path"].replace(".wav", "_again.wav")
        file.write(f"\n{first}\n{json.dumps(again)}\n")
    for suffix in (".wav", ".json"):
        shutil.copy(
            (folder / json.loads(second)["path"]).with_suffix(suffix), (folder / again["path"]).with_suffix(suffix)
        )
    by_path = {json.loads(line)["path"] for line in (folder / "data.jsonl").read_text().splitlines()}
    heard: set[str] = set()
    for number in range(1, 5):
        out = ["--out", str(tmp_path / "shards"), "--shard", f"{number}/4"]
        found = opened.during(folder, lambda out=out: main([*argv, *out]))
        listed = tmp_path / "shards" / f"data-{number:05}-of-00004.jsonl"
        # Of a recording that is in two shards, the second one may know the audio without opening it.
        own = {name.replace(".json", ".wav") for name in found - {"data.jsonl"}}
        assert 1 <= len(own) <= len(listed.read_text().splitlines()) <= 2
        heard |= own
    assert heard == by_path
    assert main([*argv, "--out", str(tmp_path / "whole")]) == 0
    whole, shards = (Corpus(str(tmp_path / name), None, None, 1.0) for name in ("whole", "shards"))
    assert everything(shards) == everything(whole) and len(whole.recordings) == 6
    assert {r.audio.name for r in shards.recordings} == {r.audio.name for r in whole.recordings}


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
    (out / "data.jsonl").unlink()  # what names other words is not replaced without a word
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


@pytest.mark.parametrize("out", ["train", "train/codes", "link"])
@pytest.mark.parametrize("command", ["encode", "plant"])
def test_what_is_read_is_not_written(codes_alone, tmp_path, capsys, out, command):
    folder, argv = codes_alone
    (tmp_path / "link").symlink_to("train")
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    for source in (folder, folder / "data.jsonl"):
        if (source, out) == (folder / "data.jsonl", "train/codes"):
            continue  # one list alone is read, and stays
        argv[1:3] = [command, str(source)]
        assert main([*argv, "--out", str(tmp_path / out)]) == 2
        told = capsys.readouterr().err
        assert "name another folder" in told and str(folder) in told and told.count("\n") == 1
        assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("options", [[], ["--tar"], ["--shard", "1/2"]])
def test_a_list_of_another_data_set_is_not_replaced(codes_alone, tiny_material, tmp_path, capsys, options):
    folder, argv = codes_alone
    out, whole = tmp_path / "out", folder / "data.jsonl"
    lines = whole.read_text().splitlines()
    whole.write_text("\n".join(lines[:3]))
    assert main([*argv, "--out", str(out), *options]) == 0
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    listed = next(out.glob("data*.jsonl"))
    named = len(listed.read_text().splitlines())
    other = [str(tiny_material.eval_data) if word == str(folder) else word for word in argv]
    capsys.readouterr()
    assert main([*other, "--out", str(out), *options]) == 2
    told = capsys.readouterr().err
    assert f"{listed} would be replaced, and this data set lacks {named} of the {named} recordings" in told
    assert "name another folder" in told.lower() and told.count("\n") == 1
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before
    if not options:
        whole.write_text("\n".join(lines))
        assert main([*argv, "--out", str(out)]) == 0, "a data set may grow"
        assert len(listed.read_text().splitlines()) == 4
        listed.write_text("{}\n")
        assert main([*argv, "--out", str(out)]) == 2, "and what is no list of ours is nobody's to replace"


def test_a_list_that_comes_while_codes_are_made_is_not_replaced(codes_alone, tiny_material, tmp_path):
    """Of two calls that run at once, the second to end finds the list of the first."""
    folder, _ = codes_alone
    info = resolve_model(ModelPaths(hf_repo_id=str(tiny_material.base_model)))
    codec = Codec(info.get_mimi(device="cpu"), info.mimi_config)
    corpus = Corpus(str(folder), codec, text_tokenizer(info), 1.0, tmp_path / "codes")
    listed, line = tmp_path / "out" / "data.jsonl", '{"path": "codes/of_the_other.safetensors", "duration": 1.0}\n'
    with pytest.raises(DataError, match="would be replaced"):
        pretokenize(corpus, listed.parent, lambda *_: listed.write_text(line) and None)
    assert listed.read_text() == line


def test_what_is_there_is_not_counted_as_speed(codes_alone, tmp_path, capsys):
    _, argv = codes_alone
    for shard, told in (
        ("1/2", r"shard 1 of 2: 0:00:\d\d of audio in .*x real time\n"),
        ("1/1", r"shard 1 of 1: 0:00:\d\d of audio in .*x real time; the codes of 0:00:\d\d were there\n"),
        ("1/1", r"shard 1 of 1: the codes of all 0:0\d:\d\d of audio were there\n"),
    ):
        assert main([*argv, "--shard", shard]) == 0
        shown = capsys.readouterr().out
        assert re.fullmatch(told, shown), shown


def test_what_is_there_is_not_counted_while_the_rest_is_made(codes_alone, capsys, monkeypatch):
    monkeypatch.setattr("ttt_moshi.cli.data_shown.LOG_EVERY", 0.0)
    folder, argv = codes_alone
    durations = [json.loads(line)["duration"] for line in (folder / "data.jsonl").read_text().splitlines()]

    def told(*options: str) -> list[int]:
        assert main([*argv, *options]) == 0
        shown = capsys.readouterr().err
        totals = set(re.findall(r"^encoding .*: [\d:]+ of ([\d:]+), ", shown, re.MULTILINE))
        return [60 * int(minutes) + int(seconds) for _, minutes, seconds in (total.split(":") for total in totals)]

    (first,) = told("--shard", "1/2")
    (rest,) = told()
    assert first > 0 and rest > 0 and abs(first + rest - sum(durations)) < 3
    assert told() == []


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


def test_another_number_of_shards_is_refused_before_the_work(tmp_path, capsys):
    for i in range(6):
        write_encoded(tmp_path / f"{i}.safetensors", torch.full((17, 50 + i), 5))
    lines = [json.dumps({"path": f"{i}.safetensors", "duration": (50 + i) / 12.5}) for i in range(6)]
    (tmp_path / "data.jsonl").write_text("\n".join(lines))
    source, out = str(tmp_path / "data.jsonl"), tmp_path / "codes_alone"

    def encode(number: int, shards: int) -> Path:
        return pretokenize(Corpus(source, None, None, 1.0, shard=(number, shards)), out)

    for number in (0, 1, 2, 0):  # a part may be made again
        encode(number, 3)
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    for shards, told in ((2, "in 3 parts (data-00001-of-00003.jsonl, ...)"), (1, "`--shard` of 1")):
        with pytest.raises(DataError, match=re.escape(told)):
            encode(0, shards)
        # There is no such model, and nobody asks for it.
        command = ["data", "encode", source, "--hf_repo_id", str(tmp_path / "none"), "--out", str(out)]
        assert main([*command, "--shard", f"1/{shards}"]) == 2
        assert told in capsys.readouterr().err
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before
    assert len(Corpus(str(out), None, None, 1.0).recordings) == 6
    # Lists of both, as an earlier version or somebody's copy has left them.
    shutil.copy(out / "data-00001-of-00003.jsonl", out / "data-00001-of-00002.jsonl")
    shutil.copy(out / "data-00001-of-00003.jsonl", out / "data.jsonl")
    told = "is there whole (data.jsonl) and in 2 parts (data-00001-of-00002.jsonl, ...) and in 3 parts ("
    with pytest.raises(DataError, match=re.escape(told)):
        Corpus(str(out), None, None, 1.0)
    for command in (["check", str(out)], ["report", str(out), "--out", str(tmp_path / "page.html")]):
        assert main(["data", *command]) == 2
        assert told in capsys.readouterr().err


def test_tar_files_hold_the_same_codes(codes_alone, tiny_material, tmp_path, capsys):
    _, argv = codes_alone
    assert main([*argv, "--out", str(tmp_path / "files")]) == 0
    for shard in ("1/2", "2/2"):
        assert main([*argv, "--out", str(tmp_path / "tars"), "--tar", "--shard", shard]) == 0
    tars = sorted((tmp_path / "tars").glob("*.tar"))
    assert [tar.name for tar in tars] == ["codes-00001-of-00002.tar", "codes-00002-of-00002.tar"]
    expected = everything(Corpus(str(tmp_path / "files"), None, None, 1.0))
    for _ in range(2):  # the second time from remembered digests
        assert everything(Corpus(str(tmp_path / "tars"), None, None, 1.0)) == expected
    assert main(["data", "check", str(tmp_path / "tars")]) == 0
    seen = []
    for tar in tars:
        with tarfile.open(tar) as file:
            members = [(member.name.partition("."), file.extractfile(member).read()) for member in file]
        # webdataset takes what follows one another with the same name for one sample.
        for ((key, _, kind), codes), ((same, _, other), line) in zip(members[::2], members[1::2], strict=True):
            assert (same, kind, other) == (key, "safetensors", "json")
            facts = json.loads(line)
            assert facts["path"] == f"{tar.name}/{key}.safetensors"
            seen.append((load(codes)["codes"].long().numpy().tobytes(), round(12.5 * facts.get("prefix_sec", 0))))
    assert sorted(seen) == expected
    before = [tar.read_bytes() for tar in tars]
    assert main([*argv, "--out", str(tmp_path / "tars"), "--tar", "--shard", "1/2"]) == 0
    assert [tar.read_bytes() for tar in tars] == before
    tars[0].write_bytes(before[0][: len(before[0]) // 2])
    capsys.readouterr()
    assert main(["data", "check", str(tmp_path / "tars")]) == 1
    assert "codes-00001-of-00002.tar" in capsys.readouterr().out
    with pytest.raises(DataError, match=r"codes-00001-of-00002\.tar"):
        Corpus(str(tmp_path / "tars"), None, None, 1.0)


def test_what_is_listed_twice_is_heard_twice(codes_alone, tmp_path):
    folder, argv = codes_alone
    with (folder / "data.jsonl").open("a") as file:
        file.write("\n" + (folder / "data.jsonl").read_text().splitlines()[1])
    for options in ([], ["--tar"]):
        out = tmp_path / f"out{len(options)}"
        assert main([*argv, "--out", str(out), *options]) == 0
        assert len(Corpus(str(out), None, None, 1.0).recordings) == 5


def test_tar_files_need_a_folder(codes_alone, capsys):
    assert main([*codes_alone[1], "--tar"]) == 2
    told = capsys.readouterr().err
    assert "--out" in told and told.count("\n") == 1


@pytest.mark.parametrize("shard", ["0/2", "3/2", "1", "a/b", "1/0", "-1/2", "²/³", "1/" + 5000 * "9"])
def test_a_bad_shard_is_one_line(tmp_path, capsys, shard):
    assert main(["data", "encode", str(tmp_path), f"--shard={shard}"]) == 2
    told = capsys.readouterr().err
    assert "--shard" in told and told.count("\n") == 1


def test_a_part_that_is_missing_is_named_and_an_empty_one_is_there(codes_alone, tiny_material, tmp_path, capsys):
    _, argv = codes_alone
    out = tmp_path / "out"
    assert main([*argv, "--out", str(out), "--shard", "1/9"]) == 0
    capsys.readouterr()
    told = f"{out} lacks " + ", ".join(f"data-0000{n}-of-00009.jsonl" for n in range(2, 7)) + " and 3 more, of 9 parts"
    with pytest.raises(DataError, match=re.escape(told)):
        Corpus(str(out), None, None, 1.0)
    assert main(["data", "check", str(out)]) == 1
    shown = capsys.readouterr().out
    assert f"PROBLEM  {told}" in shown and "1 recording" in shown and "1 problem" in shown
    # Whoever names a part itself wants no other.
    part = out / "data-00001-of-00009.jsonl"
    assert len(Corpus(str(part), None, None, 1.0).recordings) == 1
    assert main(["data", "check", str(part)]) == 0
    for number in range(2, 10):
        assert main([*argv, "--out", str(out), "--shard", f"{number}/9"]) == 0
    last = out / "data-00009-of-00009.jsonl"
    assert f"{last}: 0 recordings" in capsys.readouterr().out and last.read_bytes() == b""
    assert main(["data", "check", str(out)]) == 0
    assert main([*argv, "--out", str(tmp_path / "whole")]) == 0
    assert everything(Corpus(str(out), None, None, 1.0)) == everything(Corpus(str(tmp_path / "whole"), None, None, 1.0))
    last.unlink()
    with pytest.raises(DataError, match=re.escape(f"{out} lacks data-00009-of-00009.jsonl, of 9 parts of `data`")):
        Corpus(f"{out}:2", None, None, 1.0)


@pytest.mark.parametrize(("there", "missing"), [((0, 1, 2), ()), ((0, 2), (1,)), ((1, 2, 3), ()), ((1, 2), (3,))])
def test_parts_may_count_from_0(tmp_path, there, missing):
    write_encoded(tmp_path / "a.safetensors", torch.full((17, 50), 5))
    for number in there:
        (tmp_path / f"calls-{number}-of-3.jsonl").write_text('{"path": "a.safetensors", "duration": 4}\n')
    if not missing:
        assert len(Corpus(str(tmp_path), None, None, 1.0).recordings) == 3
        return
    with pytest.raises(DataError, match=f"lacks calls-{missing[0]}-of-3.jsonl, of 3 parts of `calls`"):
        Corpus(str(tmp_path), None, None, 1.0)
