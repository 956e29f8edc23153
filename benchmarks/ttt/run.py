"""`python -m benchmarks.ttt.run`: speed, memory and capability of the TTT layer on a CPU, as a table and as JSON."""

from __future__ import annotations

import argparse
import multiprocessing
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.ttt import capability, machine, memory, streaming_speed, training_speed


class Bar(NamedTuple):
    """One figure and the bound it is held to."""

    name: str
    value: float
    bound: float
    at_least: bool
    unit: str = ""

    @property
    def met(self) -> bool:
        return self.value >= self.bound if self.at_least else self.value <= self.bound


def bars(result: dict[str, Any]) -> list[Bar]:
    """Every figure that has a bound."""
    found = []
    if "training" in result:
        by_size = {row["K"]: row for row in result["training"]}
        found += [
            Bar("train, K=16: times faster than naive autograd", by_size[16]["vs_naive"], 1.5, True),
            Bar("train, K=16: than checkpointed naive", by_size[16]["vs_checkpointed"], 2.0, True),
            Bar("train, K=64: than checkpointed naive", by_size[64]["vs_checkpointed"], 1.6, True),
        ]
    if "streaming" in result:
        for turns, row in result["streaming"].items():
            found += [
                Bar(f"stream, {turns}: times plain gradient sums", row["vs_plain"], 6.0, True),
                Bar(f"stream, {turns}: times lean gradient sums", row["vs_lean"], 1.7, True),
                Bar(f"stream, {turns}: frame, median", row["median_ms"]["rows"], 2.5, False, "ms"),
                Bar(f"stream, {turns}: committing frame, median", row["commit_median_ms"], 8.0, False, "ms"),
            ]
    if "memory" in result:
        row = result["memory"]
        found += [
            Bar("state of a stream", row["state_bytes"] / 1e6, 19.6, False, "MB"),
            Bar("kept for backward, per frame", row["per_frame_bytes"]["rebuild"] / 1e6, 0.25, False, "MB"),
            Bar("naive autograd keeps, times as much", row["vs_naive"], 9.0, True),
            Bar("ten-minute sample, rebuild", row["ten_minute_bytes"]["rebuild"] / 1e9, 1.6, False, "GB"),
            Bar("ten-minute sample, checkpoint", row["ten_minute_bytes"]["checkpoint"] / 1e9, 0.9, False, "GB"),
        ]
    if "capability" in result:
        row = result["capability"]
        found += [
            Bar("recall of 64 pairs, one pass: loss left", row["recall"]["speech, base_lr 1"], 0.40, False),
            Bar("delta, 64 pairs, one pass: loss left", row["silence"]["delta, 64 pairs"], 0.20, False),
            Bar("the same after silence", row["silence"]["delta, and 64 frames of silence"], 0.20, False),
            Bar("ripple over positions", row["ripple"]["speech"], 1.2, False),
            Bar("30,000 frames: largest output", max(r["max_abs_out"] for r in row["stability"].values()), 10, False),
            Bar("30,000 frames: largest growth of W", max(r["growth"] for r in row["stability"].values()), 6, False),
            Bar("gradient at 2000 frames over at 64, most", row["gradient_reach"], 10, False),
            Bar("gradient at 2000 frames over at 64, least", row["gradient_reach"], 1e-3, True),
        ]
    return found


def apart(measure: Callable[[], Any]) -> Any:
    """The result of `measure` in a process of its own, with one thread: what the memory allocator learned from one part
    changes the speed of another by half, and neither training nor serving does the other's work beside its own."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, context, initializer=torch.set_num_threads, initargs=(1,)) as process:
        return process.submit(measure).result()


def main(argv: list[str] | None = None) -> int:
    """Measure, print, write; 0 even where a bar is missed (the table says so)."""
    parts: dict[str, Callable[[], Any]] = {
        "training": training_speed.measure,
        "streaming": streaming_speed.measure,
        "memory": memory.measure,
        "capability": capability.measure,
    }
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, help="where to write the result")
    parser.add_argument("--only", nargs="+", choices=list(parts), default=list(parts))
    options = parser.parse_args(argv)
    console = Console()
    result: dict[str, Any] = {"machine": machine.facts()}
    for name in options.only:
        with console.status(f"measuring {name}"):
            result[name] = apart(parts[name])
    result["machine"]["load_average_after"] = machine.facts()["load_average"]
    table = Table("figure", "value", "bar", "met")
    for bar in bars(result):
        sign = ">=" if bar.at_least else "<="
        table.add_row(bar.name, f"{bar.value:.3g} {bar.unit}", f"{sign} {bar.bound:g}", "yes" if bar.met else "NO")
    console.print(result["machine"])
    console.print(table)
    for part in ("training", "streaming", "capability"):
        if part in result:
            console.print(part, result[part])
    result["bars"] = [bar._asdict() | {"met": bar.met} for bar in bars(result)]
    if options.json:
        machine.write(options.json, result)
        console.print(f"written to {options.json}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
