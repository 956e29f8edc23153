"""Python commands in processes of their own that start in milliseconds (`warm.py`)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
ROOT = HERE.parent
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node")
ENV = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}


@dataclass
class Process:
    """A command that runs, or has ended: what `subprocess.Popen` gives, with output that is kept in files."""

    args: list[str]
    pid: int
    out: Path
    err: Path
    warm: Warm
    returncode: int | None = None
    began: float = field(default_factory=time.monotonic)

    @property
    def stdout(self) -> str:
        """What it has written so far."""
        return self.out.read_text(errors="replace")

    @property
    def stderr(self) -> str:
        """What it has written so far on the stream of errors."""
        return self.err.read_text(errors="replace")

    def poll(self) -> int | None:
        """Exit status, negative after a signal that killed it, or None while it runs."""
        if self.returncode is None:
            self.returncode = self.warm.ask({"poll": self.pid})
        return self.returncode

    def wait(self, timeout: float = 600.0) -> int:
        """Waits for the end.

        Raises:
            AssertionError: it took longer than `timeout` seconds and was killed.
        """
        while self.poll() is None:
            if time.monotonic() - self.began > timeout:
                os.killpg(self.pid, 9)
                raise AssertionError(f"hangs: {' '.join(self.args)}\n{self.stderr[-2000:]}")
            time.sleep(0.005)
        assert self.returncode is not None
        return self.returncode

    def send_signal(self, number: int) -> None:
        """To this process alone."""
        os.kill(self.pid, number)

    def kill(self) -> None:
        """Kills it and all that it has started."""
        if self.poll() is None:
            os.killpg(self.pid, 9)
            self.wait()


class Warm:
    """The process that forks commands."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, str(HERE / "warm.py")],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=ENV, cwd=ROOT,
        )  # fmt: skip
        self._folder = tempfile.TemporaryDirectory()
        self._started: list[Process] = []
        assert self._process.stdout is not None and self._process.stdin is not None
        assert self._process.stdout.readline() == "ready\n"

    def ask(self, request: dict[str, Any]) -> Any:
        """Sends one request and returns the answer."""
        assert self._process.stdout is not None and self._process.stdin is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())

    def start(
        self, words: Sequence[object], env: Mapping[str, str] = ENV, cwd: Path | None = None, folder: Path | None = None
    ) -> Process:
        """Starts `python words...` (`-m`, `-c` or a script; `-m torch.distributed.run --standalone --nproc_per_node N`
        as ranks) in a new session; `folder` takes its output."""
        folder = folder or Path(self._folder.name) / str(len(self._started))
        folder.mkdir(parents=True)
        typed = [str(word) for word in words]
        out, err = folder / "out", folder / "err"
        request = {
            "words": typed, "cwd": str(cwd or ROOT), "stdout": str(out), "stderr": str(err), "env": dict(env),
        }  # fmt: skip
        self._started.append(Process(typed, self.ask({"start": request}), out, err, self))
        return self._started[-1]

    def run(self, words: Sequence[object], timeout: float = 600.0, **more: Any) -> Process:
        """Runs `python words...` to its end."""
        process = self.start(words, **more)
        process.wait(timeout)
        return process

    def close(self) -> None:
        """Ends it, and what failed tests have left running or held."""
        for process in self._started:
            process.kill()
        self._process.communicate()
        self._folder.cleanup()
