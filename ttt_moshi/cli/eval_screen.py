"""What an evaluation shows: progress bars, headlines, and the table of tasks."""

from __future__ import annotations

from types import TracebackType
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.padding import Padding
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table


class Bars:
    """One progress bar for each thing that is done, drawn on terminals and left out of logs."""

    def __init__(self, console: Console):
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        self._progress = Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
        self._tasks: dict[str, TaskID] = {}

    def __enter__(self) -> Bars:
        self._progress.start()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._progress.stop()

    def update(self, what: str, done: int, total: int) -> None:
        """Moves the bar of `what`, which appears with its first move."""
        if what not in self._tasks:
            self._tasks[what] = self._progress.add_task(what, total=total)
        self._progress.update(self._tasks[what], completed=done, total=total)


def show_headlines(console: Console, tasks: dict[str, dict[str, Any]]) -> None:
    """Two lines a task: its value with what chance reaches, and what that means."""
    from ttt_moshi.evaluation.report.headline import headlines

    width = max(map(len, tasks), default=0)
    for task, value, chance, n, meaning in headlines(tasks):
        style = "yellow" if value == "not run" else ""
        facts = [value, f"chance {chance}" if chance else "", n]
        line = f"[bold]{escape(f'{task:{width}}')}[/]  {'   '.join(fact for fact in facts if fact)}"
        console.print(line, style=style, soft_wrap=True)
        console.print(Padding(escape(meaning), (0, 0, 0, width + 2)), style=style)


def show_known_tasks(console: Console) -> None:
    """What `--tasks` may name, and what each task needs."""
    from ttt_moshi.evaluation.tasks.registry import known_tasks

    table = Table(title="tasks", title_justify="left")
    for name in ("task", "version", "needs"):
        table.add_column(name, overflow="fold")
    for name, spec in known_tasks().items():
        table.add_row(name, str(spec.version), spec.needs)
    console.print(table)
    console.print("folders are below --data_root; `ttt-moshi data make-bench` makes small ones")
