"""Where a command's output goes: any encoding, any name of a file, a disk that is full, a reader that has gone."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.application.harness import Place, environment

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


def test_a_working_folder_that_is_gone_is_named(tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    train = (
        "import os, sys; os.rmdir(os.getcwd()); sys.argv[1:] = ['train', '--run_dir', 'x', '--data.train_data', 'y']; "
    )
    code = train + "from ttt_moshi.cli.main import main; sys.exit(main())"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=gone, env=environment(), capture_output=True, text=True, check=False
    )
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "the working folder is gone" in done.stderr


def test_a_training_goes_on_when_nobody_reads_what_it_says(new_place: Callable[[str], Place], finished: Path) -> None:
    place = new_place("unread")
    command = [sys.executable, "-m", "ttt_moshi", *map(str, place.train("--do_eval", "true"))]
    training = subprocess.Popen(command, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    training.stdout.readline()
    training.stdout.close()
    assert training.wait(timeout=120) == 0
    assert place.state_id(6) == Place(finished.parent, place.material, place.warm).state_id(6)


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
