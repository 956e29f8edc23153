"""Digests of files are remembered across processes, and never of a content that is no longer there."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import time
from pathlib import Path

import blake3
import pytest

from ttt_moshi.data import DataError, digests
from ttt_moshi.data.digests import FILE_NAME, Digests
from ttt_moshi.data.sources import open_sources

LONG_AGO = 1_700_000_000


def write(path: Path, content: bytes, when: float = LONG_AGO) -> Path:
    path.write_bytes(content)
    os.utime(path, (when, when))
    return path


@pytest.fixture
def settled(monkeypatch):
    """What tests write counts as settled at once."""
    monkeypatch.setattr("ttt_moshi.data.digests._SETTLED_NS", 0)


@pytest.fixture
def opened(monkeypatch) -> list[str]:
    """Names of the files of data that were opened for reading."""
    names: list[str] = []
    original = Path.open

    def watch(self: Path, mode: str = "r", *args, **kwargs):
        if self.name != FILE_NAME and "r" in mode:
            names.append(self.name)
        return original(self, mode, *args, **kwargs)

    monkeypatch.setattr(Path, "open", watch)
    return names


def test_a_second_start_reads_nothing(tmp_path, settled, opened):
    file = write(tmp_path / "a.wav", b"one")
    assert Digests(tmp_path / "cache").of(file) == blake3.blake3(b"one").hexdigest()
    assert opened == ["a.wav"]
    assert Digests(tmp_path / "cache").of(file) == blake3.blake3(b"one").hexdigest()
    assert opened == ["a.wav"]


@pytest.mark.parametrize("how", ["in place", "renamed over", "other size"])
def test_another_content_is_noticed(tmp_path, settled, how):
    """Also with the size and the time stamp of the old one."""
    file = write(tmp_path / "a.wav", b"one")
    digests = Digests(tmp_path / "cache")
    digests.of(file)
    time.sleep(0.02)  # the clock that the file system stamps with ticks every few milliseconds
    new = b"two" if how != "other size" else b"three"
    if how == "renamed over":
        write(tmp_path / "b.wav", new).replace(file)
    else:
        write(file, new)
    for reader in (digests, Digests(tmp_path / "cache")):
        assert reader.of(file) == blake3.blake3(new).hexdigest()


def test_a_file_that_was_just_written_is_not_remembered(tmp_path):
    file = write(tmp_path / "a.wav", b"one", time.time())
    Digests(tmp_path / "cache").of(file)
    assert not (tmp_path / "cache").exists()


def test_what_another_process_adds_is_used(tmp_path, settled, opened):
    files = [write(tmp_path / f"{name}.wav", name.encode()) for name in "ab"]
    mine, other = Digests(tmp_path / "cache"), Digests(tmp_path / "cache")
    mine.of(files[0])
    other.of(files[1])
    assert mine.of(files[1]) == blake3.blake3(b"b").hexdigest()
    assert opened == ["a.wav", "b.wav"]


@pytest.mark.parametrize("damage", ["cut", "flipped", "noise", "a folder", "not mine"])
def test_damage_costs_only_reading_again(tmp_path, settled, damage):
    files = [write(tmp_path / f"{name}.wav", name.encode()) for name in "ab"]
    cache = tmp_path / "cache"
    for file in files:
        Digests(cache).of(file)
    memo = cache / FILE_NAME
    content = memo.read_bytes()
    digest = blake3.blake3(b"a").hexdigest().encode()
    if damage == "cut":
        memo.write_bytes(content[:-20])
    elif damage == "flipped":
        memo.write_bytes(content.replace(digest, bytes([digest[0] ^ 1]) + digest[1:]))
    elif damage == "noise":
        memo.write_bytes(bytes(range(256)) + b'\n[1, 2]\n"x"\n{}\n[["a"], "b"]\n' + content)
    elif damage == "a folder":
        memo.unlink()
        memo.mkdir()
    else:
        memo.write_text("null\n")
    for _ in range(2):
        digests = Digests(cache)
        assert [digests.of(file) for file in files] == [blake3.blake3(name).hexdigest() for name in (b"a", b"b")]


def test_a_folder_that_cannot_be_written_costs_a_warning(tmp_path, settled, caplog):
    (tmp_path / "file").touch()
    digests = Digests(tmp_path / "file" / "cache")
    with caplog.at_level(logging.WARNING):
        for name in "abc":
            digests.of(write(tmp_path / name, name.encode()))
    assert len(caplog.records) == 1 and "code_cache_dir" in caplog.text


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(DataError, match=r"cannot read .*none\.wav: No such file"):
        Digests(tmp_path).of(tmp_path / "none.wav")


APPEND = """
import sys
from pathlib import Path
import ttt_moshi.data.digests as module
module._SETTLED_NS = 0
digests = module.Digests(Path(sys.argv[1]) / "cache")
for file in sorted(Path(sys.argv[1]).glob("*.wav"), reverse=sys.argv[2] == "1"):
    digests.of(file)
"""


def test_processes_share_a_folder(tmp_path, settled, opened):
    names = [f"{i:03}" for i in range(200)]
    for name in names:
        write(tmp_path / f"{name}.wav", name.encode())
    writers = [subprocess.Popen([sys.executable, "-c", APPEND, tmp_path, str(i % 2)]) for i in range(3)]
    assert [writer.wait() for writer in writers] == [0, 0, 0]
    opened.clear()
    digests = Digests(tmp_path / "cache")
    for name in names:
        assert digests.of(tmp_path / f"{name}.wav") == blake3.blake3(name.encode()).hexdigest()
    assert opened == [], "every digest had been remembered"


def test_names_that_are_not_text(tmp_path, settled, opened):
    file = write(tmp_path / os.fsdecode(b"\xff\n\xe2\x80\xa8.wav"), b"one")
    for _ in range(2):
        Digests(tmp_path / "cache").of(file)
    assert len(opened) == 1


@pytest.mark.parametrize("count", [10, 40])
def test_a_first_start_reads_every_line_a_few_times(tmp_path, write_recording, settled, monkeypatch, count):
    """Not once for every recording, which would make a thousand of them a million lines."""
    lines = []
    for i in range(count):
        path = write_recording(tmp_path / f"{i}.wav", 0.1, seed=i, words=[("a", 0.0, 0.05, "SPEAKER_MAIN")])
        lines.append(json.dumps({"path": path.name, "duration": 0.1}))
    (tmp_path / "data.jsonl").write_text("\n".join(lines))
    read = 0
    original = digests._unseal

    def counting(line: bytes):
        nonlocal read
        read += 1
        return original(line)

    monkeypatch.setattr(digests, "_unseal", counting)
    for _ in range(2):
        read = 0
        assert len(open_sources(str(tmp_path / "data.jsonl"))[0].recordings) == count
        assert count <= read <= 7 * count  # of each two digests and what the audio is, an empty line before each
