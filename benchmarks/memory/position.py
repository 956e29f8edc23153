"""`python -m benchmarks.memory.position`: likelihood by position and by context, far beyond the training length."""

from __future__ import annotations

import argparse
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Column, Table

from benchmarks.memory import arms, plots
from benchmarks.memory.cache import continued
from benchmarks.memory.compare import compare, gather, points
from benchmarks.memory.curves import (
    BATCH,
    BINS,
    CLIP_FRAMES,
    CONTEXTS,
    LANGUAGES,
    LONGEST_FRAMES,
    TARGET_FRAMES,
    Steps,
    one_run,
    prepare,
)
from benchmarks.memory.measure import mean_and_interval
from benchmarks.ttt.machine import write

MODELS = ("window", "ttt-linear", "ttt-mlp")


def main(argv: list[str] | None = None) -> int:
    """Trains what is missing in the result file, measures it, and draws; 0 where every bound is kept, 1 otherwise."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--language", choices=tuple(LANGUAGES), default="chain", help="what is spoken")
    parser.add_argument("--models", type=arms.chosen, default=",".join(MODELS), help=f"of {', '.join(arms.ARMS)}")
    parser.add_argument("--seeds", default="0,1,2", help="of the training data and the initial weights")
    parser.add_argument("--steps", type=int, help=f"optimizer steps of {BATCH} single clips (450; speech 1000)")
    parser.add_argument("--carried-steps", type=int, help=f"further ones of {BATCH} carried clips (150; speech 300)")
    parser.add_argument("--documents", type=int, default=24, help="recordings that are measured")
    parser.add_argument("--out", type=Path, default=Path("runs/bench-memory"), help="folder of the results")
    options = parser.parse_args(argv)
    names, seeds = options.models, [int(seed) for seed in options.seeds.split(",")]
    console = Console(width=120)
    path = options.out / f"position-{options.language}.json"
    language = LANGUAGES[options.language]
    steps = Steps(options.steps or language.steps.clips, options.carried_steps or language.steps.carried)
    settings = {"steps": [steps.clips, steps.carried], "batch": BATCH, "documents": options.documents}
    result = continued(path, 2, settings)
    for seed in seeds:
        missing = [name for name in names if f"{name}/{seed}" not in result["runs"]]
        if not missing:
            continue
        place = prepare(language, options.out / "cache" / options.language, seed, steps, options.documents)
        for name in missing:
            console.print(f"{name}, seed {seed}: {steps.clips} and {steps.carried} training steps")
            result["runs"][f"{name}/{seed}"] = one_run(place, name, seed, steps)
            write(path, result)
    curves = gather(result["runs"])
    summary = points(curves)
    result |= {"summary": summary, "comparisons": compare(curves)}
    write(path, result)
    marks = {"length of a training clip": CLIP_FRAMES, "longest carried recording": LONGEST_FRAMES}
    plots.save(plots.position_figure(summary, marks), path.with_suffix(""))
    console.print(_positions(summary))
    console.print(_contexts(result["runs"]))
    for entry in result["comparisons"]:
        console.print(_line(entry))
    console.print(f"{path} and {path.with_suffix('.svg')}")
    return 0 if all(entry.get("met", True) for entry in result["comparisons"]) else 1


def _positions(summary: dict[str, Any]) -> Table:
    bins = [f"{start}-{stop}" for start, stop in pairwise(BINS)]
    table = Table(Column("model", overflow="fold"), *bins, title="nats per semantic code, by frame of the recording")
    for arm, controls in summary.items():
        for control, curve in controls.items():
            name = arm if control == plots.AS_TRAINED else f"  {control}"
            table.add_row(name, *(f"{point['value']:.3f}" for point in curve))
    return table


def _contexts(runs: dict[str, Any]) -> Table:
    """Mean over seeds, with the interval over documents."""
    title = f"nats per semantic code of the same last {TARGET_FRAMES} frames, by frames of context before them"
    table = Table(Column("model", overflow="fold"), *map(str, CONTEXTS), title=title)
    for arm in dict.fromkeys(key.split("/")[0] for key in runs):
        cells = []
        for context in CONTEXTS:
            nll = np.array([run["by_context"][str(context)] for key, run in runs.items() if key.split("/")[0] == arm])
            found = mean_and_interval(nll.mean(0))
            low, high = found["ci95"]  # type: ignore[misc]
            cells.append(f"{found['value']:.3f}\n{low:.3f}-{high:.3f}")
        table.add_row(arm, *cells)
    return table


def _line(entry: dict[str, Any]) -> str:
    low, high = entry["ci95"]
    seeds = ", ".join(f"{seed['value']:+.3f}" for seed in entry["seeds"])
    verdict = {True: "met   ", False: "MISSED", None: "      "}[entry.get("met")]
    expected = f", expected {entry['expected']}" if "expected" in entry else ""
    return f"{verdict} {entry['name']}: {entry['value']:+.3f} nats [{low:+.3f}, {high:+.3f}] (seeds {seeds}){expected}"


if __name__ == "__main__":
    raise SystemExit(main())
