"""What a model still knows of an hour that it reads: planted facts, the worth of distant context, and how far back a
change of input still shows.

Every number is a difference between readings of equal shape, each sequence alone in its forward pass, so that what
must be zero is zero to the bit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ttt_moshi.evaluation.errors import EvaluationError
from ttt_moshi.evaluation.examples import Example
from ttt_moshi.evaluation.hour.baselines import MEMORY, WIDE, WINDOW, baselines
from ttt_moshi.evaluation.hour.planted import (
    CHANNELS,
    Held,
    Told,
    exact_window,
    join,
    join_up_to,
    passage,
    plant,
    reach,
    with_targets,
)
from ttt_moshi.evaluation.scoring.engine import Engine
from ttt_moshi.evaluation.statistics import mean_and_interval
from ttt_moshi.frames import FRAME_RATE, frames_to_seconds

SHARES = (1 / 60, 1 / 12, 1 / 4, 1.0)
"""distances of planted facts, of the whole: of an hour 1, 5, 15 and 60 minutes"""
PASSAGE_SEC = 4.0
FAINT = 0.01
"""share of the nearest change's effect below which a change is no longer remembered"""
MOST_HOSTS = 4
"""streams in which changes are made at many distances"""


def require_enough(lengths: Sequence[int], minutes: float) -> None:
    """Looks whether recordings of so many frames each are enough for so many minutes.

    Raises:
        EvaluationError: there are fewer than three (the stream, the passage, the other), one is shorter than a passage,
            or a stream would be too short: it consists of all recordings but the two whose passages it is about.
    """
    if len(lengths) < 3:
        raise EvaluationError(
            f"three recordings are needed (one to listen to, one whose passage comes again, one whose passage does "
            f"not), and there are {len(lengths)}"
        )
    passage, longest = _sizes(minutes)
    if min(lengths) < passage:
        short = lengths.index(min(lengths))
        raise EvaluationError(
            f"recording {short + 1} is shorter than a passage: it lasts {frames_to_seconds(lengths[short]):.2f} s, and "
            f"{frames_to_seconds(passage):.2f} s of it are planted; leave it out, or choose fewer --minutes"
        )
    following = [*lengths[1:], lengths[0]]
    left = [sum(lengths) - one - other for one, other in zip(lengths, following, strict=True)]
    needed, least = _stream(longest, passage), min(left)
    if least < needed:
        first = left.index(least)
        raise EvaluationError(
            f"the recordings are too short: {frames_to_seconds(needed) / 60:.2f} minutes are needed without hearing "
            "any twice and without the two whose passages are planted (--minutes, as much before them but at most a "
            "minute, and a passage twice), and without recordings "
            f"{first + 1} and {(first + 1) % len(lengths) + 1} there are {frames_to_seconds(least) / 60:.2f}; choose "
            "fewer --minutes, or add recordings"
        )


def _sizes(minutes: float) -> tuple[int, int]:
    """Frames of a passage, and between it and when it comes again, at most."""
    longest = round(minutes * 60 * FRAME_RATE)
    return min(round(PASSAGE_SEC * FRAME_RATE), max(2, longest // 8)), longest


def _lead(distance: int) -> int:
    """Frames of a stream before the planted passage."""
    return min(distance, round(60 * FRAME_RATE))


def _stream(distance: int, passage: int) -> int:
    """Frames of a stream in which a passage comes again so many frames after it."""
    return _lead(distance) + 2 * passage + distance


@dataclass(frozen=True)
class Material:
    """Recordings, and how they are read.

    Args:
        passage: frames of a planted passage.
        longest: frames between a passage and when it comes again, at most.
        sink: frames that the baseline with a sink keeps.
    """

    recordings: Sequence[Told]
    passage: int
    longest: int
    sink: int

    @classmethod
    def of(cls, recordings: Sequence[Told], minutes: float, sink: int) -> Material:
        """Raises `EvaluationError` as `require_enough`."""
        require_enough([recording.codes.shape[1] for recording in recordings], minutes)
        passage, longest = _sizes(minutes)
        return cls(recordings, passage, longest, sink)

    @property
    def distances(self) -> list[int]:
        """Frames between the end of a passage and its second hearing, as far as they are longer than the passage."""
        return sorted({frames for share in SHARES if (frames := round(share * self.longest)) >= self.passage})

    def hosts(self, i: int, frames: int) -> tuple[np.ndarray, list[str]]:
        """The stream of item `i`: recordings from the one after its two passages on, and their ids."""
        n = len(self.recordings)
        return join([self.recordings[(i + 2 + k) % n] for k in range(n - 2)], frames)

    def ending_with(self, i: int, frames: int) -> tuple[np.ndarray, list[str]]:
        """A stream that ends where recording `i` does, after as many before it as are needed, and their ids."""
        n = len(self.recordings)
        return join_up_to([self.recordings[(i + 1 + k) % n] for k in range(n)], frames)

    def passages(self, i: int, padding: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
        """What item `i` hears and says again, and what its twin hears instead."""
        first, second = self.recordings[i], self.recordings[(i + 1) % len(self.recordings)]
        return passage(first, self.passage, padding), passage(second, self.passage, padding)


@dataclass(frozen=True)
class _Place:
    """How a distance is measured."""

    distance: int
    window: int
    lead: int
    frames: int

    @classmethod
    def of(cls, distance: int, material: Material, engine: Engine) -> _Place:
        scorer = engine.scorer
        window = min(scorer.window or distance, exact_window(distance, scorer.layers, scorer.delay))
        if window < 2:
            raise EvaluationError(
                f"{frames_to_seconds(distance):g} s are within the reach of {scorer.layers} layers with any window: a "
                "control could not be exactly zero; choose more --minutes"
            )
        return cls(distance, window, _lead(distance), _stream(distance, material.passage))

    def facts(self, engine: Engine) -> dict[str, Any]:
        own = engine.scorer.window
        return {
            "frames": self.distance,
            "minutes": round(frames_to_seconds(self.distance) / 60, 4),
            "window": self.window,
            "window_is_own": self.window == own,
            "reach": reach(self.window, engine.scorer.layers, engine.scorer.delay),
            "wide": max(own, self.frames),
            "wide_is_own": own >= self.frames,
        }


def planted_facts(engine: Engine, material: Material, what: str) -> tuple[list[dict[str, Any]], dict[str, np.ndarray]]:
    """A point for each distance and channel, and the log-odds of the longest distance by baseline, [items].

    An item's log-odds: how much likelier, in nats, the agent's text and semantic tokens of the passage are when it was
    heard before than when another one was heard at the same place. Chance is 0, `recognised` (the share above 0) 0.5.
    """
    points: list[dict[str, Any]] = []
    last: dict[str, list[np.ndarray]] = {}
    for distance in material.distances:
        place = _Place.of(distance, material, engine)
        last = {}
        for channel in CHANNELS:
            held = Held()
            heard: list[Example] = []
            unheard: list[Example] = []
            for i in range(len(material.recordings)):
                host, names = material.hosts(i, place.frames)
                said, other = material.passages(i, engine.scorer.text_padding)
                told = [material.recordings[i].id, material.recordings[(i + 1) % len(material.recordings)].id, *names]
                for kind, planted, group in (("heard", said, heard), ("unheard", other, unheard)):
                    codes = plant(with_targets(host, said), planted, place.lead, channel)
                    group.append(held.add(f"{i}@{distance}:{channel}:{kind}", codes, told))
            forget = place.frames - material.passage  # when the targets begin
            wide = place.facts(engine)["wide"]
            found: dict[str, dict[str, Any]] = {}
            for name, one in baselines(engine.alone().reading(held), place.window, wide, forget, material.sink).items():
                odds = _log_odds(one, heard, unheard, material.passage, f"{what}: {distance} frames, {channel}, {name}")
                if isinstance(odds, str):
                    found[name] = {"status": "skipped", "reason": odds}
                    continue
                last.setdefault(name, []).append(odds)
                found[name] = {"status": "ok", **_mean(odds), "recognised": float((np.sign(odds) / 2 + 0.5).mean())}
            points.append(place.facts(engine) | {"channel": channel, "baselines": found, **_shares(found, WIDE)})
    return points, {name: np.mean(odds, axis=0) for name, odds in last.items() if len(odds) == len(CHANNELS)}


def _log_odds(
    engine: Engine, heard: list[Example], unheard: list[Example], targets: int, what: str
) -> np.ndarray | str:
    """Nats [items], or the reason why this baseline cannot be had."""
    try:
        nll = engine.nll([*heard, *unheard], what)
    except EvaluationError as reason:
        if not engine.scorer.swaps:
            raise
        return str(reason)
    return np.array([_sum(nll[b.id], targets) - _sum(nll[a.id], targets) for a, b in zip(heard, unheard, strict=True)])


def _sum(nll: np.ndarray, targets: int) -> float:
    """Of text and semantic tokens in the last frames."""
    part = nll[:2, -targets:].astype(np.float64)
    return float(part[~np.isnan(part)].sum())


def _mean(values: np.ndarray) -> dict[str, Any]:
    return {**mean_and_interval(values), "n": len(values)}


def _shares(found: Mapping[str, dict[str, Any]], ceiling: str) -> dict[str, Any]:
    """What the baselines gain as a share of the ceiling, where that is certainly above zero."""
    top = found.get(ceiling, {})
    if top.get("status") != "ok" or top["ci95"][0] <= 0:
        return {"share_of_ceiling": None}
    return {"share_of_ceiling": {n: e["value"] / top["value"] for n, e in found.items() if e["status"] == "ok"}}


def distant_context(engine: Engine, material: Material, what: str) -> dict[str, Any]:
    """What each baseline gains over the window alone at fixed targets: each stream's last minute, at most an eighth.

    Every stream ends with a recording of its own, and its targets are no longer than the shortest of them: so none is
    heard as a target twice, and streams may be resampled as items.

    {"window", "wide", "target_frames", "baselines": {name: {"nll", "value" (nats a token less than the window alone),
    "ci95"}}, "share_of_ceiling"}
    """
    frames = material.longest
    place = _Place.of(frames, material, engine)
    shortest = min(recording.codes.shape[1] for recording in material.recordings)
    targets = min(round(60 * FRAME_RATE), frames // 8, shortest)
    held, examples = Held(), []
    for i in range(len(material.recordings)):
        host, names = material.ending_with(i, frames)
        examples.append(held.add(f"{i}:whole", host, names))
    nll: dict[str, np.ndarray] = {}
    found: dict[str, dict[str, Any]] = {}
    wide = max(engine.scorer.window, frames)
    forget = frames - targets
    for name, one in baselines(engine.alone().reading(held), place.window, wide, forget, material.sink).items():
        try:
            scored = one.nll(examples, f"{what}: context, {name}")
        except EvaluationError as reason:
            if not one.scorer.swaps:
                raise
            found[name] = {"status": "skipped", "reason": str(reason)}
            continue
        nll[name] = np.array([_sum(scored[e.id], targets) / _count(scored[e.id], targets) for e in examples])
        found[name] = {"status": "ok", "nll": float(nll[name].mean()), **_mean(nll[WINDOW] - nll[name])}
    return {
        "window": place.window,
        "wide": wide,
        "wide_is_own": wide == engine.scorer.window,
        "target_frames": targets,
        "baselines": found,
        **_shares(found, WIDE),
    }


def _count(nll: np.ndarray, targets: int) -> int:
    return max(1, int((~np.isnan(nll[:2, -targets:])).sum()))


def remembrance(engine: Engine, material: Material, what: str) -> dict[str, Any]:
    """How much predictions change when a stretch of the input was another, by how far back it lies.

    The change at a distance is the mean absolute difference, in nats, of the NLL of text and semantic tokens in the
    last frames of a stream. `farthest` is the longest distance at which it is at least `FAINT` of that at the nearest.
    """
    size = material.passage
    distances: list[int] = []
    while (distance := size * 2 ** len(distances)) <= material.longest:
        distances.append(distance)
    frames = distances[-1] + 2 * size
    held, whole = Held(), []
    changed: dict[int, list[Example]] = {distance: [] for distance in distances}
    for i in range(min(MOST_HOSTS, len(material.recordings))):
        host, names = material.hosts(i, frames)
        other = material.passages(i, engine.scorer.text_padding)[0]
        whole.append(held.add(f"{i}:as it is", host, names))
        for distance in distances:
            codes = host.copy()
            at = frames - 2 * size - distance
            codes[:, at : at + size] = other
            changed[distance].append(held.add(f"{i}:changed {distance}", codes, names))
    variants = baselines(engine.alone().reading(held), engine.scorer.window or frames, frames, frames, material.sink)
    curves: dict[str, Any] = {}
    for name in [name for name in (WINDOW, "sink", MEMORY) if name in variants]:
        every = [*whole, *(example for group in changed.values() for example in group)]
        nll = variants[name].nll(every, f"{what}: changes, {name}")
        points = []
        for distance in distances:
            pairs = zip(whole, changed[distance], strict=True)
            effect = np.array([_change(nll[a.id][:2, -size:], nll[b.id][:2, -size:]) for a, b in pairs])
            points.append({"frames": distance, **_mean(effect)})
        nearest = points[0]["value"]
        lasting = [p["frames"] for p in points if p["value"] >= FAINT * nearest and p["value"] > 0]
        curves[name] = {"points": points, "farthest": max(lasting, default=0)}
    own = engine.scorer.window
    return {"reach": reach(own, engine.scorer.layers, engine.scorer.delay), "baselines": curves}


def _change(a: np.ndarray, b: np.ndarray) -> float:
    both = ~np.isnan(a) & ~np.isnan(b)
    return float(np.abs(a[both].astype(np.float64) - b[both]).mean()) if both.any() else 0.0
