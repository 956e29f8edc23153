"""`python -m benchmarks.memory.hour`: what becomes, in an hour, of a memory that was trained on minutes.

The models of `benchmarks.memory.position`, one seed, on recordings of an hour: 22 times the longest that was carried in
training, 176 times a clip.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks.memory import arms, measure
from benchmarks.memory.curves import BOUND, LANGUAGES, binned, prepare, train
from benchmarks.memory.measure import mean_and_interval
from benchmarks.memory.plots import AS_TRAINED, BOUNDED
from benchmarks.ttt.machine import facts, write

MODELS = "window,ttt-linear,ttt-linear-fading,ttt-mlp,ttt-mlp-fading"
FRAMES = 45_000
BINS = (128, 256, 1024, 4096, 8192, 16384, 32768, FRAMES)
BEGINNING = 4096
"""frames whose cost is compared with that of the hour"""


def main(argv: list[str] | None = None) -> int:
    """Trains, measures and prints; writes `hour-LANGUAGE.json`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--language", choices=tuple(LANGUAGES), default="chain", help="what is spoken")
    parser.add_argument("--models", type=arms.chosen, default=MODELS, help=f"of {', '.join(arms.ARMS)}")
    parser.add_argument("--seed", type=int, default=0, help="of the training data and the initial weights")
    parser.add_argument("--documents", type=int, default=8, help="recordings that are measured")
    parser.add_argument("--out", type=Path, default=Path("runs/bench-memory"), help="folder of the results")
    options = parser.parse_args(argv)
    console, language = Console(width=120), LANGUAGES[options.language]
    result: dict[str, Any] = {"schema": 1, "seed": options.seed, "bins": BINS, "machine": facts(), "models": {}}
    with tempfile.TemporaryDirectory() as folder:
        place = prepare(language, Path(folder), options.seed, language.steps, options.documents, FRAMES)
        for name in options.models:
            console.print(f"{name}: training")
            model = train(place, name, options.seed, language.steps)[1].model
            codes = measure.read_codes(model, place.test_data, FRAMES, place.base_model if language.sound else None)
            seconds = {}
            for frames in (BEGINNING, FRAMES):
                began = time.process_time()
                nll = measure.semantic_nll(model, codes[..., :frames])
                seconds[frames] = time.process_time() - began
            curves = {AS_TRAINED: nll}
            if arms.ARMS[name].inner is not None and arms.ARMS[name].half_life is None:
                curves[BOUNDED] = measure.nll_with_bounded_memory(model, codes, BOUND)
            result["models"][name] = {
                "by_bin": {control: binned(values, BINS) for control, values in curves.items()},
                "cost_of_a_frame_against_the_beginning": seconds[FRAMES] / FRAMES / (seconds[BEGINNING] / BEGINNING),
            }
    path = options.out / f"hour-{options.language}.json"
    write(path, result)
    console.print(_table(result["models"]))
    console.print(path)
    return 0


def _table(models: dict[str, Any]) -> Table:
    """NLL in every bin, and the change from the first bin to the last with its interval over recordings."""
    bins = [f"{start}-{stop}" for start, stop in pairwise(BINS)]
    table = Table("model", *bins, "last - first", "cost", title="nats per semantic code, by frame of the recording")
    for name, model in models.items():
        for control, values in model["by_bin"].items():
            nll = np.array(values)
            change = mean_and_interval(nll[:, -1] - nll[:, 0])
            low, high = change["ci95"]  # type: ignore[misc]
            table.add_row(
                name if control == AS_TRAINED else f"  {control}",
                *(f"{value:.3f}" for value in nll.mean(0)),
                f"{change['value']:+.3f} ({low:+.3f} to {high:+.3f})",
                f"{model['cost_of_a_frame_against_the_beginning']:.2f}" if control == AS_TRAINED else "",
            )
    return table


if __name__ == "__main__":
    raise SystemExit(main())
