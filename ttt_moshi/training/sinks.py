"""Where metrics go: a JSON-lines file that can be cut back, TensorBoard, and Weights & Biases when asked for."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from torch.utils.tensorboard import SummaryWriter

from ttt_moshi.config import WandbArgs
from ttt_moshi.errors import UserError
from ttt_moshi.files import write_atomically


class Sink(Protocol):
    """Receives one record a step."""

    def write(self, record: Mapping[str, Any]) -> None:
        """Takes a record with a `step` and nested numbers."""

    def sync(self) -> None:
        """Makes durable what was written, before a checkpoint claims that it happened."""

    def close(self) -> None:
        """Flushes and lets go of everything."""


class JsonLines:
    """One JSON object a line, flushed to the operating system at every write."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("a", encoding="utf-8")

    def write(self, record: Mapping[str, Any]) -> None:
        """Appends one line."""
        self._file.write(json.dumps(record) + "\n")
        self._file.flush()

    def sync(self) -> None:
        """Waits until the lines are on the disk."""
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Closes the file."""
        self._file.close()


class TensorBoard:
    """Every number of a record as a scalar named by its dotted path."""

    def __init__(self, folder: Path, tag: str, purge_step: int) -> None:
        self._writer = SummaryWriter(str(folder), purge_step=purge_step)
        self._tag = tag

    def write(self, record: Mapping[str, Any]) -> None:
        """Adds the record's numbers at its step."""
        for name, value in flat_numbers(record).items():
            self._writer.add_scalar(f"{self._tag}/{name.replace('.', '/')}", value, record["step"])

    def sync(self) -> None:
        """Hands everything to the operating system."""
        self._writer.flush()

    def close(self) -> None:
        """Flushes the event file."""
        self._writer.close()


class Wandb:
    """Every number of a record, sent to Weights & Biases."""

    def __init__(self, args: WandbArgs, run_dir: Path, tag: str, config: dict[str, Any]) -> None:
        try:
            import wandb
        except ImportError as error:
            raise UserError(
                "`wandb.project` is set but wandb is not installed: pip install 'ttt-moshi[wandb]'"
            ) from error
        if args.key:
            wandb.login(key=args.key)
        self._tag = tag
        self._run = wandb.init(
            project=args.project,
            name=args.run_name or run_dir.name,
            dir=str(run_dir),
            mode="offline" if args.offline else "online",
            config=config,
            resume="allow",
        )

    def write(self, record: Mapping[str, Any]) -> None:
        """Sends the record's numbers at its step."""
        self._run.log({f"{self._tag}/{k}": v for k, v in flat_numbers(record).items()}, step=record["step"])

    def sync(self) -> None:
        """Nothing: what was sent cannot be called back."""

    def close(self) -> None:
        """Ends the run."""
        self._run.finish()


def flat_numbers(record: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    """The numbers of nested mappings by dotted path, without `step`."""
    numbers: dict[str, float] = {}
    for key, value in record.items():
        if isinstance(value, Mapping):
            numbers |= flat_numbers(value, f"{prefix}{key}.")
        elif isinstance(value, int | float) and prefix + key != "step":
            numbers[prefix + key] = value
    return numbers


def cut_back(path: Path, last_step: int) -> int:
    """Removes the records after `last_step`, and a last line that a crash cut short; returns how many were removed.

    The file is replaced in one rename, so an interruption leaves the old one or the new one.
    """
    if not path.exists():
        return 0
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    kept = [line for line in lines if line.endswith("\n") and json.loads(line)["step"] <= last_step]
    if len(kept) < len(lines):
        write_atomically(path, "".join(kept).encode())
    return len(lines) - len(kept)
