"""Points of a curve over recordings: token-weighted means with intervals whose unit is the recording."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ttt_moshi.evaluation.errors import EvaluationError
from ttt_moshi.evaluation.scoring.reductions import channel_group
from ttt_moshi.evaluation.statistics import bootstrap_ratio, item_means, mean_and_interval

GROUPS = ("text", "semantic", "acoustic")


def group_sums(nll: np.ndarray, group: str, start: int = 0, stop: int | None = None) -> tuple[float, int]:
    """Sum of NLL and count of the tokens of a channel group in frames [start, stop) of nll [1 + dep_q, T]."""
    part = nll[channel_group(group, len(nll)), start:stop]
    present = ~np.isnan(part)
    return float(part[present].sum(dtype=np.float64)), int(present.sum())


def mean_nll(sums: list[tuple[float, int]]) -> dict[str, Any]:
    """{"value", "ci95", "n", "tokens"} of the token-weighted mean over recordings that have such tokens."""
    values, counts = np.array([s for s, _ in sums]), np.array([c for _, c in sums], float)
    tokens = counts.sum()
    if not tokens:
        raise EvaluationError("no token of this kind in any recording")
    return {
        "value": float(values.sum() / tokens),
        "ci95": list(bootstrap_ratio(values, counts)),
        "n": int((counts > 0).sum()),
        "tokens": int(tokens),
    }


def mean_difference(
    first: list[tuple[float, int]], second: list[tuple[float, int]], items: Sequence[str] | None = None
) -> dict[str, Any]:
    """{"value", "ci95", "n"} of the mean over recordings of (mean NLL of `second` - mean NLL of `first`).

    `items`: of which item each recording is; those of one are averaged first. None where each is its own.
    """
    names = range(len(first)) if items is None else items
    own = [
        (name, s2 / c2 - s1 / c1) for name, (s1, c1), (s2, c2) in zip(names, first, second, strict=True) if c1 and c2
    ]
    differences = item_means([name for name, _ in own], [difference for _, difference in own])
    if not len(differences):
        raise EvaluationError("no recording has tokens on both sides of the comparison")
    return {**mean_and_interval(differences), "n": len(differences)}


def point(nll: list[np.ndarray], spans: list[tuple[int, int | None]]) -> dict[str, Any]:
    """The curve's values for every channel group that occurs: nll and span of each recording."""
    found = {}
    for group in GROUPS:
        sums = [group_sums(values, group, *span) for values, span in zip(nll, spans, strict=True)]
        if any(count for _, count in sums):
            found[group] = mean_nll(sums)
    return found


def by_minute(recordings: Sequence[Sequence[Mapping[str, Any]]], statistics: Sequence[str]) -> list[dict[str, Any]]:
    """Means over recordings with their intervals, minute by minute, as far as the longest goes.

    {"minute", "n", each of `statistics` that some recording has there: {"value", "ci95"}, "degenerate": how many are}
    """
    points = []
    for number in range(max((len(own) for own in recordings), default=0)):
        here = [own[number] for own in recordings if number < len(own)]
        found: dict[str, Any] = {"minute": number, "n": len(here)}
        for name in statistics:
            values = np.array([v for minute in here if (v := minute.get(name)) is not None], float)
            if len(values):
                found[name] = mean_and_interval(values)
        found["degenerate"] = sum(minute.get("degenerate") is not None for minute in here)
        points.append(found)
    return points
