"""The folder of a run: who may start in it, and what it remembers of every launch."""

from __future__ import annotations

import os
import platform
import shlex
import shutil
import socket
import subprocess
import sys
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

import yaml

from ttt_moshi.config import TrainArgs, to_dict
from ttt_moshi.errors import UserError


class RunDirError(UserError):
    """A run cannot start or continue in this folder."""


@dataclass(frozen=True)
class RunDir:
    """Paths inside of one run."""

    path: Path

    @property
    def checkpoints(self) -> Path:
        """Folder of the checkpoint store."""
        return self.path / "checkpoints"

    @property
    def args_file(self) -> Path:
        """Configuration of the first launch."""
        return self.path / "args.yaml"

    @property
    def train_metrics(self) -> Path:
        """One JSON object per training step."""
        return self.path / "metrics.train.jsonl"

    @property
    def eval_metrics(self) -> Path:
        """One JSON object per evaluation."""
        return self.path / "metrics.eval.jsonl"

    @property
    def save_request(self) -> Path:
        """A file that anybody may make to have a checkpoint saved after the current step."""
        return self.path / "SAVE"

    @property
    def benchmark_codes(self) -> Path:
        """Codes of the benchmarks that run during training."""
        return self.path / "benchmark_codes"

    @property
    def tensorboard(self) -> Path:
        """Event files."""
        return self.path / "tensorboard"


def check_free(run: RunDir, overwrite: bool) -> None:
    """Refuses a folder in which a new run must not start. Touches nothing.

    Raises:
        RunDirError: the folder holds an earlier run and `overwrite` is not set, or holds files that no run made.
    """
    if not run.path.exists() or not any(run.path.iterdir()):
        return
    if not run.args_file.exists():
        raise RunDirError(f"{run.path} holds files that no run made: name an empty or new folder as `run_dir`")
    if not overwrite:
        raise RunDirError(
            f"{run.path} already holds a run. Continue it with --checkpoint.resume true, choose another `run_dir`, "
            "or replace it with --overwrite_run_dir true"
        )


def claim(run: RunDir, args: TrainArgs, overwrite: bool) -> None:
    """Makes the folder of a new run, after moving an earlier run out of the way and deleting it."""
    check_free(run, overwrite)
    if run.path.exists() and any(run.path.iterdir()):
        retired = run.path.with_name(f".{run.path.name}.replaced-{os.getpid()}")
        run.path.rename(retired)
        shutil.rmtree(retired)
    run.path.mkdir(parents=True, exist_ok=True)
    run.args_file.write_text(yaml.safe_dump(to_dict(args), sort_keys=False), encoding="utf-8")


def record_launch(run: RunDir, args: TrainArgs, world_size: int, start_step: int) -> None:
    """Adds `launches/0001.yaml`, 0002, ...: one file for every start and every resume."""
    folder = run.path / "launches"
    folder.mkdir(exist_ok=True)
    number = 1 + max((int(p.stem) for p in folder.glob("[0-9]*.yaml")), default=0)
    launch = {
        "time": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "command": shlex.join(redact(sys.argv)),
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "world_size": world_size,
        "start_step": start_step,
        "python": platform.python_version(),
        "git": git_state(),
        "config": to_dict(args),
    }
    (folder / f"{number:04d}.yaml").write_text(yaml.safe_dump(launch, sort_keys=False), encoding="utf-8")


def redact(argv: list[str]) -> list[str]:
    """The command line without the value of `--wandb.key`."""
    words, hide = [], False
    for word in argv:
        words.append("***" if hide else "--wandb.key=***" if word.startswith("--wandb.key=") else word)
        hide = word == "--wandb.key"
    return words


def git_state() -> str | None:
    """Commit of the code that runs, marked `-dirty` when it was changed; null outside of a repository."""
    try:
        done = subprocess.run(
            ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=40"],
            capture_output=True,
            text=True,
            check=False,
            timeout=10,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None
