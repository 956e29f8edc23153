"""The commands as processes, with faults from outside: calls to the operating system fail at the nth time.

A `sitecustomize` on the path of the process counts its calls on one folder, whoever makes them, and fails some.
"""

import errno
import json
import os
from pathlib import Path

import pytest

from tests.processes import ENV
from ttt_moshi.checkpoint import CheckpointStore

ROOT = Path(__file__).parents[2]
SITE = """
import os
from ttt_moshi.checkpoint import trouble
trouble.PAUSES = (0.0,) * len(trouble.PAUSES)  # as many tries, without the second of pauses
root, call, first, last, number = os.environ["FAULT"].split("|")
first, last, number, seen, fds = int(first), int(last), int(number), 0, set()
names = ("open", "close", "preadv", "stat", "listdir", "rename", "unlink", "pwrite")
real = {name: getattr(os, name) for name in names}

def faulty(name):
    def work(*args, **options):
        global seen
        mine = args[0] in fds if name in ("preadv", "pwrite") else str(args[0] if args else "").startswith(root)
        if mine and name == call:
            seen += 1
            if first <= seen <= last:
                raise OSError(number, os.strerror(number), *([] if name in ("preadv", "pwrite") else [str(args[0])]))
        result = real[name](*args, **options)
        if name == "open" and str(args[0]).startswith(root):
            fds.add(result)
        if name == "close":
            fds.discard(args[0])
        return result
    return work

for name in real:
    setattr(os, name, faulty(name))
"""


@pytest.fixture
def run(tmp_path, faults):
    """A run with three checkpoints."""
    with CheckpointStore(tmp_path / "run" / "checkpoints") as store:
        for step in (1, 2, 3):
            faults.save_one(store, step, 0, "adapters", faults.contents(step, 0))
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(SITE)
    return tmp_path / "run"


@pytest.fixture
def ckpt(run, warm):
    """`ttt-moshi ckpt WORDS` in a process whose calls `first` to `last` on the run's folder fail: status, output."""

    def call_it(*words, call="none", first=1, last=10**9, error="EIO"):
        fault = f"{run}|{call}|{first}|{last}|{getattr(errno, error)}"
        path = f"{run.parent / 'site'}{os.pathsep}{ROOT}"
        done = warm.run(["-m", "ttt_moshi", "ckpt", *words], 120, env={**ENV, "FAULT": fault, "PYTHONPATH": path})
        assert "Traceback" not in done.stderr, done.stderr
        return done.returncode, done.stdout + done.stderr

    return call_it


def names(run):
    return sorted(path.name for path in (run / "checkpoints").iterdir() if path.is_dir())


@pytest.mark.parametrize(
    "call, first, error",
    [
        ("preadv", 3, "ETIMEDOUT"),
        ("preadv", 40, "EIO"),
        ("open", 2, "ESTALE"),
        ("open", 9, "EMFILE"),
        ("stat", 4, "EACCES"),
    ],
)
def test_trouble_ends_a_command_with_the_path_and_moves_nothing(run, ckpt, call, first, error):
    for words in (("verify", run), ("repair", run)):
        status, text = ckpt(*words, call=call, first=first, error=error)
        assert status == 2 and os.strerror(getattr(errno, error)) in text, (words, text)
        assert str(run / "checkpoints") in text
        assert names(run) == ["checkpoint_000001", "checkpoint_000002", "checkpoint_000003"]
    assert ckpt("verify", run)[0] == 0


def test_trouble_that_passes_is_waited_for(run, ckpt):
    for call, error in (("preadv", "ETIMEDOUT"), ("open", "ESTALE"), ("listdir", "EIO")):
        assert ckpt("verify", run, call=call, first=2, last=3, error=error)[0] == 0


def test_a_listing_goes_on_beside_what_cannot_be_read(run, ckpt):
    (run / "checkpoints" / "checkpoint_000002" / "manifest.json").chmod(0)
    if os.access(run / "checkpoints" / "checkpoint_000002" / "manifest.json", os.R_OK):
        pytest.skip("this user may read everything")
    status, text = ckpt("ls", run, "--json")
    assert status == 2
    assert [record["status"] for record in json.loads(text)] == ["valid", "unreadable", "valid"]


def test_a_second_command_waits_for_no_writer_and_touches_nothing(run, ckpt):
    with CheckpointStore(run / "checkpoints"):
        for words in (("prune", run, "--last", "1"), ("repair", run)):
            status, text = ckpt(*words)
            assert status == 2 and f"is being written by process {os.getpid()}" in text
    assert len(names(run)) == 3


def test_a_disk_that_cannot_rename_loses_nothing(run, ckpt):
    status, text = ckpt("prune", run, "--last", "1", call="rename", first=1, error="EROFS")
    assert status == 2 and "Read-only file system" in text
    assert ckpt("verify", run)[0] == 0 and len(names(run)) == 3
