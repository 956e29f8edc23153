"""Codes on disk: found again, checked on every read, safe under concurrent writers and a failing disk."""

import errno
import logging
import os
import shutil
import subprocess
import sys
import textwrap
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from ttt_moshi.data import Codec, CodeCache, DataError
from ttt_moshi.data.audio import read_audio


@pytest.fixture
def recording(tmp_path, write_recording) -> Path:
    return write_recording(tmp_path / "a.wav", 3.0)


@pytest.fixture
def cache(tmp_path, codec) -> CodeCache:
    return CodeCache(tmp_path / "cache", codec)


def only_file(cache_folder: Path) -> Path:
    (file,) = cache_folder.glob("*.safetensors")
    return file


def test_codes_are_those_of_the_codec_and_are_found_again(tmp_path, recording, cache, codec):
    codes = cache.codes(recording)
    assert torch.equal(codes, torch.stack(codec.encode_short(list(read_audio(recording)))))
    steps = []
    assert torch.equal(CodeCache(tmp_path / "cache", codec).codes(recording, lambda *s: steps.append(s)), codes)
    assert not steps, "encoded again"


def test_the_key_is_the_content(tmp_path, recording, cache, write_recording, other_mimi, mimi_config):
    codes = cache.codes(recording)
    shutil.copy(recording, tmp_path / "copy.wav")
    assert torch.equal(cache.codes(tmp_path / "copy.wav"), codes)
    assert len(list((tmp_path / "cache").glob("*.safetensors"))) == 1
    write_recording(recording, 3.0, seed=9)
    assert not torch.equal(cache.codes(recording), codes)
    CodeCache(tmp_path / "cache", Codec(other_mimi, mimi_config)).codes(recording)
    assert len(list((tmp_path / "cache").glob("*.safetensors"))) == 3


def test_filling_gives_the_codes_of_one_recording_after_the_other(tmp_path, codec, write_recording):
    lengths = [(0.5, 1), (7.0, 2), (0.52, 2), (3.0, 1), (0.5, 1), (5.2, 1), (1.9, 2)]
    recordings = [
        write_recording(tmp_path / f"{i}.wav", seconds, channels=channels, seed=i)
        for i, (seconds, channels) in enumerate(lengths)
    ]
    single, filled = CodeCache(tmp_path / "single", codec), CodeCache(tmp_path / "filled", codec)
    expected = [single.codes(recording) for recording in recordings]
    filled.codes(recordings[3])
    seen = []
    filled.fill(recordings, lambda done, total: seen.append((done, total)))
    assert seen[-1] == (7, 7) and seen == sorted(seen)
    files = {file.name: file.read_bytes() for file in (tmp_path / "filled").glob("*.safetensors")}
    assert files == {file.name: file.read_bytes() for file in (tmp_path / "single").glob("*.safetensors")}
    before = [file.stat().st_mtime_ns for file in (tmp_path / "filled").glob("*.safetensors")]
    filled.fill(recordings)
    assert [file.stat().st_mtime_ns for file in (tmp_path / "filled").glob("*.safetensors")] == before
    for recording, codes in zip(recordings, expected, strict=True):
        assert torch.equal(filled.codes(recording), codes)


def flip(content: bytes, at: int) -> bytes:
    return content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :]


@pytest.mark.parametrize(
    "damage",
    [lambda c: b"", lambda c: c[:20], lambda c: c[:-1], lambda c: flip(c, len(c) - 1), lambda c: flip(c, len(c) // 2)],
    ids=["empty", "header only", "a byte short", "last bit flipped", "middle bit flipped"],
)
def test_a_damaged_file_is_noticed_and_rebuilt(tmp_path, recording, cache, caplog, damage):
    codes = cache.codes(recording)
    file = only_file(tmp_path / "cache")
    whole = file.read_bytes()
    file.write_bytes(damage(whole))
    with caplog.at_level(logging.WARNING):
        assert torch.equal(cache.codes(recording), codes)
    assert "rebuilding" in caplog.text and str(recording) in caplog.text
    assert file.read_bytes() == whole


def test_another_recording_under_this_name_is_noticed(tmp_path, recording, cache, write_recording, caplog):
    codes = cache.codes(recording)
    file = only_file(tmp_path / "cache")
    other = write_recording(tmp_path / "b.wav", 3.0, seed=4)
    cache.codes(other)
    (impostor,) = set((tmp_path / "cache").glob("*.safetensors")) - {file}
    shutil.copy(impostor, file)
    assert torch.equal(cache.codes(recording), codes)
    assert "digest" in caplog.text


def test_foreign_tensors_are_noticed(tmp_path, recording, cache, caplog):
    codes = cache.codes(recording)
    save_file({"weights": torch.zeros(3)}, only_file(tmp_path / "cache"))
    assert torch.equal(cache.codes(recording), codes)
    assert "weights" in caplog.text


def test_the_format_is_safetensors(tmp_path, recording, cache):
    codes = cache.codes(recording)
    with safe_open(only_file(tmp_path / "cache"), "pt") as file:
        assert torch.equal(file.get_tensor("codes"), codes) and codes.dtype == torch.int16


def test_many_threads_one_file(tmp_path, recording, codec):
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda _: CodeCache(tmp_path / "cache", codec).codes(recording), range(8)))
    assert all(torch.equal(result, results[0]) for result in results)
    only_file(tmp_path / "cache")


def test_a_killed_writer_leaves_nothing_that_is_read(tmp_path, recording, codec):
    """SIGKILL between write and rename: the next process encodes as if nothing had been there."""
    script = f"""
        import os, signal, sys, types
        from pathlib import Path
        import torch
        from ttt_moshi.data.cache import CodeCache
        class Fixed:
            fingerprint = "{codec.fingerprint}"
            def encode_short(self, sounds):
                return [torch.zeros(8, 38, dtype=torch.int16) for _ in sounds]
        Path.replace = lambda self, target: os.kill(os.getpid(), signal.SIGKILL)
        CodeCache(Path({str(tmp_path / "cache")!r}), Fixed()).codes(Path({str(recording)!r}))
    """
    result = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], check=False)
    assert result.returncode == -9
    cache = CodeCache(tmp_path / "cache", codec)
    assert not cache.has(recording)
    assert cache.codes(recording).any()
    assert cache.has(recording)


def test_a_full_disk_is_one_clear_line_and_leaves_nothing(tmp_path, recording, cache, monkeypatch):
    def full(source: Path, target: Path) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(DataError, match=r"cache.*No space left on device.*code_cache_dir"):
        cache.codes(recording)
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_folder_that_cannot_be_made(tmp_path, recording, codec):
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="code_cache_dir"):
        CodeCache(tmp_path / "file" / "cache", codec).codes(recording)
