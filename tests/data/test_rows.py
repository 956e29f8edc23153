"""Rows of Hugging Face data sets become the data set that their files would."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import pytest

from ttt_moshi.cli.main import main

pytestmark = pytest.mark.slow  # needs pyarrow

WORDS = [("hello", 0.1, 0.4, "SPEAKER_MAIN"), ("yes", 0.5, 0.6, "SPEAKER_OTHER")]
FEATURES = {"sound": {"_type": "Audio"}, "said": {"dtype": "string", "_type": "Value"}}


@pytest.fixture
def files(tmp_path, write_recording) -> Path:
    folder = tmp_path / "files"
    for number, (suffix, rate) in enumerate([(".wav", 24000), (".flac", 16000), (".mp3", 44100)]):
        write_recording(folder / f"{number:08}{suffix}", 1.0 + 0.2 * number, rate=rate, seed=number, words=WORDS)
    return folder


def columns(files: Path) -> dict[str, list[Any]]:
    """As the hub has them: the bytes of the files within."""
    sounds = [file for file in sorted(files.iterdir()) if file.suffix != ".json"]
    words = [json.loads(file.with_suffix(".json").read_text())["alignments"] for file in sounds]
    return {
        "sound": [{"bytes": file.read_bytes(), "path": file.name} for file in sounds],
        "said": ["hello you"] * 3,
        "words": [[{"word": w, "start": a, "end": b, "speaker": who} for w, (a, b), who in one] for one in words],
    }


def table(values: dict[str, list[Any]]) -> Any:
    import pyarrow

    described = json.dumps({"info": {"features": FEATURES}})
    return pyarrow.table(values).replace_schema_metadata({"huggingface": described})


def save(kind: str, values: dict[str, list[Any]], folder: Path) -> Path:
    """One split, `train`, in a layout of the library's, or by the library itself where it is installed."""
    import pyarrow
    from pyarrow.parquet import write_table

    folder.mkdir()
    if kind == "parquet":
        write_table(table(values).slice(0, 2), folder / "train-00000-of-00002.parquet", row_group_size=1)
        write_table(table(values).slice(2), folder / "train-00001-of-00002.parquet")
    elif kind == "saved":
        (folder / "train").mkdir()
        with pyarrow.ipc.new_stream(folder / "train" / "data-00000-of-00001.arrow", table(values).schema) as stream:
            stream.write_table(table(values), max_chunksize=2)
    else:
        datasets = pytest.importorskip("datasets")
        made = datasets.Dataset.from_dict(values).cast_column("sound", datasets.Audio(decode=False))
        if kind == "parquet by the library":
            made.to_parquet(folder / "train-00000-of-00001.parquet")
        else:
            datasets.DatasetDict({"train": made}).save_to_disk(folder)
    return folder


def recordings(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (folder / "recordings").rglob("*") if path.is_file()}


def prepare(source: Path | str, out: Path, *options: str) -> int:
    return main(["data", "prepare", str(source), "--out", str(out), *options])


@pytest.mark.parametrize("kind", ["parquet", "saved", "parquet by the library", "saved by the library"])
def test_rows_are_what_their_files_are(files, tmp_path, kind, capsys):
    pytest.importorskip("pyarrow")
    source = save(kind, columns(files), tmp_path / "set")
    assert prepare(files, tmp_path / "expected") == 0
    jobs = ["--jobs", "2"] if kind == "parquet" else []
    assert prepare(source, tmp_path / "out", "--transcript_column", "words", *jobs) == 0
    assert recordings(tmp_path / "out") == recordings(tmp_path / "expected")
    assert len(recordings(tmp_path / "out")) == 6
    assert "ok        train/00000001" in capsys.readouterr().out
    assert prepare(source, tmp_path / "text", "--transcript_column", "said", "--audio_column", "sound") == 0
    assert "2 words of the agent at approximate times" in capsys.readouterr().out
    assert prepare(source, tmp_path / "none", "--transcript_column", "-", "--hf_split", "train") == 0
    assert "no words" in capsys.readouterr().out


def test_a_data_set_at_a_url(files, tmp_path, capsys):
    pytest.importorskip("pyarrow")
    source = save("parquet", columns(files), tmp_path / "set")
    (source / "test-00000-of-00001.parquet").write_bytes((source / "train-00001-of-00002.parquet").read_bytes())
    url = f"file://{source}"
    assert prepare(url, tmp_path / "out", "--transcript_column", "words", "--hf_split", "test") == 0
    assert "1 recording," in capsys.readouterr().out


def test_what_is_missing_is_named(files, tmp_path, capsys):
    pytest.importorskip("pyarrow")
    values = columns(files)
    values["sound"][1] = {"bytes": None, "path": "nowhere.wav"}
    source = save("parquet", values, tmp_path / "set")

    def told(*options: str, source: Path = source) -> str:
        assert prepare(source, tmp_path / "out", *options) == 2
        found = capsys.readouterr().err
        assert found.count("\n") == 1
        return found

    words = ("--transcript_column", "words")
    assert "no column speech" in told("--transcript_column", "speech")
    assert "no column speech" in told(*words, "--audio_column", "speech")
    assert "--transcript_column" in told("--hf_split", "train")
    assert "--pair" in told(*words, "--pair", "*_{a,b}.wav")
    assert "no split test; it has train" in told(*words, "--hf_split", "test")
    assert "no Parquet files" in told(*words, source=files)
    (source / "test.parquet").write_bytes(b"PAR1")
    assert "splits test, train" in told(*words)
    assert "test.parquet cannot be read" in told(*words, "--hf_split", "test")
    # A row without audio costs no other.
    assert prepare(source, tmp_path / "out", *words, "--hf_split", "train") == 1
    assert "left out  train/00000001: the recording nowhere.wav is not in the data set" in capsys.readouterr().out


def test_nothing_outside_of_the_data_set_is_read(files, tmp_path, capsys):
    pytest.importorskip("pyarrow")
    private = tmp_path / "private.wav"
    private.write_bytes((files / "00000000.wav").read_bytes())
    values = columns(files)
    paths = ["../private.wav", str(private), "sounds/../../set/beside.wav"]
    values["sound"] = [{"bytes": None, "path": path} for path in paths]
    source = save("parquet", values, tmp_path / "set")
    (source / "beside.wav").write_bytes((files / "00000001.flac").read_bytes())
    for where in (str(source), f"file://{source}"):
        assert prepare(where, tmp_path / "out", "--transcript_column", "said", "--overwrite") == 1
        told = capsys.readouterr().out
        for number, path in enumerate(paths[:2]):
            assert f"left out  train/0000000{number}: the recording {path} lies outside of the data set" in told
        assert "ok        train/00000002" in told and "1 recording," in told


@pytest.mark.parametrize("kind", ["parquet", "saved"])
def test_a_damaged_group_costs_its_rows_alone(files, tmp_path, kind, capsys):
    pytest.importorskip("pyarrow")
    source = save(kind, columns(files), tmp_path / "set")
    file = next(source.rglob("*-00000-of-*"))
    content, group = bytearray(file.read_bytes()), "group 1 of 2"
    if kind == "parquet":
        from pyarrow.parquet import ParquetFile

        chunk = ParquetFile(file).metadata.row_group(0).column(0)
        begin = chunk.dictionary_page_offset or chunk.data_page_offset
        content[begin : begin + chunk.total_compressed_size] = b"\xff" * chunk.total_compressed_size
    else:
        # The lengths of the texts, 4 bytes each, the first of which begin at 0.
        offsets = struct.pack("<3i", 0, 9, 18)
        assert content.count(offsets) == 1
        content[content.index(offsets) + 4 : content.index(offsets) + 8] = b"\xff\xff\xff\x7f"
    file.write_bytes(content)
    assert prepare(source, tmp_path / "out", "--transcript_column", "said") == 1
    told = capsys.readouterr().out
    assert f"left out  train/00000000: {file}, {group}, cannot be read" in told
    assert "ok        train/00000002" in told
