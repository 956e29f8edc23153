"""`python -m benchmarks.memory.hour`: what becomes, in an hour, of a memory that was trained on minutes.

The models of `benchmarks.memory.position` on recordings of an hour (or more): 22 times the longest that was carried in
training, 176 times a clip. What is made is kept in `cache` beside the results, so nothing is made twice.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Column, Table

from benchmarks.memory import arms, measure
from benchmarks.memory.cache import continued
from benchmarks.memory.compare import difference
from benchmarks.memory.curves import LANGUAGES, Place, Steps, binned, prepare, train
from benchmarks.memory.measure import mean_and_interval
from benchmarks.ttt.machine import facts, write

MODELS = (
    "window,window-sink,ttt-linear,ttt-linear-fading,ttt-mlp,ttt-mlp-fading,"
    "ttt-delta-fading,ttt-delta-both,ttt-delta-both-long"
)
HOUR = 45_000
BINS = (128, 256, 1024, 4096, 8192, 16384, 32768, HOUR)
GAIN = {"chain": 0.15, "speech": 0.04}
"""nats that a memory should be better than the window in the last bin"""
BEGINNING = 4096
"""frames whose cost is compared with that of the hour"""


def main(argv: list[str] | None = None) -> int:
    """Trains and measures what is missing in `hour-LANGUAGE.json`, and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--language", choices=tuple(LANGUAGES), default="chain", help="what is spoken")
    parser.add_argument("--models", type=arms.chosen, default=MODELS, help=f"of {', '.join(arms.ARMS)}")
    parser.add_argument("--seeds", default="0", help="of the training data and the initial weights")
    parser.add_argument("--documents", type=int, default=8, help="recordings that are measured")
    parser.add_argument("--hours", type=int, default=1, help="how long they are")
    parser.add_argument("--out", type=Path, default=Path("runs/bench-memory"), help="folder of the results")
    options = parser.parse_args(argv)
    console, language = Console(width=150), LANGUAGES[options.language]
    frames = options.hours * HOUR
    edges = (*BINS, *range(2 * HOUR, frames + 1, HOUR))
    path = options.out / f"hour-{options.language}{'' if options.hours == 1 else f'-{options.hours}'}.json"
    settings = {"bins": edges, "documents": options.documents}
    result = continued(path, 2, settings)
    for seed in map(int, options.seeds.split(",")):
        missing = [name for name in options.models if f"{name}/{seed}" not in result["runs"]]
        if not missing:
            continue
        cache = options.out / "cache" / options.language
        place = prepare(language, cache, seed, language.steps, options.documents, frames)
        for name in missing:
            console.print(f"{name}, seed {seed}")
            result["runs"][f"{name}/{seed}"] = one_run(place, name, seed, language.steps, edges)
            write(path, result)
    console.print(_table(result["runs"], edges))
    for bar in bars(result["runs"], GAIN[options.language]):
        low, high = bar["ci95"]
        verdict = "met   " if bar["met"] else "MISSED"
        seeds = ", ".join(f"{seed['value']:+.3f}" for seed in bar["seeds"])
        console.print(f"{verdict} {bar['name']}: {bar['value']:+.3f} ({low:+.3f} to {high:+.3f}; seeds {seeds})")
    console.print(path)
    return 0


def one_run(place: Place, name: str, seed: int, steps: Steps, edges: Sequence[int]) -> dict[str, Any]:
    """Trains one model and measures it: NLL of every document in every bin, and what a frame costs late and early."""
    trained = train(place.models, name, seed, steps)
    model = trained[1].model
    codes = measure.read_codes(model, place.test_data, edges[-1])
    seconds = {}
    for frames in (BEGINNING, edges[-1]):
        began = time.process_time()
        with measure.with_sink(model, arms.ARMS[name].sink):
            nll = measure.semantic_nll(model, codes[..., :frames])
        seconds[frames] = time.process_time() - began
    return {
        "by_bin": binned(nll, edges),
        "cost_of_a_frame_against_the_beginning": seconds[edges[-1]] / edges[-1] / (seconds[BEGINNING] / BEGINNING),
        "train_cpu_seconds": sum(stage.cpu_seconds for stage in trained),
        "machine": facts(),
    }


def bars(runs: dict[str, Any], gain: float) -> list[dict[str, Any]]:
    """What is asked of every memory that was measured: level to the end, better than the window by `gain` nats there,
    and better than a window with a sink. Means over the seeds that both have, intervals over recordings.
    """
    found = []
    for name in dict.fromkeys(key.rsplit("/", 1)[0] for key in runs):
        if name not in arms.ARMS or arms.ARMS[name].inner is None:
            continue
        own = {
            key.rsplit("/", 1)[1]: np.array(run["by_bin"]) for key, run in runs.items() if key.startswith(f"{name}/")
        }
        every = np.array(list(own.values()))
        change = difference(f"{name}, last bin - first, not above 0", every[..., -1], every[..., 0])
        found.append({**change, "met": change["ci95"][0] <= 0})
        for other, least in (("window", gain), ("window-sink", 0.0)):
            pairs = [
                (nll, np.array(runs[f"{other}/{seed}"]["by_bin"]))
                for seed, nll in own.items()
                if f"{other}/{seed}" in runs
            ]
            if pairs:
                asked = f"at least {least} nats lower" if least else "lower"
                last, theirs = np.array(pairs)[..., -1].swapaxes(0, 1)
                better = difference(f"{name} - {other}, last bin, {asked}", last, theirs)
                found.append({**better, "met": better["value"] <= -least and better["ci95"][1] < 0})
    return found


def _table(runs: dict[str, Any], edges: Sequence[int]) -> Table:
    """Means over seeds: NLL in every bin, the change from the first bin to the last and the distance from the window in
    the last, with intervals over recordings.
    """
    by_model: dict[str, list[Any]] = {}
    for key, run in runs.items():
        by_model.setdefault(key.rsplit("/", 1)[0], []).append(run)
    bins = [f"{start}-{stop}" for start, stop in pairwise(edges)]
    title = "nats per semantic code, by frame of the recording"
    table = Table(
        Column("model", overflow="fold"), "seeds", *bins, "last - first", "last - window's", "cost", title=title
    )
    for name, own in by_model.items():
        nll = np.array([run["by_bin"] for run in own])
        same = [np.array(runs[f"window/{key.rsplit('/', 1)[1]}"]["by_bin"]) for key in runs
                if key.rsplit("/", 1)[0] == name and f"window/{key.rsplit('/', 1)[1]}" in runs]  # fmt: skip
        against = "" if len(same) < len(own) else _interval((nll[..., -1] - np.array(same)[..., -1]).mean(0))
        cost = np.mean([run["cost_of_a_frame_against_the_beginning"] for run in own])
        table.add_row(
            name,
            str(len(own)),
            *(f"{value:.3f}" for value in nll.mean((0, 1))),
            _interval((nll[..., -1] - nll[..., 0]).mean(0)),
            against,
            f"{cost:.2f}",
        )
    return table


def _interval(values: np.ndarray) -> str:
    found = mean_and_interval(values)
    low, high = found["ci95"]  # type: ignore[misc]
    return f"{found['value']:+.3f}\n({low:+.3f} to {high:+.3f})"


if __name__ == "__main__":
    raise SystemExit(main())
