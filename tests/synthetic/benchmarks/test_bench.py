"""The benchmarks as a whole: formats, determinism, and the folder."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import soundfile

from ttt_moshi.cli import data as command
from ttt_moshi.data import DataError
from ttt_moshi.errors import UserError
from ttt_moshi.synthetic import Material
from ttt_moshi.synthetic.benchmarks import make_bench
from ttt_moshi.synthetic.benchmarks.bench import RECORD
from ttt_moshi.synthetic.dialogues import dialogue_words, make_dialogues, read_words


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_every_recording_is_16_khz_mono_and_sounds(bench: Path) -> None:
    recordings = [path for path in bench.rglob("*") if path.suffix in (".wav", ".flac")]
    assert len(recordings) > 80
    for path in recordings:
        samples, rate = soundfile.read(path)
        assert rate == 16_000 and samples.ndim == 1
        assert 0.3 < len(samples) / rate < 60
        assert 0.05 < abs(samples).max() < 1.0


def test_equal_arguments_give_equal_files(bench: Path, tiny_material: Material, tmp_path: Path) -> None:
    make_bench(tmp_path / "same", tiny_material.train_data, seed=0, size="tiny")
    assert contents(tmp_path / "same") == contents(bench)


def test_counts_are_those_on_disk(bench: Path) -> None:
    items = json.loads((bench / RECORD).read_text())["items"]
    pairs = [name for name in items if name.startswith(("sLM21", "sSC", "tSC", "needle"))]
    for name in pairs:
        assert len(list((bench / name).glob("*.wav"))) == 2 * items[name] > 0
    assert len(list((bench / "salmon").rglob("*.wav"))) == 2 * items["salmon"]
    for name in ("librilight/small", "librispeech-long/test-clean"):
        assert len(list((bench / name).rglob("*.flac"))) == items[name] > 0


def test_a_finished_folder_is_left_alone_and_another_seed_makes_it_anew(
    tiny_material: Material, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["make-bench", str(tmp_path), "--size", "tiny", "--train_data", str(tiny_material.train_data)]
    assert command.main(arguments) == 0
    printed = capsys.readouterr().out
    assert str(tmp_path / "sLM21-dataset/lexical/test") in printed
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    assert command.main(arguments) == 0
    assert capsys.readouterr().out == printed
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before
    first = {path.name for path in (tmp_path / "sSC").iterdir()}
    assert command.main([*arguments, "--seed", "1"]) == 0
    assert not first & {path.name for path in (tmp_path / "sSC").iterdir()}


def test_an_interrupted_call_is_made_again(bench: Path, tiny_material: Material, tmp_path: Path) -> None:
    def interrupt(what: str, done: int, total: int) -> None:
        if what == "making sSC":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make_bench(tmp_path, tiny_material.train_data, size="tiny", progress=interrupt)
    make_bench(tmp_path, tiny_material.train_data, size="tiny")
    assert contents(tmp_path) == contents(bench)


def test_a_folder_of_somebody_else_is_left_alone(tiny_material: Material, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("ten years of work")
    with pytest.raises(DataError, match="not empty"):
        make_bench(tmp_path, tiny_material.train_data, size="tiny")
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_unknown_sizes_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="choose one of tiny, mini"):
        make_bench(tmp_path, size="huge")
    with pytest.raises(UserError, match="huge"):
        command.main(["make-bench", str(tmp_path), "--size", "huge"])


def test_words_of_dialogues_are_known_without_speaking_them(tmp_path: Path) -> None:
    index = make_dialogues(tmp_path, "s", 2, questions=1, stories=0)
    assert sorted(dialogue_words("s", 2, questions=1, stories=0)) == sorted(read_words(index))
