"""How the commands on data show things."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


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
