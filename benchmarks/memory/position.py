"""`python -m benchmarks.memory.position`: likelihood by position and by context, far beyond the training length."""

from __future__ import annotations

import argparse
import json
import tempfile
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks.memory import arms, measure, plots
from benchmarks.memory.base_model import write_base_model
from benchmarks.memory.phones import entropy_rate, make_document
from benchmarks.memory.recordings import TEST_SEED, write_data_set
from benchmarks.ttt.machine import facts, write

TRAINING_FRAMES = 256
TEST_FRAMES = 4 * TRAINING_FRAMES
BINS = (8, 16, 32, 64, 128, 256, 512, 1024)
TARGET_FRAMES = 64
CONTEXTS = (16, 32, 64, 128, 192, 448, 960)
BATCH = 8
MODELS = ("window", "ttt-linear", "ttt-linear, carried", "full")


def main(argv: list[str] | None = None) -> int:
    """Trains what is missing in the result file, measures it, and draws."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", default=";".join(MODELS), help=f"of {'; '.join(MODELS)} (separated by semicolons)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=600, help=f"optimizer steps of {BATCH} clips")
    parser.add_argument("--documents", type=int, default=48, help="recordings that are measured")
    parser.add_argument("--out", type=Path, default=Path("runs/bench-memory"), help="folder of the results")
    options = parser.parse_args(argv)
    unknown = set(options.models.split(";")) - set(MODELS)
    if unknown:
        parser.error(f"no model {'; '.join(sorted(unknown))}; there are {'; '.join(MODELS)}")
    console = Console(width=110)
    path = options.out / "position.json"
    settings = {"steps": options.steps, "batch": BATCH, "documents": options.documents, "seed": options.seed}
    result: dict[str, Any] = {"schema": 1, "settings": settings, "training_frames": TRAINING_FRAMES, "models": {}}
    if path.exists():
        earlier = json.loads(path.read_text(encoding="utf-8"))
        result = earlier if earlier["settings"] == settings else result
    result["floor"] = entropy_rate()
    for name in options.models.split(";"):
        if name not in result["models"]:
            console.print(f"{name}: training {options.steps} steps")
            result["models"][name] = one_model(name, options.seed, options.steps, options.documents)
            write(path, result)
    result["comparisons"] = compare(result["models"])
    write(path, result)
    curves = {
        name if control == "as trained" else f"{name}, {control}": by_position(np.array(nll))
        for name, model in result["models"].items()
        for control, nll in model["by_bin"].items()
    }
    plots.save(plots.position_figure(curves, TRAINING_FRAMES, result["floor"]), options.out / "position")
    console.print(_table(curves))
    for entry in result["comparisons"]:
        low, high = entry["ci95"]
        console.print(f"{entry['name']}: {entry['value']:+.3f} nats [{low:+.3f}, {high:+.3f}]")
    console.print(f"{path} and {options.out / 'position.svg'}")
    return 0


def one_model(name: str, seed: int, steps: int, documents: int) -> dict[str, Any]:
    """Trains one arm and measures it: mean NLL of every document in every bin, per control, and by context length."""
    arm_name, _, mode = name.partition(", ")
    arm, carried = arms.ARMS[arm_name], mode == "carried"
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        base = write_base_model(work / "base", seed)
        rng = np.random.default_rng([seed, 1])
        length = TEST_FRAMES if carried else TRAINING_FRAMES
        recordings = steps * BATCH * TRAINING_FRAMES // length
        data = write_data_set(work / "train", (make_document(rng, length) for _ in range(recordings)))
        plan = arms.Plan(steps, BATCH, TRAINING_FRAMES, seed, carried=carried)
        trained = arms.train(arm, plan, base, data, work / "run", lambda record: None)
        model = trained.model

        heard = [make_document(np.random.default_rng([TEST_SEED, 1, i]), TEST_FRAMES) for i in range(documents)]
        test = write_data_set(work / "test", heard)
        named: dict[str, Any] = {"as trained": None}
        if arm.inner is not None:
            named |= measure.controls(arms.WINDOW)
        by_bin = {}
        for control, change in named.items():
            with measure.ablated(model, change):
                by_bin[control] = _binned(measure.semantic_nll(model, test, TEST_FRAMES))
        if arm.inner is not None:
            swapped = measure.nll_with_memory_of_another(model, test, TEST_FRAMES, TEST_FRAMES // 2)
            by_bin["memory of another"] = _binned(swapped)
        by_context = {}
        for context in CONTEXTS:
            frames = context + TARGET_FRAMES
            part = write_data_set(work / f"context-{context}", (example.last(frames) for example in heard))
            nll = measure.semantic_nll(model, part, frames)[:, -TARGET_FRAMES:].mean(1)
            by_context[str(context)] = measure.mean_and_interval(nll)
    cost = {"train_seconds": trained.seconds, "train_cpu_seconds": trained.cpu_seconds, "loss": trained.final_loss}
    return {"by_bin": by_bin, "by_context": by_context, **cost, "machine": facts()}


def by_position(binned: np.ndarray) -> list[dict[str, Any]]:
    """Mean and interval over documents of every bin; `binned` [documents, bins]."""
    return [
        {"from": start, "to": stop, **measure.mean_and_interval(binned[:, i])}
        for i, (start, stop) in enumerate(pairwise(BINS))
    ]


def compare(models: dict[str, Any]) -> list[dict[str, Any]]:
    """Differences of mean NLL over the same documents: negative is better, an interval without 0 is no accident."""
    end_of_training, far = BINS.index(TRAINING_FRAMES) - 1, len(BINS) - 2
    binned = {name: {c: np.array(v) for c, v in model["by_bin"].items()} for name, model in models.items()}
    found = []
    for name, curves in binned.items():
        plain = curves["as trained"]
        if name != "window" and "window" in binned:
            window = binned["window"]["as trained"]
            for place in (end_of_training, far):
                where = f"frames {BINS[place]} to {BINS[place + 1]}"
                found.append(_difference(f"{name} against window, {where}", window[:, place], plain[:, place]))
        found.append(_difference(f"{name}, last bin against training length", plain[:, end_of_training], plain[:, far]))
        for control, values in curves.items():
            if control != "as trained":
                found.append(
                    _difference(f"{name}, {control} against as trained, last bin", plain[:, far], values[:, far])
                )
    return found


def _difference(name: str, first: np.ndarray, second: np.ndarray) -> dict[str, Any]:
    return {"name": name, **measure.mean_and_interval(second - first)}


def _binned(nll: np.ndarray) -> list[list[float]]:
    """Mean NLL of every document in every bin, from [documents, frames]."""
    return np.stack([nll[:, start:stop].mean(1) for start, stop in pairwise(BINS)], axis=1).astype(float).tolist()


def _table(curves: dict[str, list[dict[str, Any]]]) -> Table:
    bins = [f"{start}-{stop}" for start, stop in pairwise(BINS)]
    table = Table("model", *bins, title="nats per semantic code, by frame of the recording")
    for name, points in curves.items():
        table.add_row(name, *(f"{point['value']:.3f}" for point in points))
    return table


if __name__ == "__main__":
    raise SystemExit(main())
