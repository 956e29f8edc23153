"""Where metrics go: JSON-lines files that can be cut back, TensorBoard, and Weights & Biases when asked for."""

from __future__ import annotations

import json
import logging
import os
import secrets
import threading
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ttt_moshi.config import TrainArgs, WandbArgs, to_dict
from ttt_moshi.errors import UserError
from ttt_moshi.extras import installed, need, remedy
from ttt_moshi.files import naming, read_bytes, read_text, write_atomically
from ttt_moshi.frames import SAMPLE_RATE
from ttt_moshi.training.run_dir import RunDir

logger = logging.getLogger(__name__)


class Metrics:
    """Every record of a run, in all places where it is kept. One writer a place, whatever the record is about.

    Args:
        step: the step that the run begins at; records of later steps, of a launch that was killed, are dropped.
    """

    def __init__(self, args: TrainArgs, run: RunDir, step: int) -> None:
        self.removed = {path.name: cut_back(path, step) for path in (run.train_metrics, run.eval_metrics)}
        with ExitStack() as stack:
            self._lines = {"train": JsonLines(run.train_metrics), "eval": JsonLines(run.eval_metrics)}
            for lines in self._lines.values():
                stack.callback(lines.close)
            self._plots: list[TensorBoard | Wandb] = []
            if installed("tensorboard"):
                self._plots.append(TensorBoard(run.tensorboard, step))
            else:
                logger.warning("no curves for TensorBoard, which is not installed: %s", remedy("tensorboard"))
            if args.wandb.project:
                self._plots.append(Wandb(args.wandb, run.path, to_dict(args)))
            for plot in self._plots:
                stack.callback(plot.close)
            self._open = stack.pop_all()

    def write(self, kind: str, record: Mapping[str, Any]) -> None:
        """Takes a record with a `step` and nested numbers. `train` and `eval` have lines, anything else has curves."""
        if kind in self._lines:
            self._lines[kind].write(record)
        for plot in self._plots:
            plot.write(kind, record)

    def hear(self, name: str, step: int, samples: np.ndarray) -> None:
        """Takes audio, float32 [samples] at Mimi's rate, for those places that play it."""
        for plot in self._plots:
            if isinstance(plot, TensorBoard):
                plot.hear(name, step, samples)

    def sync(self) -> None:
        """Makes durable what was written, before a checkpoint claims that it happened."""
        for place in (*self._lines.values(), *self._plots):
            place.sync()

    def close(self) -> None:
        """Flushes and lets go of everything."""
        self._open.close()


class JsonLines:
    """One JSON object a line, handed to the operating system at every write.

    What it does not take is kept and tried again with the next line, so that trouble that passes leaves no gap.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = path.open("ab", buffering=0)
        self._left = b""

    def write(self, record: Mapping[str, Any]) -> None:
        """Appends one line. Raises OSError with the path."""
        self._left += (json.dumps(record) + "\n").encode()
        self._hand_over()

    def sync(self) -> None:
        """Waits until the lines are on the disk. Raises OSError with the path."""
        self._hand_over()
        with naming(self._path):
            os.fsync(self._file.fileno())

    def close(self) -> None:
        """Closes the file, after a last attempt; lines that are lost are said to be."""
        try:
            self._hand_over()
        except OSError as error:
            lost = self._left.count(b"\n")
            logger.error("%s: its last %d lines are lost (%s)", self._path, lost, error.strerror)
        self._file.close()

    def _hand_over(self) -> None:
        with naming(self._path):
            while self._left:
                self._left = self._left[self._file.write(self._left) :]


class TensorBoard:
    """Every number of a record as a scalar named by its dotted path.

    A reader drops what earlier files hold of the steps that a resumed run repeats, in all curves at once: hence one
    writer for all of them.
    """

    def __init__(self, folder: Path, step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._folder, self._hook = folder, threading.excepthook
        # Before the writer, whose thread writes at once; where that fails it stays, since the thread may end later.
        threading.excepthook = self._failed
        with naming(folder):
            self._writer = SummaryWriter(str(folder), purge_step=step + 1)

    def write(self, kind: str, record: Mapping[str, Any]) -> None:
        """Adds the record's numbers at its step. Raises OSError with the folder."""
        with naming(self._folder):
            for name, value in flat_numbers(record).items():
                self._writer.add_scalar(f"{kind}/{name.replace('.', '/')}", value, record["step"])

    def hear(self, name: str, step: int, samples: np.ndarray) -> None:
        """Adds audio, float32 [samples] at Mimi's rate. Raises OSError with the folder."""
        with naming(self._folder):
            self._writer.add_audio(name, torch.from_numpy(samples)[None], step, SAMPLE_RATE)

    def sync(self) -> None:
        """Hands everything to the operating system. Raises OSError with the folder."""
        with naming(self._folder):
            self._writer.flush()

    def close(self) -> None:
        """Flushes the event file. Curves that cannot be written do not hide why a run ended."""
        try:
            self._writer.close()
        except OSError as error:
            logger.warning("the last curves for TensorBoard are not written: %s", error)
        finally:
            threading.excepthook = self._hook

    def _failed(self, details: threading.ExceptHookArgs) -> None:
        """A line instead of the traceback of TensorBoard's own thread; every other thread's failure is told as ever."""
        if type(details.thread).__module__.startswith("tensorboard"):
            logger.warning("TensorBoard's curves are not written from here on: %s", details.exc_value)
        else:
            self._hook(details)


class Wandb:
    """Every number of a record, in one run of Weights & Biases that a resumed run continues.

    Args:
        config: shown there; without secrets.
    """

    def __init__(self, args: WandbArgs, run_dir: Path, config: dict[str, Any]) -> None:
        wandb = check_wandb(args)
        if args.key:
            os.environ["WANDB_API_KEY"] = args.key  # `wandb.login` would write it to a file
        known = run_dir / "wandb_id"
        if not known.exists():
            write_atomically(known, f"{secrets.token_hex(8)}\n".encode())
        try:
            self._run = wandb.init(
                project=args.project,
                id=read_text(known).strip(),
                name=args.run_name or run_dir.name,
                dir=str(run_dir),
                mode="offline" if args.offline else "online",
                config=config,
                # An offline run has nobody to ask what it logged before; its parts are joined when they are synced.
                resume=None if args.offline else "allow",
            )
        except (wandb.Error, OSError) as error:
            raise UserError(
                f"Weights & Biases cannot be used ({error}): set wandb.offline to true, or wandb.project to null"
            ) from error
        # The step as a number of its own: a resumed run repeats steps, which W&B's own counter would refuse.
        self._run.define_metric("step")
        self._run.define_metric("*", step_metric="step")

    def write(self, kind: str, record: Mapping[str, Any]) -> None:
        """Sends the record's numbers with its step."""
        self._run.log({"step": record["step"], **{f"{kind}/{k}": v for k, v in flat_numbers(record).items()}})

    def sync(self) -> None:
        """Nothing: what was sent cannot be called back."""

    def close(self) -> None:
        """Ends the run."""
        self._run.finish()


def check_wandb(args: WandbArgs) -> Any:
    """The package, if it is asked for. Raises UserError where it is not installed."""
    return need("wandb", "`wandb.project`") if args.project else None


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
    """Removes the records after `last_step`, and lines that are none (cut short by a crash, blank, edited); how many.

    The file is replaced in one rename, so an interruption leaves the old one or the new one.
    """
    if not path.exists():
        return 0
    lines = read_bytes(path).splitlines(keepends=True)
    kept = [
        line for line in lines if line.endswith(b"\n") and (step := _step_of(line)) is not None and step <= last_step
    ]
    if len(kept) < len(lines):
        write_atomically(path, b"".join(kept))
    return len(lines) - len(kept)


def has_step(path: Path, step: int) -> bool:
    """Whether a file of metrics has a record of a step."""
    return path.exists() and any(_step_of(line) == step for line in read_bytes(path).splitlines())


def _step_of(line: bytes) -> int | None:
    try:
        step = json.loads(line)["step"]
    except (ValueError, KeyError, TypeError):
        return None
    return step if isinstance(step, int) else None
