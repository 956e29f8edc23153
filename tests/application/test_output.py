"""Where a command's output goes: any encoding, any name of a file, a disk that is full, a reader that has gone."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.application.harness import environment

COMMANDS = {
    "ckpt ls": ["ckpt", "ls", "{run}"],
    "ckpt ls --json": ["ckpt", "ls", "{run}", "--json"],
    "ckpt show": ["ckpt", "show", "{run}"],
    "ckpt verify": ["ckpt", "verify", "{run}"],
    "status": ["status", "{run}"],
    "help": ["ckpt", "prune", "--help"],
    "version": ["--version"],
}
NAMES = (b"run [bold]x[/bold]", b"caf\xe9", "läuft".encode())


@pytest.fixture(scope="module")
def runs(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> list[bytes]:
    """A finished run under names that are hard to print."""
    folder = os.fsencode(tmp_path_factory.mktemp("names"))
    made = [os.path.join(folder, name) for name in NAMES]
    for path in made:
        shutil.copytree(os.fsencode(finished), path)
    return made


def do(words: list[str], run: bytes, **options) -> subprocess.CompletedProcess:
    command = [os.fsencode(sys.executable), b"-m", b"ttt_moshi"]
    command += [run if word == "{run}" else word.encode() for word in words]
    env = {**environment(), "PYTHONUNBUFFERED": "", **options.pop("env", {})}
    return subprocess.run(command, env=env, stderr=subprocess.PIPE, check=False, **options)


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8:strict"])
def test_every_name_can_be_printed_in_every_encoding(runs, encoding):
    for name, run in zip(NAMES, runs, strict=True):
        done = do(COMMANDS["ckpt verify"], run, env={"PYTHONIOENCODING": encoding}, stdout=subprocess.PIPE)
        assert done.returncode == 0 and not done.stderr, done
        shown = name if encoding == "utf-8:strict" or name.isascii() or name == b"caf\xe9" else None
        assert done.stdout.count(b"verified") == 3 and (shown is None or done.stdout.count(shown) == 3), done
    for command in ("ckpt ls", "ckpt show", "status"):
        done = do(COMMANDS[command], runs[0], env={"PYTHONIOENCODING": encoding}, stdout=subprocess.PIPE)
        assert done.returncode == 0 and not done.stderr, done


@pytest.mark.parametrize("command", COMMANDS)
def test_a_full_disk_and_a_reader_that_has_gone_are_no_traceback(runs, command):
    with open("/dev/full", "wb") as full:
        done = do(COMMANDS[command], runs[0], stdout=full)
    assert (done.returncode, done.stderr) == (2, b"error: standard output: No space left on device\n")
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "wb") as nobody:
        done = do(COMMANDS[command], runs[0], stdout=nobody)
    assert (done.returncode, done.stderr) == (141, b"")
