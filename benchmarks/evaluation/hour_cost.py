"""What an hour of conversation costs on this machine, as `eval --tasks hour` holds it: one at a time and side by side.

    python benchmarks/evaluation/hour_cost.py --checkpoint_dir CHECKPOINT [--minutes 60] [--slots 1,4] [--threads 1]

The users are noise, since what they say costs nothing; audio, tokens and words of every conversation are written, as
the evaluation does. For each number of slots as many conversations are held. Seconds are of one conversation's hour:
CPU time of the process, and wall clock, which other jobs of the machine lengthen.
"""

from __future__ import annotations

import argparse
import os
import resource
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import torch

from ttt_moshi.frames import SAMPLE_RATE
from ttt_moshi.inference.answers import LongAudio
from ttt_moshi.inference.driver import Driver, Item
from ttt_moshi.inference.sampling import Sampling
from ttt_moshi.inference.speaker import Speaker, open_checkpoint


def user(seed: int, minutes: float) -> LongAudio:
    """A user, a second at a time, as `hour` plays one."""
    seconds = max(1, round(minutes * 60))

    def blocks() -> Iterator[torch.Tensor]:
        generator = torch.Generator().manual_seed(seed)
        return (0.1 * torch.randn(SAMPLE_RATE, generator=generator) for _ in range(seconds))

    return LongAudio(seconds * SAMPLE_RATE, blocks)


def hold(speaker: Speaker, slots: int, minutes: float) -> tuple[float, float]:
    """CPU and wall-clock seconds of `slots` conversations side by side."""
    items = [Item(f"user{seed}", lambda seed=seed: user(seed, minutes)) for seed in range(slots)]
    with tempfile.TemporaryDirectory() as folder:
        cpu, wall = time.process_time(), time.perf_counter()
        Driver(speaker, Sampling.of(speaker.generation), slots).converse(items, Path(folder))
        return time.process_time() - cpu, time.perf_counter() - wall


def main() -> None:
    """Prints a Markdown table, a line as soon as it is measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint_dir", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=60.0, help="length of each conversation")
    parser.add_argument("--slots", default="1,4", help="numbers of conversations side by side")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    speaker = open_checkpoint(options.checkpoint_dir, "cpu", torch.float32)
    size = sum(parameter.numel() for parameter in speaker.model.parameters())
    print(
        f"{size:,} parameters, TTT layers {len(speaker.model.ttt_layers)}, window {speaker.model.context} frames; "
        f"{options.minutes:g} minutes each; torch {torch.__version__}, {options.threads} thread, "
        f"load average {os.getloadavg()[0]:.1f}\n",
        flush=True,
    )
    print("| side by side | CPU seconds an hour | wall-clock seconds an hour | times real time | peak memory |")
    print("|---|---|---|---|---|", flush=True)
    for slots in map(int, options.slots.split(",")):
        cpu, wall = hold(speaker, slots, options.minutes)
        hours = slots * options.minutes / 60
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        print(
            f"| {slots} | {cpu / hours:.0f} | {wall / hours:.0f} | {3600 * hours / wall:.1f} | {memory:.2f} GiB |",
            flush=True,
        )


if __name__ == "__main__":
    main()
