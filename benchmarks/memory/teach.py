"""`python -m benchmarks.memory.teach`: does a model that is finished learn to use a memory, and which aid helps it?

A small model learns the made-up codes with attention over whole clips, and is frozen. Then its window is narrowed to 16
frames, and TTT layers alone are trained for a tenth of its steps, with twice as many clips in each and one aid or
another: on single clips first, then on long recordings with everything carried, at half the rates. What the wide window
is worth to the frozen model, beyond a clip's length, is the ceiling; a memory's share of it is what it brings back.
What is made is kept in `cache` beside the results, so nothing is made twice.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from benchmarks.memory import arms, measure, phones
from benchmarks.memory.cache import continued, made, plain, trained
from benchmarks.memory.curves import (
    BATCH,
    CARRIED_RATE,
    CLIP_FRAMES,
    LANGUAGES,
    TEST_SEED,
    Steps,
    binned,
    prepare,
    recording_lengths,
)
from benchmarks.memory.measure import mean_and_interval
from benchmarks.ttt.machine import facts, write
from ttt_moshi.config import DistillArgs, LoraArgs, ModelPaths, TrainArgs, TTTArgs
from ttt_moshi.data import Alphabet, Corpus
from ttt_moshi.data.plant import Plan, plant
from ttt_moshi.evaluation.statistics import bootstrap_ratio
from ttt_moshi.moshi import TTTMoshi, build_model, resolve_model, set_context
from ttt_moshi.moshi.loading import geometry
from ttt_moshi.synthetic.material import FILE_NAMES
from ttt_moshi.synthetic.recall.recordings import FRAME_SECONDS

PRETRAINING = 2000
"""optimizer steps until the loss over a wide window falls no further"""
SHARE = 10
"""one teaching step for so many of them"""
CHOICE = 5
"""times as many frames of recordings as there are in so many steps of pre-training: voices that come back would be
learned by heart"""
CARRIED_SHARE = 4
"""of the teaching steps, one in so many is carried, the last ones"""
WIDE = CLIP_FRAMES
TEST_FRAMES = 2048
BINS = (64, 128, 256, 512, 1024, TEST_FRAMES)
BEYOND = BINS.index(WIDE)
"""first bin in which a wide window is full"""
PLAN = Plan(repeats=8, facts=0, passage=(8, 32), distance=(32, 256))
"""beyond what 16 frames in two layers reach, and mostly within what the wide window does"""
NO_WRITES = 2.0**-20
"""base learning rate of layers that are trained without writing; its inverse lets them write when they are measured"""
TEACHING_SEED = 3_000_000
TARGET = 0.8
"""share of the ceiling that is asked for"""


@dataclass(frozen=True)
class Way:
    """How a finished model is taught."""

    attention: bool = False
    """whether its TTT layers begin with the attention's projections (`ttt.init`)"""
    distill: bool = False
    """whether the model's own wide window is its teacher (`train.distill`)"""
    lora: bool = False
    """whether LoRA adapters learn beside the TTT layers"""
    planted: bool = False
    """whether passages return in its recordings (`ttt-moshi data plant`)"""
    inherit: float = 0.0
    """share of the steps, the last ones, in which recordings begin with another's memory (`train.inherit_memory`)"""
    clips: bool = True
    """whether single clips come first; if not, every step is carried"""
    writes: bool = True
    """whether its TTT layers write while they are trained"""
    target: Literal["own", "both"] = "own"
    """what the keys of half of the heads learn to predict: as all others their own frame, or the next (`ttt.target`)"""
    batch: int = 2 * BATCH
    """clips in a step; pre-training has `BATCH`"""


BOTH = Way(attention=True, distill=True)
WAYS = {
    "likelihood": Way(),
    "distill": Way(distill=True),
    "plant": Way(planted=True),
    "attention": Way(attention=True),
    "both": BOTH,
    "both-next": replace(BOTH, target="both"),
    "both-small": replace(BOTH, batch=BATCH),
    "both-no-writes": replace(BOTH, writes=False),
    "both-lora": replace(BOTH, lora=True),
    "both-inherit": replace(BOTH, inherit=0.1),
    "both-no-clips": replace(BOTH, clips=False),
}
LORA_RANK = 16
GATES = 0.2
"""of layers that begin with the attention's projections: what they say at the start is not nothing"""
BASE, WRITING, NOT_WRITING, OFF = "base", "writing", "not writing", "memory off"
NARROW_WINDOW, WIDE_WINDOW = f"window of {arms.WINDOW}", f"window of {WIDE}"


def main(argv: list[str] | None = None) -> int:
    """Trains and measures what is missing in `teach.json`, and prints the table, the shares and what met the target."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ways", type=chosen, default=",".join(WAYS), help=f"of {', '.join(WAYS)}")
    parser.add_argument("--seeds", default="0", help="of the recordings and the initial weights")
    parser.add_argument("--steps", type=int, default=PRETRAINING, help=f"of pre-training; 1/{SHARE} of them teach")
    parser.add_argument("--documents", type=int, default=24, help="recordings that are measured")
    parser.add_argument("--out", type=Path, default=Path("runs/bench-memory"), help="folder of the results")
    options = parser.parse_args(argv)
    console = Console(width=150)
    path = options.out / "teach.json"
    settings = {"steps": options.steps, "documents": options.documents, "bins": BINS}
    result = continued(path, 1, settings)
    for seed in map(int, options.seeds.split(",")):
        missing = [name for name in (BASE, *options.ways) if f"{name}/{seed}" not in result["runs"]]
        if not missing:
            continue
        cache = options.out / "cache" / "chain"
        steps = Steps(options.steps, options.steps // SHARE)
        place = prepare(LANGUAGES["chain"], cache, seed, steps, options.documents, TEST_FRAMES, TEST_SEED + seed)
        schedule = arms.Schedule(steps.clips, BATCH, CLIP_FRAMES, seed, shuffle=True)
        before = place.models.trained(arms.Arm(WIDE), schedule)
        finish = partial(finished, place.models.base_model, before.checkpoint)
        lessons = Lessons(cache, made(cache / f"finished-{seed}-{steps.clips}", finish), seed, steps.carried)
        for name in missing:
            console.print(f"{name}, seed {seed}")
            if name == BASE:
                model, cost = lessons.base_model(), before.cpu_seconds
                by_bin = measure_base(model, measure.read_codes(model, place.test_data, TEST_FRAMES))
            else:
                stages = lessons.taught(WAYS[name])
                model, cost = stages[-1].model, sum(stage.cpu_seconds for stage in stages)
                by_bin = measure_taught(model, WAYS[name], measure.read_codes(model, place.test_data, TEST_FRAMES))
            result["runs"][f"{name}/{seed}"] = {"by_bin": by_bin, "train_cpu_seconds": cost, "machine": facts()}
            write(path, result)
    result["summary"] = summarise(result["runs"])
    write(path, result)
    console.print(_table(result["runs"]))
    for entry in result["summary"]:
        console.print(_line(entry))
    console.print(path)
    return 0


def chosen(text: str) -> list[str]:
    """Names of ways, separated by commas, on a command line. Raises ArgumentTypeError for one that there is not."""
    names = text.split(",")
    unknown = sorted(set(names) - set(WAYS))
    if unknown:
        raise argparse.ArgumentTypeError(f"no way {', '.join(unknown)}; there are {', '.join(WAYS)}")
    return names


def finished(base_model: Path, checkpoint: Path, folder: Path) -> None:
    """Makes `folder` a base model with the weights of a checkpoint of all of them."""
    shutil.copytree(base_model, folder)
    shutil.copyfile(checkpoint / "consolidated" / "consolidated.safetensors", folder / FILE_NAMES["moshi_name"])


@dataclass(frozen=True)
class Lessons:
    """What all ways of teaching one model share.

    Args:
        cache: folder of the recordings and of what is trained.
        model: the finished model, in the layout of a hub repository.
        steps: for which it is taught.
    """

    cache: Path
    model: Path
    seed: int
    steps: int

    def base_model(self) -> TTTMoshi:
        """The finished model itself."""
        info = resolve_model(ModelPaths(hf_repo_id=str(self.model)))
        return build_model(info, TTTArgs(), LoraArgs(), dtype=torch.float32).eval()

    def taught(self, way: Way) -> list[arms.Trained]:
        """The model after each stage of being taught in this way, now or earlier."""
        data = self.planted() if way.planted else self.recordings()
        done: list[arms.Trained] = []
        for stage in stages_of(way, self.steps):
            start = done[-1].checkpoint if done else None
            schedule = replace(stage.schedule(self.seed), start=start)
            described = {"way": asdict(stage.way), "schedule": plain(asdict(schedule)), "recordings": data.name}
            arguments = partial(teaching, stage.way, schedule, self.model, data / "data.jsonl")
            done.append(trained(self.cache / f"taught-{self.model.name}", "delta", described, arguments))
        return done

    def recordings(self) -> Path:
        """Recordings that pre-training has not heard."""
        lengths, seed = recording_lengths(CHOICE * self.steps, self.seed), TEACHING_SEED + self.seed
        return made(
            self.cache / f"lessons-{self.seed}-{len(lengths)}",
            lambda folder: phones.write_recordings(folder, lengths, seed),
        )

    def planted(self) -> Path:
        """The same, with passages that return."""
        own = self.recordings()
        geometry_of_base = geometry(resolve_model(ModelPaths(hf_repo_id=str(self.model))).lm_config)

        def make(folder: Path) -> None:
            alphabet = Alphabet.of_model(geometry_of_base)
            corpus = Corpus(str(own / "data.jsonl"), None, None, TEST_FRAMES * FRAME_SECONDS, alphabet=alphabet)
            plant(corpus, folder, PLAN, self.seed)

        digest = random.Random(json.dumps(asdict(PLAN))).getrandbits(32)
        return made(own.with_name(f"{own.name}-planted-{digest:08x}"), make)


@dataclass(frozen=True)
class Stage:
    """A part of the teaching: so many steps of single clips, or of recordings with everything carried."""

    way: Way
    steps: int
    carried: bool

    def schedule(self, seed: int) -> arms.Schedule:
        """Half the rates where memory is carried after single clips."""
        full = arms.Schedule(self.steps, self.way.batch, CLIP_FRAMES, seed, shuffle=True, carried=self.carried)
        rate = CARRIED_RATE if self.carried and self.way.clips else 1.0
        return replace(full, **{name: rate * getattr(full, name) for name in ("lr", "ttt_lr", "gate_lr")})


def stages_of(way: Way, steps: int) -> list[Stage]:
    """What a way does with its steps; memory is inherited in carried ones alone, so in a larger share of these."""
    carried = steps // CARRIED_SHARE if way.clips else steps
    last = Stage(replace(way, inherit=way.inherit * steps / carried), carried, carried=True)
    return [Stage(replace(way, inherit=0.0), steps - carried, carried=False), last] if way.clips else [last]


def teaching(way: Way, schedule: arms.Schedule, model: Path, train_data: Path, run_dir: Path) -> TrainArgs:
    """The training of TTT layers, and of LoRA adapters if the way has them, beside the frozen model."""
    args = arms.arguments(arms.ARMS["ttt-delta-fading"], schedule, model, train_data, run_dir)
    distill = DistillArgs(context_frames=WIDE if way.distill else None)
    start: dict[str, Any] = {"init": "attention", "initial_gating_alpha": GATES} if way.attention else {}
    return replace(
        args,
        full_finetuning=False,
        save_adapters=True,
        ttt=replace(args.ttt, **start, target=way.target, **({} if way.writes else {"base_lr": NO_WRITES})),
        lora=LoraArgs(enable=way.lora, rank=LORA_RANK),
        train=replace(args.train, distill=distill, inherit_memory=way.inherit),
    )


def measure_base(model: TTTMoshi, codes: torch.Tensor) -> dict[str, list[list[float]]]:
    """NLL of every recording in every bin, with the narrow window and with the wide one."""
    by_bin = {}
    for name, frames in ((NARROW_WINDOW, arms.WINDOW), (WIDE_WINDOW, WIDE)):
        set_context(model, frames)
        by_bin[name] = binned(measure.semantic_nll(model, codes), BINS)
    return by_bin


def measure_taught(model: TTTMoshi, way: Way, codes: torch.Tensor) -> dict[str, list[list[float]]]:
    """NLL of every recording in every bin, where the layers write, do not write, and are switched off."""
    writing, not_writing = ({}, {"inner_lr": 0.0}) if way.writes else ({"inner_lr": 1 / NO_WRITES}, {})
    by_bin = {}
    for name, change in ((WRITING, writing), (NOT_WRITING, not_writing), (OFF, {"gate": 0.0})):
        with measure.ablated(model, change or None):
            by_bin[name] = binned(measure.semantic_nll(model, codes), BINS)
    return by_bin


def beyond(by_bin: list[list[float]]) -> np.ndarray:
    """Mean NLL of every recording from frame `WIDE` on, float64 [recordings]."""
    return np.average(np.array(by_bin)[:, BEYOND:], axis=1, weights=np.diff(BINS)[BEYOND:])


def summarise(runs: dict[str, Any]) -> list[dict[str, Any]]:
    """Over the frames from `WIDE` on, means over seeds, each with recordings of its own, and intervals over these: what
    the wide window gains; of every way its share of that where it writes (`met` says whether it reaches the target) and
    where it does not, its NLL's distance from that of plain likelihood (from `both`, if it is that and one thing more),
    and with the memory off from that of the finished model. Where the wide window gains nothing for certain, there are
    no shares.
    """

    def nll(name: str, what: str, seeds: list[str]) -> np.ndarray:
        return np.mean([beyond(runs[f"{name}/{seed}"]["by_bin"][what]) for seed in seeds], axis=0)

    every = [key.rsplit("/", 1)[1] for key in runs if key.startswith(f"{BASE}/")]
    gain = mean_and_interval(nll(BASE, WIDE_WINDOW, every) - nll(BASE, NARROW_WINDOW, every))
    found: list[dict[str, Any]] = [{"name": f"{WIDE_WINDOW} - {NARROW_WINDOW}, nats", "seeds": len(every), **gain}]
    for name in WAYS:
        seeds = [key.rsplit("/", 1)[1] for key in runs if key.startswith(f"{name}/")]
        if not seeds:
            continue
        floor, ceiling = (nll(BASE, window, seeds) for window in (NARROW_WINDOW, WIDE_WINDOW))
        clear = mean_and_interval(floor - ceiling)["ci95"][0] > 0  # type: ignore[index]
        for what in (WRITING, NOT_WRITING) if clear else ():
            gained = floor - nll(name, what, seeds)
            share = {"value": float(gained.sum() / (floor - ceiling).sum())}
            share["ci95"] = list(bootstrap_ratio(gained, floor - ceiling))  # type: ignore[assignment]
            own = [(nll(BASE, NARROW_WINDOW, [s]), nll(BASE, WIDE_WINDOW, [s]), nll(name, what, [s])) for s in seeds]
            share["by_seed"] = [float((n - mine).sum() / (n - w).sum()) for n, w, mine in own]  # type: ignore[assignment]
            asked = {"met": share["value"] >= TARGET} if WAYS[name].writes and what == WRITING else {}
            found.append({"name": f"{name}, {what}, share of the ceiling", "seeds": len(seeds), **share, **asked})
        off = mean_and_interval(nll(name, OFF, seeds) - floor)
        found.append({"name": f"{name}, {OFF} - finished model, nats", "seeds": len(seeds), **off})
        other = "both" if name.startswith("both-") else "likelihood"
        shared = [seed for seed in seeds if f"{other}/{seed}" in runs]
        if shared and name != other:
            more = mean_and_interval(nll(name, WRITING, shared) - nll(other, WRITING, shared))
            found.append({"name": f"{name} - {other}, {WRITING}, nats", "seeds": len(shared), **more})
    return found


def _table(runs: dict[str, Any]) -> Table:
    """Means over seeds and recordings."""
    bins = [f"{start}-{stop}" for start, stop in pairwise(BINS)]
    beyond_wide = f"{WIDE}-{TEST_FRAMES}"
    title = "nats per semantic code, by frame of the recording"
    table = Table("taught by", "seeds", "CPU s", "measured", *bins, beyond_wide, title=title)
    for name in (BASE, *WAYS):
        own = [run for key, run in runs.items() if key.rsplit("/", 1)[0] == name]
        for what in own[0]["by_bin"] if own else ():
            nll = np.mean([run["by_bin"][what] for run in own], axis=(0, 1))
            mean = np.mean([beyond(run["by_bin"][what]) for run in own])
            cost = np.mean([run["train_cpu_seconds"] for run in own])
            cells = [f"{value:.3f}" for value in (*nll, mean)]
            table.add_row(name, str(len(own)), f"{cost:.0f}", what, *cells)
    return table


def _line(entry: dict[str, Any]) -> str:
    low, high = entry["ci95"]
    verdict = {True: "met   ", False: "MISSED", None: "      "}[entry.get("met")]
    by_seed = ", ".join(f"{share:.3f}" for share in entry.get("by_seed", ()))
    seeds = f"{entry['seeds']} seeds" + (f": {by_seed}" if by_seed else "")
    return f"{verdict} {entry['name']}: {entry['value']:+.3f} ({low:+.3f} to {high:+.3f}), {seeds}"


if __name__ == "__main__":
    raise SystemExit(main())
