"""How many conversations a machine holds in real time."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from ttt_moshi.inference.engine import TICK_SECONDS, WARM_UP_FRAMES
from ttt_moshi.inference.sampling import Sampling
from ttt_moshi.inference.slots import Slots
from ttt_moshi.inference.speaker import Speaker


@dataclass(frozen=True)
class Load:
    """Ticks of so many slots, all of which hear and speak.

    Args:
        p50, p95, p99: seconds of a tick, by percentile.
    """

    slots: int
    ticks: int
    p50: float
    p95: float
    p99: float

    @property
    def in_time(self) -> bool:
        """Whether 99 of 100 ticks end before the next frame comes."""
        return self.p99 <= TICK_SECONDS


def measure(speaker: Speaker, count: int, ticks: int, sampling: Sampling | None = None) -> Load:
    """Times `ticks` ticks (at least 2) of `count` conversations of noise."""
    generator = torch.Generator().manual_seed(0)
    seconds = []
    with Slots(speaker, count, sampling, watched=True) as slots:
        for slot in range(count):
            slots.join(slot, slot)
        for tick in range(WARM_UP_FRAMES + ticks):
            sound = 0.1 * torch.randn(count, slots.frame_size, generator=generator)
            began = time.perf_counter()
            slots.tick(dict(enumerate(sound)))
            if tick >= WARM_UP_FRAMES:
                seconds.append(time.perf_counter() - began)
    cuts = statistics.quantiles(seconds, n=100, method="inclusive")
    return Load(count, ticks, cuts[49], cuts[94], cuts[98])


def most_slots(at: Callable[[int], Load], limit: int, on_load: Callable[[Load], None] = lambda load: None) -> int:
    """The largest number of slots up to `limit` that is in time, 0 if not even one is: by doubling, then halving.

    Args:
        at: measures a number of slots.
        on_load: told every measurement.
    """

    def in_time(count: int) -> bool:
        load = at(count)
        on_load(load)
        return load.in_time

    good, bad = 0, limit + 1
    count = 1
    while count <= limit:
        if not in_time(count):
            bad = count
            break
        good, count = count, 2 * count
    while bad - good > 1:
        middle = (good + bad) // 2
        good, bad = (middle, bad) if in_time(middle) else (good, middle)
    return good
