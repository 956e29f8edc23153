"""The doors as a person opens them: whole new Python processes, and what the light ones never import."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.application.harness import DOORS, ROOT, Fault, Place, changes, environment, snapshot
from ttt_moshi.cli.main import COMMANDS

# Run by a new Python with the words of a command: which heavy packages it has imported at the end.
LOOK = """
import sys
from ttt_moshi.cli.main import main
try:
    status = main(sys.argv[1:])
except SystemExit as asked:
    status = asked.code or 0
heavy = {"torch", "moshi", "matplotlib", "tensorboard", "wandb", "espeakng_loader"} & sys.modules.keys()
print("status", status, "heavy", sorted(heavy), file=sys.stderr)
"""


def look(*words: object) -> str:
    """The last line of a command that was looked at."""
    done = subprocess.run(
        [sys.executable, "-c", LOOK, *map(str, words)], capture_output=True, text=True, check=False, env=environment()
    )
    return done.stderr.strip().splitlines()[-1]


@pytest.mark.parametrize(
    "command",
    [
        *COMMANDS,
        *(f"ckpt {name}" for name in ("ls", "show", "verify", "prune", "repair")),
        *(f"data {name}" for name in ("check", "prepare", "make-bench")),
        *(f"eval {name}" for name in ("ls", "compare", "report", "versa")),
    ],
)
def test_help_needs_no_torch(command: str) -> None:
    assert look(*command.split(), "--help") == "status 0 heavy []"


@pytest.mark.parametrize("words", ["ckpt ls", "ckpt show", "ckpt verify", "status"])
def test_looking_at_a_run_needs_no_torch(words: str, place: Place) -> None:
    assert look(*words.split(), place.run) == "status 0 heavy []"
    last = place.store.path(6)
    assert look(*words.split(), last) == "status 0 heavy []"


def test_the_scripts_are_the_commands(place: Place) -> None:
    before = snapshot(place.folder)
    for script in DOORS:
        ended = place.type(script, "--nonsense")
        assert ended.status == 2 and ended.lines[-1].startswith("error: ") and "--nonsense" in ended.err, ended
    ended = place.type("-m", "ttt_moshi", "ckpt", "ls", place.run)
    assert ended.status == 0 and "checkpoint_000006" in ended.out, ended
    assert changes(before, snapshot(place.folder)) == []


def test_a_fault_reaches_a_new_python_too(place: Place) -> None:
    ended = place.type(
        "checkpoint_summary.py",
        place.run,
        faults=(Fault("listdir", "checkpoints", errno="EIO"), Fault("scandir", "checkpoints", errno="EIO")),
    )
    assert ended.status == 2 and ended.lines[-1].startswith("error: ") and "checkpoints" in ended.err, ended
    assert (ROOT / "train.py").exists()
