"""Find out how many conversations this machine holds in real time."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

from rich.console import Console
from rich.table import Table

from ttt_moshi.cli.arguments import Parser
from ttt_moshi.cli.talking import add_model_options, check_model_options, open_speaker
from ttt_moshi.errors import UserError
from ttt_moshi.frames import FRAME_RATE


def main(argv: list[str]) -> int:
    """`ttt-moshi serve bench --checkpoint_dir D`."""
    parser = Parser(
        prog="ttt-moshi serve bench",
        description="Times ticks with more and more slots, and prints the largest number of which 99 of 100 ticks end "
        "within a frame (80 ms): what `serve --slots` may be on this machine, if nothing else runs on it.",
    )
    parser.add_argument("--seconds", type=float, default=8.0, help="of conversation for each number; default: 8")
    parser.add_argument("--max_slots", type=int, default=64, help="largest number that is tried; default: %(default)s")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    add_model_options(parser)
    options = parser.parse_args(argv)
    check_model_options(options)
    if not 0.2 <= options.seconds <= 3600.0:
        raise UserError(f"--seconds must be between 0.2 and 3600, not {options.seconds}")
    if not 1 <= options.max_slots <= 1024:
        raise UserError(f"--max_slots must be between 1 and 1024, not {options.max_slots}")
    console = Console(highlight=False, soft_wrap=True)
    speaker, sampling = open_speaker(options, Console(stderr=True, highlight=False))
    from ttt_moshi.inference.benchmark import Load, measure, most_slots

    loads: list[Load] = []
    ticks = round(options.seconds * FRAME_RATE)
    most = most_slots(lambda count: measure(speaker, count, ticks, sampling), options.max_slots, loads.append)
    loads.sort(key=lambda load: load.slots)
    if options.json:
        found: dict[str, Any] = {"slots_in_real_time": most, "loads": [asdict(load) for load in loads]}
        print(json.dumps(found, indent=2))
        return 0
    table = Table("slots", "p50", "p95", "p99", "in time", box=None, pad_edge=False)
    for load in loads:
        times = (f"{1000 * seconds:.1f} ms" for seconds in (load.p50, load.p95, load.p99))
        table.add_row(str(load.slots), *times, "yes" if load.in_time else "no")
    console.print(table)
    at_least = " (the largest number tried)" if most == options.max_slots else ""
    console.print(f"conversations in real time: {most}{at_least}")
    return 0
