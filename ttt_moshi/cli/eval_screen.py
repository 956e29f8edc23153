"""What an evaluation shows: progress bars and tables."""

from __future__ import annotations

from types import TracebackType
from typing import Any

from rich.console import Console
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


def show_perplexity(console: Console, results: Any) -> None:
    """The table of components, if perplexity was asked for and measured."""
    task = results.tasks.get("perplexity")
    if task is None or task["status"] != "ok":
        return
    table = Table(title=f"perplexity over {task['n']} clips, {task['seconds']:.1f} s", title_justify="left")
    for name in ("tokens", "count", "NLL (nats)", "95 % interval", "perplexity"):
        table.add_column(name, justify="left" if name == "tokens" else "right")
    for name, c in task["components"].items():
        low, high = c["ci95"]
        table.add_row(name, f"{c['tokens']:,}", f"{c['nll']:.4f}", f"{low:.4f} - {high:.4f}", f"{c['ppl']:.2f}")
    console.print(table)
    console.print(f"{task['bits_per_second']:.1f} bits per second of Moshi's audio")


def show_tasks(console: Console, results: Any) -> None:
    """One row for every other task, measured or not."""
    others = {name: task for name, task in results.tasks.items() if name != "perplexity" or task["status"] != "ok"}
    if not others:
        return
    table = Table(title="tasks", title_justify="left")
    for name in ("task", "value", "95 % interval", "n", "what"):
        table.add_column(name, justify="right" if name in ("value", "n") else "left")
    for name, task in others.items():
        if task["status"] == "ok":
            low, high = task["ci95"]
            what = task["metric"] + (f", chance {task['chance']}" if "chance" in task else "")
            if published := task.get("reference"):
                what += f", {published['name']} {published['value']} ({100 * published['deviation']:+.1f} points)"
            table.add_row(
                name, f"{task['value']:.4f}", f"{low:.4f} - {high:.4f}", f"{task['n']} {task['unit_of_n']}", what
            )
    if table.row_count:
        console.print(table)
    for name, task in others.items():
        if task["status"] != "ok":
            console.print(f"{name} not run: {task['reason']}", style="yellow", soft_wrap=True, markup=False)


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
