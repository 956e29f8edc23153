"""Runs the demo's commands: quietly, each with one line of progress, two at a time, and never longer than the demo."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, SpinnerColumn, Task, TextColumn
from rich.text import Text

from ttt_moshi.errors import UserError

POLL_SECONDS = 0.05
KILLED = -9
LOG_LINES = 8
"""how much of a log is shown when its command fails"""

Done = Callable[[], tuple[int, int]]
"""how many parts of a job are done, and how many there are (0: unknown)"""


class DemoError(UserError):
    """A part of the demo did not do what it must."""


@dataclass(frozen=True)
class Command:
    """A command of the package, run in a process of its own.

    Args:
        words: what follows `python -m`.
        log: file that receives what it prints.
        threads: compute threads. Commands side by side have one each; equal runs need equal numbers.
    """

    words: tuple[str, ...]
    log: Path
    threads: int = 1

    def __str__(self) -> str:
        module, *rest = self.words
        return " ".join(["ttt-moshi" if module == "ttt_moshi" else f"python -m {module}", *rest])


class Jobs:
    """Runs commands and shows them. Use as a context manager; leaving it ends every command that still runs."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._bars = Progress(
            SpinnerColumn(finished_text="[green]✓"),
            TextColumn("{task.description}"),
            BarColumn(bar_width=20),
            _Seconds(),
            console=console,
            disable=not console.is_terminal,
        )
        self._running: set[subprocess.Popen[bytes]] = set()
        self._stopped = False

    def __enter__(self) -> Jobs:
        self._bars.start()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._stop()
        self._bars.stop()

    def run(self, label: str, command: Command, done: Done | None = None, expected: int = 0) -> None:
        """Runs a command to its end.

        Raises:
            DemoError: it ended with another status than expected; the message has the end of its log.
        """
        status = self._run(label, command, done, None, expected)
        if status != expected:
            raise DemoError(f"`{command}` ended with status {status}. The end of {command.log}:\n{_tail(command.log)}")

    def run_and_kill(self, label: str, command: Command, done: Done, when: Callable[[], bool]) -> None:
        """Runs a command and kills it (SIGKILL) as soon as `when` says so.

        Raises:
            DemoError: it ended by itself before.
        """
        status = self._run(label, command, done, when, KILLED)
        if status != KILLED:
            raise DemoError(
                f"`{command}` ended with status {status} before it could be killed. The end of {command.log}:\n"
                f"{_tail(command.log)}"
            )

    def side_by_side(self, *lanes: Callable[[], None]) -> None:
        """Runs functions at the same time, which run commands one after another; the first error ends all of them."""
        with ThreadPoolExecutor(len(lanes)) as pool:
            futures = [pool.submit(lane) for lane in lanes]
            try:
                finished, _ = wait(futures, return_when=FIRST_EXCEPTION)
                failed = [future for future in finished if future.exception() is not None]
            except BaseException:
                self._stop()
                raise
            if failed:
                self._stop()
                failed[0].result()

    def _run(
        self, label: str, command: Command, done: Done | None, when: Callable[[], bool] | None, expected: int
    ) -> int:
        if self._stopped:
            raise DemoError("stopped")
        command.log.parent.mkdir(parents=True, exist_ok=True)
        threads = {"OMP_NUM_THREADS": str(command.threads)}
        environment = {**os.environ, **threads, "COLUMNS": "120", "PYTHONUNBUFFERED": "1"}
        task = self._bars.add_task(label, total=None)
        began = time.monotonic()
        with command.log.open("wb") as log:
            # A session of its own: Ctrl-C is for the demo, which then ends its commands.
            process = subprocess.Popen(
                [sys.executable, "-m", *command.words],
                stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, env=environment,
                start_new_session=True,
            )  # fmt: skip
            self._running.add(process)
            try:
                while process.poll() is None:
                    if when is not None and when():
                        process.kill()
                    if done is not None:
                        count, total = done()
                        self._bars.update(task, completed=count, total=total or None)
                    time.sleep(POLL_SECONDS)
            finally:
                process.kill()
                process.wait()
                self._running.discard(process)
        if process.returncode == expected:
            self._bars.update(task, total=1, completed=1)
            self._say(f"done: {label} ({time.monotonic() - began:.0f} s)")
        return process.returncode

    def _say(self, line: str) -> None:
        """Where no bars can be drawn, a line for every command that is done."""
        if not self._console.is_terminal:
            self._console.print(line, highlight=False, soft_wrap=True)

    def _stop(self) -> None:
        self._stopped = True
        for process in list(self._running):
            process.kill()


class _Seconds(ProgressColumn):
    """Time that a command has run, or took."""

    def render(self, task: Task) -> Text:
        seconds = int(task.finished_time if task.finished else task.elapsed or 0)  # type: ignore[arg-type]
        return Text(f"{seconds // 60}:{seconds % 60:02}", style="dim")


def lines_in(path: Path, total: int) -> Done:
    """Progress of a command that writes one line a step."""
    return lambda: (count_lines(path), total)


def count_lines(path: Path) -> int:
    """Whole lines of a file, 0 where there is none yet."""
    try:
        return path.read_bytes().count(b"\n")
    except FileNotFoundError:
        return 0


def announced_in(log: Path) -> Done:
    """Progress of a command that prints `progress DONE TOTAL WHAT`."""

    def last() -> tuple[int, int]:
        try:
            text = log.read_text(errors="replace")
        except FileNotFoundError:
            return 0, 0
        lines = [line for line in text.splitlines() if line.startswith("progress ") and len(line.split()) >= 3]
        return (int(lines[-1].split()[1]), int(lines[-1].split()[2])) if lines else (0, 0)

    return last


def _tail(log: Path) -> str:
    lines = [line for line in log.read_text(errors="replace").splitlines() if not line.startswith("progress ")]
    return "\n".join(lines[-LOG_LINES:])
