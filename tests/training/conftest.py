"""Training runs on the tiny model, in processes of their own."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.processes import ENV, ROOT, TORCHRUN, Process, Warm
from ttt_moshi.checkpoint import CheckpointStore, read_manifest

if TYPE_CHECKING:
    from ttt_moshi.synthetic import Material


@dataclass(frozen=True)
class Launch:
    """Command lines of one run."""

    run_dir: Path
    material: Material
    warm: Warm
    options: tuple[str, ...] = ()

    def command(self, *more: str, ranks: int = 1) -> list[str]:
        """What follows `python` in the command line of a launch on `ranks` processes."""
        return [
            *([*TORCHRUN, str(ranks)] if ranks > 1 else []), str(ROOT / "train.py"),
            "--run_dir", str(self.run_dir),
            "--moshi_paths.hf_repo_id", str(self.material.base_model),
            "--data.train_data", str(self.material.train_data),
            "--data.shuffle", "true",
            "--duration_sec", "2.4",
            "--ttt.enable", "true", "--ttt.layers", "all", "--ttt.mini_batch_size", "8",
            "--optim.lr", "1e-3",
            "--param_dtype", "float32",
            "--gradient_checkpointing", "false",
            "--batch_size", "2",
            *self.options, *more,
        ]  # fmt: skip

    def start(self, *more: str, ranks: int = 1, **env: str) -> Process:
        """Starts a launch."""
        return self.warm.start(self.command(*more, ranks=ranks), {**ENV, **env})

    def run(self, *more: str, ranks: int = 1, status: int = 0, **env: str) -> Process:
        """Runs to the end and checks the exit status."""
        done = self.start(*more, ranks=ranks, **env)
        assert done.wait() == status, done.stderr[-3000:]
        return done

    def run_until(
        self, reached: Callable[[], bool], number: signal.Signals, *more: str, ranks: int = 1
    ) -> tuple[int, str]:
        """Starts, waits for a condition, sends a signal to the whole group; returns exit status and stderr."""
        process = self.start(*more, ranks=ranks)
        while process.poll() is None and not reached():
            time.sleep(0.005)
        assert process.poll() is None, f"training ended before the signal was sent\n{process.stderr[-3000:]}"
        os.killpg(process.pid, number)
        return process.wait(), process.stderr

    @property
    def records(self) -> list[dict[str, Any]]:
        """Logged steps; a last line cut short by a kill is left out."""
        path = self.run_dir / "metrics.train.jsonl"
        if not path.exists():
            return []
        return [json.loads(line) for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]

    @property
    def timeless(self) -> list[dict[str, Any]]:
        """Logged steps without their timing."""
        return [{k: v for k, v in record.items() if k != "timing"} for record in self.records]

    @property
    def store(self) -> CheckpointStore:
        """The run's checkpoints."""
        return CheckpointStore(self.run_dir / "checkpoints")

    def state_id(self, step: int) -> str:
        """State id of one checkpoint."""
        return read_manifest(self.store.path(step))["state_id"]


@pytest.fixture()
def launch(tmp_path: Path, tiny_material: Material, warm: Warm) -> Callable[..., Launch]:
    """Makes runs below the test's folder: `launch("name", "--key", "value")`."""
    return lambda name, *options: Launch(tmp_path / name, tiny_material, warm, options)
