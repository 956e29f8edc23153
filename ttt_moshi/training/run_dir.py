"""The folder of a run: who may start in it, and what it remembers of every launch."""

from __future__ import annotations

import os
import platform
import re
import shlex
import shutil
import socket
import subprocess
import sys
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import yaml

from ttt_moshi.checkpoint import CheckpointStore, NoCheckpoint
from ttt_moshi.config import TrainArgs, to_dict
from ttt_moshi.errors import UserError
from ttt_moshi.files import delete_partial, is_partial, write_atomically

# What may lie in a checkpoints folder without there ever having been a checkpoint in it.
_NO_CHECKPOINT = re.compile(
    r"LOCK|LATEST|journal\.jsonl|pinned\.json|measured\.json|\.saving_.*|\.trash_.*|\..*\.partial"
)
_LAUNCH = re.compile(r"(\d+)\.yaml")


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
    def replacing(self) -> Path:
        """A file that is there while an earlier run is deleted: what is left of that one counts no more."""
        return self.path / ".replacing"

    @property
    def launches(self) -> Path:
        """Folder with one record of every start and every resume."""
        return self.path / "launches"

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

    def said(self, step: int) -> Path:
        """Conversations that the model held after a step, with their audio."""
        return self.path / "said" / f"step_{step:06d}"

    @property
    def tensorboard(self) -> Path:
        """Event files."""
        return self.path / "tensorboard"

    @property
    def begun(self) -> bool:
        """Whether a run has claimed the folder."""
        return self.args_file.exists() or self.replacing.exists()


def open_run_dir(path: str) -> RunDir:
    """The folder itself where `path` is a link to it, so that nothing is ever done to the link."""
    return RunDir(Path(path).expanduser().resolve())


@dataclass(frozen=True)
class Start:
    """How a run is to begin in its folder.

    Args:
        resume: from a checkpoint in it.
        replace: in the place of an earlier run, which is deleted.
    """

    resume: bool = False
    replace: bool = False


def choose_start(run: RunDir, store: CheckpointStore, args: TrainArgs) -> Start:
    """How the configuration wants to begin in this folder. Touches nothing.

    Raises:
        RunDirError: a new run must not begin here, or the configuration speaks of resuming and asks for none.
        NoCheckpoint: there is nothing to continue from.
    """
    if run.path.exists() and not run.path.is_dir():
        raise RunDirError(f"`run_dir`: {run.path} is a file; name a folder")
    if run.checkpoints.exists() and not run.checkpoints.is_dir():
        raise RunDirError(f"{run.checkpoints} is a file, where the run's checkpoints belong; move it away")
    wanted = args.checkpoint.resume
    _refuse_what_only_resuming_has(args)
    if wanted is False:
        return _choose_new(run, args.overwrite_run_dir)
    there = [] if run.replacing.exists() else _checkpoint_like(run)
    if not there and args.checkpoint.resume_step != -1:
        raise NoCheckpoint(
            f"{run.checkpoints} holds no checkpoint, so there is no step {args.checkpoint.resume_step} "
            "(`checkpoint.resume_step`) to resume from: name the run that has it, or leave the key out"
        )
    if not there and wanted == "auto":
        return Start(replace=run.replacing.exists()) if run.begun else _choose_new(run, overwrite=False)
    if not there:
        raise NoCheckpoint(
            f"{run.checkpoints} holds no checkpoint to resume from. Start the run without --checkpoint.resume first, "
            "or give --checkpoint.resume auto, which starts where there is nothing to resume"
        )
    _choose_checkpoint(store, args.checkpoint.resume_step, there)
    return Start(resume=True)


def _refuse_what_only_resuming_has(args: TrainArgs) -> None:
    """Refuses keys about a checkpoint to resume from where none is asked for: a new run would ignore them."""
    checkpoint = args.checkpoint
    if checkpoint.resume is not False:
        return
    if checkpoint.resume_step != -1:
        raise RunDirError(
            f"`checkpoint.resume_step: {checkpoint.resume_step}` names a step to continue from: give "
            "--checkpoint.resume true as well, or leave it out"
        )
    if checkpoint.accept_changes:
        raise RunDirError(
            "`checkpoint.accept_changes` is about a run that is resumed: give --checkpoint.resume true (auto for job "
            "scripts) as well, or leave it out"
        )


def _choose_new(run: RunDir, overwrite: bool) -> Start:
    if run.replacing.exists():
        return Start(replace=True)
    if not run.path.exists() or not _content(run):
        return Start()
    if not run.begun:
        raise RunDirError(f"{run.path} holds files that no run made: name an empty or new folder as `run_dir`")
    if not overwrite:
        raise RunDirError(
            f"{run.path} already holds a run. Continue it with --checkpoint.resume true (auto for job scripts), choose "
            "another `run_dir`, or replace it with --overwrite_run_dir true"
        )
    return Start(replace=True)


def _choose_checkpoint(store: CheckpointStore, step: int, there: list[str]) -> None:
    steps = store.steps()
    if step != -1 and step not in steps:
        has = ", ".join(map(str, steps)) or "none"
        raise NoCheckpoint(f"{store.root} has no checkpoint of step {step}; it has {has}")
    # An older checkpoint that stepped aside for one that was never finished is put back when the store is opened.
    if step == -1 and store.newest_valid() is None and not any(name.startswith(".replaced_") for name in there):
        raise NoCheckpoint(
            f"{store.root} holds {', '.join(there)}, but no checkpoint that can be resumed from. Nothing was touched. "
            "`ttt-moshi ckpt ls` says what is wrong with each; put a copy in its place, or name another `run_dir`"
        )


def _checkpoint_like(run: RunDir) -> list[str]:
    """Names in the checkpoints folder that are, or once were, a checkpoint."""
    if not run.checkpoints.is_dir():
        return []
    return sorted(path.name for path in run.checkpoints.iterdir() if not _NO_CHECKPOINT.fullmatch(path.name))


def _content(run: RunDir) -> list[Path]:
    """What lies in the folder, without what a start that was refused or killed may have left."""
    left = [] if _checkpoint_like(run) else [run.checkpoints]
    return [path for path in run.path.iterdir() if path not in left and not is_partial(path)]


def size_of(run: RunDir) -> int:
    """Bytes of all files in the folder."""
    return sum(path.lstat().st_size for path in run.path.rglob("*") if not path.is_dir())


def mark_replaced(run: RunDir) -> None:
    """From here on the run in the folder counts as deleted, even if a crash leaves something of it."""
    write_atomically(run.replacing, b"")


def delete_around_checkpoints(run: RunDir) -> None:
    """Deletes what the folder of a replaced run holds beside its checkpoints."""
    for path in run.path.iterdir():
        if path in (run.checkpoints, run.replacing):
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


def claim(run: RunDir, args: TrainArgs) -> None:
    """Makes the folder this run's, by its configuration."""
    run.path.mkdir(parents=True, exist_ok=True)
    for folder in (run.path, run.launches):
        delete_partial(folder)
    write_atomically(run.args_file, _yaml(to_dict(args)))
    run.replacing.unlink(missing_ok=True)


def record_launch(run: RunDir, args: TrainArgs, world_size: int, start_step: int, start_cursor: int) -> None:
    """Adds `launches/0001.yaml`, 0002, ...: one file for every start and every resume."""
    run.launches.mkdir(exist_ok=True)
    number = 1 + max((number for number, _ in numbered_launches(run)), default=0)
    launch = {
        "time": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "command": shlex.join(redact(sys.argv)),
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "world_size": world_size,
        "start_step": start_step,
        "start_cursor": start_cursor,
        "python": platform.python_version(),
        "git": git_state(),
        "config": to_dict(args),
    }
    write_atomically(run.launches / f"{number:04d}.yaml", _yaml(launch))


def numbered_launches(run: RunDir) -> list[tuple[int, Path]]:
    """The records of launches in their order; other files in the folder are passed over."""
    found = [(match, path) for path in run.launches.glob("*.yaml") if (match := _LAUNCH.fullmatch(path.name))]
    return sorted((int(match[1]), path) for match, path in found)


def _yaml(values: dict[str, Any]) -> bytes:
    return yaml.safe_dump(values, sort_keys=False, allow_unicode=True).encode()


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
