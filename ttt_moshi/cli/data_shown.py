"""How the commands on data show things."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from ttt_moshi.frames import frames_to_seconds

LOG_EVERY = 60.0
"""seconds between lines where there is no screen"""


def counted(count: int, what: str) -> str:
    """`1 word`, `1,234 words`."""
    return f"{count:,} {what}" + ("" if count == 1 else "s")


def clock(seconds: float) -> str:
    """`1:02:03`."""
    return f"{int(seconds) // 3600}:{int(seconds) // 60 % 60:02}:{int(seconds) % 60:02}"


def shown(text: str) -> str:
    """A line for the screen, whatever is in the names of files."""
    return text.encode("utf-8", "backslashreplace").decode().replace("\n", "\\n")


@contextmanager
def progress(what: str) -> Iterator[Callable[[str, int, int], None]]:
    """A bar with the time left; gives the function that moves it: name, how many are done, how many there are."""
    columns = (
        TextColumn(what),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.description}"),
    )
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("", total=None)
        yield lambda name, done, total: bar.update(task, description=shown(name), completed=done, total=total)


@contextmanager
def encoding() -> Iterator[tuple[Callable[[str, int, int], None], Callable[..., str]]]:
    """A bar, or in logs a line a minute, with throughput and the time left.

    Gives the function that moves it (name, frames that are done, frames in all: of those that are to be encoded), and
    one that sums up, knowing how many others had been encoded before.
    """
    began = last = time.monotonic()
    heard = 0.0
    with progress("encoding") as show:

        def on_recording(name: str, done: int, total: int) -> None:
            nonlocal last, heard
            heard, now = frames_to_seconds(done), time.monotonic()
            told = throughput(heard, frames_to_seconds(total), now - began)
            show(f"{name} {told}", done, total)
            if total and now - last >= LOG_EVERY and not sys.stderr.isatty():
                last = now
                print(f"encoding {name}: {told}", file=sys.stderr, flush=True)

        def summary(before: int = 0) -> str:
            there, seconds = frames_to_seconds(before), max(time.monotonic() - began, 1e-3)
            if before and not heard:
                return f"the codes of all {clock(there)} of audio were there"
            told = f"{clock(heard)} of audio in {clock(seconds)}, {heard / seconds:.1f}x real time"
            return told + (f"; the codes of {clock(there)} were there" if before else "")

        yield on_recording, summary


def throughput(done: float, total: float, elapsed: float) -> str:
    """`0:10:00 of 1:00:00, 20.0x real time, 0:02:30 left`; all in seconds."""
    speed = done / max(elapsed, 1e-3)
    left = f", {clock((total - done) / speed)} left" if speed else ""
    return f"{clock(done)} of {clock(total)}, {speed:.1f}x real time{left}"
