"""Who talks when, from where each channel is loud: the turn events of dGSLM (arXiv 2203.16502).

An inter-pausal unit (IPU) is a stretch of speech of one speaker between silences of more than 0.2 s. Where both are
silent it is a pause if the same speaker goes on, else a gap; where both speak it is an overlap. Silence before the
first and after the last unit is neither.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from ttt_moshi.data.voiced import HOP, EnergyMeter, Span, voiced_spans

Kind = Literal["ipu", "pause", "gap", "overlap"]
KINDS: tuple[Kind, ...] = ("ipu", "pause", "gap", "overlap")
PAUSE_SEC = 0.2


@dataclass(frozen=True)
class Event:
    """Seconds [start, end); `agent`: whose a unit is, who goes on after a pause or gap, who broke in at an overlap."""

    kind: Kind
    start: float
    end: float
    agent: bool

    @property
    def seconds(self) -> float:
        return self.end - self.start


def energies(samples: np.ndarray) -> np.ndarray:
    """Samples [n] at 24 kHz as dB of full scale by steps of 20 ms, as far as they go."""
    steps = samples[: len(samples) // HOP * HOP].reshape(-1, HOP).astype(np.float64)
    return 10 * np.log10(np.square(steps).mean(axis=1) + 1e-12)


def speech_spans(samples: np.ndarray) -> list[Span]:
    """Where a channel [n] at 24 kHz is loud, by the rule of `voiced_spans`."""
    return voiced_spans(energies(samples)) if len(samples) >= HOP else []


def speech_spans_of(blocks: Iterable[np.ndarray]) -> list[Span]:
    """The same of a channel that comes in blocks [n] and need not be held whole."""
    meter = EnergyMeter(1)
    for block in blocks:
        meter.add(block[None])
    return voiced_spans(meter.decibels()[0])


def turn_events(agent: Sequence[Span], user: Sequence[Span]) -> list[Event]:
    """The events of a conversation from the speech of its two sides, in the order of their starts."""
    units = [Event("ipu", s.start, s.end, True) for s in _bridged(agent)]
    units += [Event("ipu", s.start, s.end, False) for s in _bridged(user)]
    units.sort(key=lambda unit: (unit.start, unit.end, not unit.agent))
    found = list(units)
    last: Event | None = None  # the unit that has lasted longest so far
    for unit in units:
        if last is not None:
            if unit.start > last.end + 1e-9:
                kind: Kind = "pause" if unit.agent == last.agent else "gap"
                found.append(Event(kind, last.end, unit.start, unit.agent))
            elif unit.start < last.end - 1e-9:
                found.append(Event("overlap", unit.start, min(unit.end, last.end), unit.agent))
            elif unit.agent != last.agent:
                found.append(Event("gap", last.end, unit.start, unit.agent))
        if last is None or unit.end > last.end:
            last = unit
    return sorted(found, key=lambda event: (event.start, KINDS.index(event.kind)))


def totals(events: Sequence[Event], seconds: float) -> dict[str, dict[str, float]]:
    """Of each kind its number and its seconds in a minute, and the median length in seconds (0 where there is none)."""
    found: dict[str, dict[str, float]] = {}
    for kind in KINDS:
        lengths = [event.seconds for event in events if event.kind == kind]
        found[kind] = {
            "per_minute": 60 * len(lengths) / seconds,
            "seconds_per_minute": 60 * float(np.sum(lengths)) / seconds,
            "median": float(np.median(lengths)) if lengths else 0.0,
        }
    return found


def within(events: Sequence[Event], start: float, end: float) -> list[Event]:
    """The events that begin in [start, end) seconds, whole even where they last beyond it."""
    return [event for event in events if start <= event.start < end]


def share_of_time(spans: Sequence[Span], start: float, end: float) -> float:
    """Share of [start, end) seconds that the spans cover."""
    return sum(max(0.0, min(s.end, end) - max(s.start, start)) for s in spans) / (end - start)


def _bridged(spans: Sequence[Span]) -> list[Span]:
    """Spans with silences of at most `PAUSE_SEC` filled."""
    joined: list[Span] = []
    for span in sorted(spans, key=lambda s: s.start):
        if joined and span.start - joined[-1].end <= PAUSE_SEC + 1e-9:
            joined[-1] = Span(joined[-1].start, max(joined[-1].end, span.end))
        else:
            joined.append(span)
    return joined
