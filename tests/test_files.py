"""Small files are replaced whole, and what goes wrong names the file."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from ttt_moshi.files import read_text, replacing, write_atomically

OVER_THE_LIMIT = """
import resource, signal, sys
from pathlib import Path
from ttt_moshi.files import write_atomically
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))
try:
    write_atomically(Path(sys.argv[1]), bytes(1000))
except OSError as error:
    print(error.errno, error.filename)
"""


def test_a_write_that_fails_names_the_file_and_leaves_the_old_content(tmp_path: Path):
    path = tmp_path / "record.json"
    write_atomically(path, b"old")
    told = subprocess.run([sys.executable, "-c", OVER_THE_LIMIT, path], capture_output=True, text=True, check=True)
    assert told.stdout.split() == [str(errno.EFBIG), str(path)]
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_body_that_fails_leaves_the_old_content(tmp_path: Path):
    path = tmp_path / "record.json"
    write_atomically(path, b"old")
    with pytest.raises(ValueError, match="half"), replacing(path) as temporary:
        temporary.write_bytes(b"new")
        raise ValueError("half")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_missing_folder_is_named(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match=r"absent/record\.json"):
        write_atomically(tmp_path / "absent" / "record.json", b"")


def test_many_writers_of_one_file_leave_one_of_their_contents(tmp_path: Path):
    path = tmp_path / "record.json"
    contents = [bytes([letter]) * 100_000 for letter in b"abcdefgh"]
    writers = [threading.Thread(target=write_atomically, args=(path, content)) for content in contents]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert path.read_bytes() in contents
    assert list(tmp_path.iterdir()) == [path]


def test_a_failed_read_names_its_file_and_trouble_that_passes_is_waited_for(tmp_path, monkeypatch):
    path, calls = tmp_path / "small.json", []
    path.write_bytes(b"one\r\ntwo\r")
    real = Path.read_bytes

    def trouble(number, times):
        def read(self):
            calls.append(self)
            if len(calls) <= times:
                raise OSError(number, os.strerror(number))  # as `read` has it: without a path
            return real(self)

        calls.clear()
        monkeypatch.setattr(Path, "read_bytes", read)

    trouble(errno.ETIMEDOUT, 2)
    assert read_text(path) == "one\ntwo\n" and len(calls) == 3
    trouble(errno.EIO, 99)
    with pytest.raises(OSError, match=r"small\.json") as error:
        read_text(path)
    assert error.value.errno == errno.EIO and len(calls) == 3
    trouble(errno.EACCES, 99)
    with pytest.raises(PermissionError, match=r"small\.json"):
        read_text(path)
    assert len(calls) == 1
