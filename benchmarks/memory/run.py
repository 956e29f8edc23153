"""`python -m benchmarks.memory.run`: recall against distance for attention alone, TTT, and attention to everything."""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Column, Table

from benchmarks.memory import arms, measure, plots
from benchmarks.memory.cache import continued
from benchmarks.ttt.machine import facts, write
from ttt_moshi.synthetic.recall.base_model import reach, write_base_model
from ttt_moshi.synthetic.recall.recordings import (
    FAR,
    NEAR,
    PAIRS,
    TRAINING_FRAMES,
    write_recall_test,
    write_recall_training,
)
from ttt_moshi.synthetic.recall.task import CHANCE, length

DISTANCES = (4, 16, 32, 64, 96, 128, 256, 512, 1024)
CONTROL_DISTANCES = (64, 256, 1024)
LATE, LATE_RECORDINGS = 8192, 16
"""a distance of eleven minutes, read in pieces"""
SILENT = 312
"""frames of one sound, 25 seconds"""
AS_TRAINED = "as trained"
SILENCE = "silence between"
BATCH = 16

MODELS = "window,ttt-linear,ttt-mlp,ttt-delta,full"


def main(argv: list[str] | None = None) -> int:
    """Trains what is missing in the result file, measures it, and draws; 0 where every bar is met, 1 otherwise."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", type=arms.chosen, default=MODELS, help=f"of {', '.join(arms.ARMS)}")
    parser.add_argument("--seeds", default="0,1,2", help="of the training data and the initial weights")
    parser.add_argument("--steps", type=int, default=300, help=f"optimizer steps of {BATCH} recordings")
    parser.add_argument("--recordings", type=int, default=128, help="for each measured distance")
    parser.add_argument("--out", type=Path, default=Path("runs/bench-memory"), help="folder of the results")
    options = parser.parse_args(argv)
    console = Console(width=120)
    path = options.out / "recall.json"
    settings = {
        "steps": options.steps,
        "batch": BATCH,
        "recordings": options.recordings,
        "pairs": PAIRS,
        "distances": [*DISTANCES, LATE],
        "silent": SILENT,
    }
    result = continued(path, 1, settings)
    for seed in map(int, options.seeds.split(",")):
        for name in options.models:
            if f"{name}/{seed}" in result["runs"]:
                continue
            console.print(f"{name}, seed {seed}: training {options.steps} steps")
            result["runs"][f"{name}/{seed}"] = one_run(name, seed, options.steps, options.recordings)
            write(path, result)
    result["summary"] = summarise(result["runs"])
    result["bars"] = bars(result["summary"])
    write(path, result)
    figure = plots.recall_figure(result["summary"], CHANCE, (NEAR[0], FAR[1]), reach(arms.WINDOW))
    plots.save(figure, options.out / "recall")
    console.print(_table(result["summary"]))
    for bar in result["bars"]:
        console.print(f"{'met   ' if bar['met'] else 'MISSED'} {bar['name']}: {bar['value']:.3f}")
    console.print(f"{path} and {options.out / 'recall.svg'}")
    return 0 if all(bar["met"] for bar in result["bars"]) else 1


def one_run(
    name: str,
    seed: int,
    steps: int,
    recordings: int,
    distances: Sequence[int] = DISTANCES,
    late_recordings: int = LATE_RECORDINGS,
) -> dict[str, Any]:
    """Trains one arm and measures it: `recall[control][distance]` with intervals over recordings, and its cost."""
    arm = arms.ARMS[name]
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        base = write_base_model(work / "base", seed)
        data = write_recall_training(work / "train", steps * BATCH, seed)
        schedule = arms.Schedule(steps, BATCH, TRAINING_FRAMES, seed)
        trained = arms.train(arms.arguments(arm, schedule, base, data, work / "run"))
        recall: dict[str, dict[str, Any]] = {AS_TRAINED: {}}
        for distance in distances:
            test = write_recall_test(work / f"test-{distance}", recordings, distance)
            frames = length(PAIRS, distance)
            named: dict[str, Any] = {AS_TRAINED: None}
            if arm.inner is not None and distance in CONTROL_DISTANCES:
                named |= measure.controls(arms.WINDOW)
            for control, change in named.items():
                with measure.with_sink(trained.model, arm.sink), measure.ablated(trained.model, change):
                    shares = measure.recall(trained.model, test, frames)
                recall.setdefault(control, {})[str(distance)] = measure.mean_and_interval(shares)
        if arm.inner is not None:
            silent = write_recall_test(work / "silent", recordings, SILENT, silent=True)
            shares = measure.recall(trained.model, silent, length(PAIRS, SILENT))
            recall[SILENCE] = {str(SILENT): measure.mean_and_interval(shares)}
            if late_recordings:
                late = write_recall_test(work / "late", late_recordings, LATE)
                shares = measure.recall_in_pieces(trained.model, late, length(PAIRS, LATE))
                recall[AS_TRAINED][str(LATE)] = measure.mean_and_interval(shares)
    cost = {"train_seconds": trained.seconds, "train_cpu_seconds": trained.cpu_seconds, "loss": trained.final_loss}
    return {"recall": recall, **{key: round(value, 4) for key, value in cost.items()}, "machine": facts()}


def summarise(runs: dict[str, Any]) -> dict[str, Any]:
    """`summary[arm][control][distance]`: mean, least and greatest over seeds."""
    summary: dict[str, Any] = {}
    for key, run in runs.items():
        for control, points in run["recall"].items():
            for distance, point in points.items():
                curve = summary.setdefault(key.split("/")[0], {}).setdefault(control, {})
                curve.setdefault(distance, []).append(point["value"])
    return {
        arm: {
            control: {
                d: {"mean": float(np.mean(v)), "min": min(v), "max": max(v), "seeds": len(v)} for d, v in curve.items()
            }
            for control, curve in curves.items()
        }
        for arm, curves in summary.items()
    }


def bars(summary: dict[str, Any]) -> list[dict[str, Any]]:
    """Every bound, applied to the worst seed."""
    found = []
    for arm, curves in summary.items():
        plain = curves[AS_TRAINED]
        if arm == "window":
            worst = max(point["max"] for d, point in plain.items() if int(d) + 2 > reach(arms.WINDOW))
            found.append({"name": "window beyond its reach, at most 0.12", "value": worst, "met": worst <= 0.12})
        if arm.startswith("ttt"):
            worst = min(plain[str(d)]["min"] for d in CONTROL_DISTANCES)
            found.append({"name": f"{arm} at 64, 256 and 1024, at least 0.95", "value": worst, "met": worst >= 0.95})
            for control, curve in curves.items():
                if control == SILENCE:
                    worst = min(point["min"] for point in curve.values())
                    found.append({"name": f"{arm}, {SILENCE}, at least 0.95", "value": worst, "met": worst >= 0.95})
                elif control != AS_TRAINED:
                    worst = max(point["max"] for point in curve.values())
                    found.append({"name": f"{arm}, {control}, at most 0.15", "value": worst, "met": worst <= 0.15})
    return found


def _table(summary: dict[str, Any]) -> Table:
    title = "recall at a distance in frames, % of the answers: mean of the seeds (worst)"
    columns = sorted({*DISTANCES, SILENT, LATE})
    table = Table(Column("model", overflow="fold"), *(str(d) for d in columns), title=title)
    for arm, curves in summary.items():
        for control, points in curves.items():
            cells = [points.get(str(d)) for d in columns]
            worst = "max" if control not in (AS_TRAINED, SILENCE) or arm == "window" else "min"
            table.add_row(
                arm if control == AS_TRAINED else f"  {control}",
                *("" if cell is None else f"{100 * cell['mean']:.0f} ({100 * cell[worst]:.0f})" for cell in cells),
            )
    return table


if __name__ == "__main__":
    raise SystemExit(main())
