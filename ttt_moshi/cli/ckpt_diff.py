"""The difference between two checkpoints, for a person."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

SHOWN = 20  # changed tensors that are printed
LONGEST = 100  # characters of a value that are printed; a random state has thousands
UPDATE_COUNTS = "resume/state.json: state.update_counts"


def show_diff(seen: dict[str, Any], first: Path, second: Path, console: Console) -> None:
    """Prints what `ttt_moshi.checkpoint.diff` found, where None stands for numbers that are not finite."""
    console.print(f"first   {first}\nsecond  {second}", soft_wrap=True)
    verdict = "the same training state, bit for bit" if seen["same_state"] else "two different training states"
    console.print(verdict)
    console.print(f"{seen['equal']} tensors are equal, {len(seen['changed'])} changed")
    for key, what in (
        ("only_in_first", "only in the first"),
        ("only_in_second", "only in the second"),
        ("other_shape_or_dtype", "of another shape or dtype"),
    ):
        if seen[key]:
            console.print(f"{len(seen[key])} {what}: {', '.join(seen[key])}", soft_wrap=True)
    if seen["changed"]:
        table = Table()
        for column in ("tensor", "largest difference", "relative to the first"):
            table.add_column(column, overflow="fold")
        # Parameters before moments, the most changed first.
        largest = sorted(
            seen["changed"].items(), key=lambda item: (not item[0].startswith("param/"), -_or_infinite(item[1]))
        )
        for name, change in largest[:SHOWN]:
            table.add_row(
                name, *("-" if change[key] is None else f"{change[key]:.3g}" for key in ("max_abs", "relative"))
            )
        console.print(table)
        if len(largest) > SHOWN:
            console.print(f"... and {len(largest) - SHOWN} more; --json has all")
    counts = [name for name in seen["documents"] if UPDATE_COUNTS in name]
    for name, (before, after) in seen["documents"].items():
        if name not in counts:
            console.print(f"{name}: {_short(before)} -> {_short(after)}", soft_wrap=True, markup=False)
    if counts:
        console.print(f"{UPDATE_COUNTS}: the numbers of updates of {len(counts)} parameters")


def _or_infinite(change: dict[str, Any]) -> float:
    return math.inf if change["relative"] is None else change["relative"]


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}..."
