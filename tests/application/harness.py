"""Commands as processes: what a person types, sees and finds afterwards, with faults from outside."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from blake3 import blake3

from tests.processes import Process, Warm
from ttt_moshi.checkpoint import CheckpointStore, read_manifest

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
ERRNOS = ("ETIMEDOUT", "EIO", "ESTALE", "EACCES", "EMFILE", "ENOMEM")
# The scripts at the root and the commands that they are.
DOORS = {
    "train.py": "train",
    "eval_from_checkpoint.py": "eval",
    "checkpoint_summary.py": "status",
    "test_checkpoint_verification.py": "verify",
}
HANG = 120.0  # seconds after which a command counts as hanging; a busy machine is slow, and no case needs a tenth of it


@dataclass(frozen=True)
class Fault:
    """From the `nth` operation `call` on a path that contains `path`, `times` of them (None: all) fail, or signal.

    With `after`, counting begins once that operation on such a path has been met so often.
    """

    call: str
    path: str
    nth: int = 1
    errno: str | None = None
    signal: str | None = None
    times: int | None = None
    after: tuple[str, str, int] | None = None


@dataclass(frozen=True)
class Ended:
    """How a command ended; `status` is negative after a signal that killed it."""

    words: tuple[str, ...]
    status: int
    out: str
    err: str
    seconds: float

    @property
    def lines(self) -> list[str]:
        """Lines of the error stream."""
        return [line for line in self.err.splitlines() if line.strip()]

    def __repr__(self) -> str:
        return f"$ {' '.join(self.words)}\nstatus {self.status}\n{self.out[-1500:]}\n{self.err[-3000:]}"


@dataclass
class Running:
    """A command that runs."""

    words: tuple[str, ...]
    process: Process

    @property
    def pid(self) -> int:
        """Its process id."""
        return self.process.pid

    def poll(self) -> int | None:
        """Exit status, or None while it runs."""
        return self.process.poll()

    def wait(self) -> Ended:
        """Waits for the end.

        Raises:
            AssertionError: it took longer than `HANG` and was killed.
        """
        status = self.process.wait(HANG)
        seconds = time.monotonic() - self.process.began
        return Ended(self.words, status, self.process.stdout, self.process.stderr, seconds)


@dataclass
class Place:
    """A folder of one case: `run` (a copy of a finished run), `material`, and where output goes."""

    folder: Path
    material: Path
    warm: Warm
    started: int = 0

    @property
    def run(self) -> Path:
        """The run folder of the case."""
        return self.folder / "run"

    @property
    def store(self) -> CheckpointStore:
        """Its checkpoints."""
        return CheckpointStore(self.run / "checkpoints")

    def state_id(self, step: int) -> str:
        """State id of one checkpoint."""
        return read_manifest(self.store.path(step))["state_id"]

    def train(self, *more: str) -> list[str]:
        """Words of a training command on the case's run folder; later words override earlier ones."""
        return [
            "train", "--run_dir", str(self.run),
            "--moshi_paths.hf_repo_id", str(self.material / "base"),
            "--data.train_data", str(self.material / "train/data.jsonl"),
            "--data.eval_data", str(self.material / "eval/data.jsonl"),
            "--data.shuffle", "true", "--duration_sec", "1.2", "--batch_size", "2",
            "--ttt.enable", "true", "--ttt.layers", "1", "--ttt.mini_batch_size", "5",
            "--optim.lr", "1e-3", "--param_dtype", "float32", "--gradient_checkpointing", "false",
            "--max_steps", "6", "--ckpt_freq", "2", "--num_ckpt_keep", "null", *more,
        ]  # fmt: skip

    def start(self, *words: object, faults: tuple[Fault, ...] = (), trace: Path | None = None) -> Running:
        """Starts a `ttt-moshi` command in a process of its own."""
        self.started += 1
        folder = self.folder / ".io" / f"{self.started:03d}"
        typed = tuple(map(str, words))
        env = environment((self.folder, self.material), faults, trace)
        return Running(typed, self.warm.start(["-m", "ttt_moshi", *typed], env, self.folder, folder))

    def do(self, *words: object, faults: tuple[Fault, ...] = (), trace: Path | None = None) -> Ended:
        """Runs a `ttt-moshi` command to its end."""
        return self.start(*words, faults=faults, trace=trace).wait()

    def type(self, *words: object, faults: tuple[Fault, ...] = ()) -> Ended:
        """Runs a whole new Python, as a person does: `type("train.py", ...)`, `type("-m", "ttt_moshi", ...)`."""
        typed = tuple(str(ROOT / str(word)) if word in DOORS else str(word) for word in words)
        began = time.monotonic()
        done = subprocess.run(
            [sys.executable, *typed], capture_output=True, text=True, check=False, timeout=HANG, cwd=self.folder,
            env=environment((self.folder, self.material), faults), stdin=subprocess.DEVNULL,
        )  # fmt: skip
        return Ended(typed, done.returncode, done.stdout, done.stderr, time.monotonic() - began)


def environment(
    roots: tuple[Path, ...] = (), faults: tuple[Fault, ...] = (), trace: Path | None = None
) -> dict[str, str]:
    """Of a child process: this copy of the program, one thread, no terminal, no hub."""
    path = [str(ROOT)]
    more = {}
    if faults or trace:
        path.insert(0, str(HERE / "on_path"))
        more = {"APPLICATION_FAULTS": json.dumps([asdict(fault) for fault in faults])}
        more["APPLICATION_ROOTS"] = os.pathsep.join(map(str, roots))
    if trace:
        more["APPLICATION_TRACE"] = str(trace)
    return {
        **os.environ, "PYTHONPATH": os.pathsep.join(path), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1",
        "COLUMNS": "200", "PYTHONDONTWRITEBYTECODE": "1", **more,
    }  # fmt: skip


def snapshot(folder: Path) -> dict[str, tuple[Any, ...]]:
    """Everything below a folder: kind, and for files size, digest and time of the last change."""
    found: dict[str, tuple[Any, ...]] = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        # Codes and digests that are remembered between starts are nobody's work; they may come at any time.
        if name.startswith(".io") or ".mimi_codes" in name:
            continue
        if path.is_symlink():
            found[name] = ("link", os.readlink(path))
        elif path.is_dir():
            found[name] = ("folder",)
        else:
            found[name] = ("file", path.stat().st_size, blake3(path.read_bytes()).hexdigest(), path.stat().st_mtime_ns)
    return found


def changes(before: dict[str, tuple[Any, ...]], after: dict[str, tuple[Any, ...]]) -> list[str]:
    """What differs between two snapshots, by name."""
    return [
        f"{'gone' if name not in after else 'new' if name not in before else 'changed'}: {name}"
        for name in sorted(before.keys() | after.keys())
        if before.get(name) != after.get(name)
    ]


def copy(source: Path, target: Path) -> None:
    """A copy with the times of the original."""
    shutil.copytree(source, target, symlinks=True)
