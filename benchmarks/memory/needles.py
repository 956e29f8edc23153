"""`python -m benchmarks.memory.needles`: two facts at once, one told 50 frames ago and one more than 4,096.

A small model first learns to recall at short distances (as in `benchmarks.memory.run`), then walks through recordings
of eleven minutes with everything carried, in which facts are told and asked all the time, after 16 to 4,096 frames.
Then new recordings ask for a far and a near group of facts at once, for facts of eleven minutes ago, and for facts
after seconds and minutes of one sound. What is made is kept in `cache` beside the results, so nothing is made twice.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Column, Table

from benchmarks.memory import arms, measure, told
from benchmarks.memory.cache import Models, continued, made
from benchmarks.memory.measure import mean_and_interval
from benchmarks.ttt.machine import facts, write
from ttt_moshi.synthetic.recall.base_model import write_base_model
from ttt_moshi.synthetic.recall.recordings import TRAINING_FRAMES, write_data_set, write_recall_training

MODELS = "window,ttt-delta"
BATCH = 16
CLIP_FRAMES = 256
LONG_FRAMES = 8192
HELD = 12
"""facts that wait to be asked at any time of a long recording"""
WAIT = (16, 4096)
"""frames for which one waits"""
STEPS = (300, 480)
"""optimizer steps of short recordings, then of clips of long ones: fifteen times from end to end"""
CARRIED_RATE = 0.5
TARGET = 0.95
TEST_SEED = 1_000_000


@dataclass(frozen=True)
class Question:
    """Facts that are told so many frames before all of them are asked, the farthest first."""

    distances: tuple[int, ...]
    silent: bool = False
    """whether one sound is all that lies between"""
    facts: int = 4
    """at each distance"""

    def names(self) -> list[str]:
        """What is asked, a name for each distance."""
        beside = "both" if len(self.distances) > 1 else "silence" if self.silent else "alone"
        return [f"{distance} ({beside})" for distance in self.distances]


QUESTIONS = (Question((4096, 50)), Question((8192,)), Question((312,), silent=True), Question((7500,), silent=True))


def main(argv: list[str] | None = None) -> int:
    """Trains and measures what is missing in `needles.json`, and prints the table; 1 where `ttt-delta` misses a bar."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=arms.chosen, default=MODELS, help=f"of {', '.join(arms.ARMS)}")
    parser.add_argument("--seeds", default="0", help="of the training data and the initial weights")
    parser.add_argument("--documents", type=int, default=32, help="recordings for each question")
    parser.add_argument("--out", type=Path, default=Path("runs/bench-memory"), help="folder of the results")
    options = parser.parse_args(argv)
    path = options.out / "needles.json"
    settings = {"steps": STEPS, "documents": options.documents, "questions": [asdict(one) for one in QUESTIONS]}
    result = continued(path, 1, settings)
    console = Console(width=120)
    for seed in map(int, options.seeds.split(",")):
        for name in options.models:
            if f"{name}/{seed}" not in result["runs"]:
                console.print(f"{name}, seed {seed}")
                stages = train(options.out / "cache" / "needles", name, seed)
                result["runs"][f"{name}/{seed}"] = {
                    "recall": recall(stages[-1].model, QUESTIONS, options.documents),
                    "train_cpu_seconds": sum(stage.cpu_seconds for stage in stages),
                    "machine": facts(),
                }
                write(path, result)
    console.print(_table(result["runs"]))
    found = bars(result["runs"])
    for bar in found:
        console.print(f"{'met   ' if bar['met'] else 'MISSED'} {bar['name']}: {bar['value']:.3f}")
    console.print(path)
    return 0 if all(bar["met"] for bar in found) else 1


def bars(runs: dict[str, Any]) -> list[dict[str, Any]]:
    """What is asked of the memory that never forgets, of its worst seed."""
    own = [run["recall"] for key, run in runs.items() if key.startswith("ttt-delta/")]
    names = own[0] if own else ()
    worst = {name: min(recall[name]["value"] for recall in own) for name in names}
    return [{"name": f"ttt-delta, {n}, at least {TARGET}", "value": v, "met": v >= TARGET} for n, v in worst.items()]


def train(cache: Path, name: str, seed: int, steps: tuple[int, int] = STEPS) -> list[arms.Trained]:
    """An arm after short recordings, and after long ones with everything carried."""
    base = made(cache / f"base-{seed}", lambda folder: write_base_model(folder, seed))
    heard = steps[0] * BATCH
    short = made(cache / f"short-{seed}-{heard}", lambda folder: write_recall_training(folder, heard, seed))
    long = made(cache / f"long-{seed}-{steps[1]}", lambda folder: write_long_recordings(folder, steps[1], seed))
    first = arms.Schedule(steps[0], BATCH, TRAINING_FRAMES, seed)
    rates = {rate: CARRIED_RATE * getattr(first, rate) for rate in ("lr", "ttt_lr", "gate_lr")}
    second = arms.Schedule(steps[1], BATCH, CLIP_FRAMES, seed, carried=True, **rates)
    done: list[arms.Trained] = []
    for schedule, recordings in ((first, short), (second, long)):
        models = Models(cache / f"models-{recordings.name}", base, recordings / "data.jsonl")
        start = done[-1].checkpoint if done else None
        done.append(models.trained(arms.ARMS[name], replace(schedule, start=start)))
    return done


def write_long_recordings(folder: Path, steps: int, seed: int) -> Path:
    """So many that a batch walks through for so many steps."""
    rng = np.random.default_rng([seed, 2])
    recordings = -(-steps * CLIP_FRAMES // LONG_FRAMES) * BATCH
    return write_data_set(folder, (told.busy(rng, LONG_FRAMES, HELD, WAIT) for _ in range(recordings)))


def recall(model: Any, questions: Sequence[Question], documents: int) -> dict[str, Any]:
    """Share of the answers on whose true code more than half of the probability is, with intervals over recordings."""
    found: dict[str, Any] = {}
    for question in questions:
        rng = np.random.default_rng([TEST_SEED, *question.distances, question.silent])
        made_up = [told.told_before(rng, question.facts, question.distances, question.silent) for _ in range(documents)]
        codes = torch.from_numpy(np.stack([codes for codes, _ in made_up]))
        shares = shares_right(measure.semantic_nll(model, codes), np.array([answers for _, answers in made_up]))
        found |= {name: mean_and_interval(share) for name, share in zip(question.names(), shares, strict=True)}
    return found


def shares_right(nll: np.ndarray, answers: np.ndarray) -> np.ndarray:
    """Of every distance and recording the share of its answers that are right, [distances, recordings], from nats
    [recordings, frames] and the frames of the answers [recordings, distances, facts].
    """
    right = nll < np.log(2.0)
    chosen = np.take_along_axis(right, answers.reshape(len(answers), -1), axis=1)
    return chosen.reshape(answers.shape).mean(2).T


def _table(runs: dict[str, Any]) -> Table:
    """Means over seeds, and the worst seed's."""
    names = [name for question in QUESTIONS for name in question.names()]
    title = "share of answers, by frames since they were told: mean (worst seed)"
    table = Table(Column("model", overflow="fold"), "seeds", "CPU s", *names, title=title)
    for arm in dict.fromkeys(key.rsplit("/", 1)[0] for key in runs):
        own = [run for key, run in runs.items() if key.rsplit("/", 1)[0] == arm]
        shares = [[run["recall"][name]["value"] for run in own] for name in names]
        cells = [f"{np.mean(values):.3f} ({min(values):.3f})" for values in shares]
        table.add_row(arm, str(len(own)), f"{np.mean([run['train_cpu_seconds'] for run in own]):.0f}", *cells)
    return table


if __name__ == "__main__":
    raise SystemExit(main())
