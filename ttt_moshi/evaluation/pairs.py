"""Pairs of recordings, one right and one wrong: which of them does the model find likelier?

The rule is that of the ZeroSpeech 2021 toolkit: a pair scores 1, or 0.5 on a tie, or 0; pairs are averaged over the
voices of an item, then over items.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import blake3
import numpy as np

from ttt_moshi.evaluation.examples import Example
from ttt_moshi.evaluation.statistics import mean_and_interval, mean_by_item

Item = TypeVar("Item")


@dataclass(frozen=True)
class Pair:
    """Two recordings of one item in one voice. Lower NLL of `correct` is a success."""

    item: str
    voice: str
    correct: Example
    incorrect: Example
    groups: Mapping[str, str] = field(default_factory=dict)  # how results are broken down: {"band": "oov"}

    @property
    def id(self) -> str:
        return f"{self.item}/{self.voice}" if self.voice else self.item


def pair_score(correct_nll: float, incorrect_nll: float) -> float:
    """1 when the correct one is likelier, 0.5 on a tie, else 0."""
    return 0.5 if correct_nll == incorrect_nll else float(correct_nll < incorrect_nll)


def item_scores(pairs: Sequence[Pair], scores: Sequence[float]) -> dict[str, float]:
    """Mean over voices, by item, in the order of the items' names."""
    return dict(sorted(mean_by_item([pair.item for pair in pairs], scores).items()))


def accuracy(pairs: Sequence[Pair], scores: Sequence[float]) -> dict[str, Any]:
    """{"value", "ci95", "n"}: mean over items, and its interval with items resampled."""
    items = np.array(list(item_scores(pairs, scores).values()))
    return {**mean_and_interval(items), "n": len(items)}


def breakdown(pairs: Sequence[Pair], scores: Sequence[float]) -> dict[str, dict[str, dict[str, Any]]]:
    """Accuracy within every group: {"band": {"oov": {"value", "ci95", "n"}, ...}, ...}."""
    members: dict[str, dict[str, list[int]]] = defaultdict(lambda: defaultdict(list))
    for i, pair in enumerate(pairs):
        for kind, name in pair.groups.items():
            members[kind][name].append(i)
    return {
        kind: {
            name: accuracy([pairs[i] for i in indices], [scores[i] for i in indices])
            for name, indices in sorted(groups.items(), key=lambda group: _place(group[0]))
        }
        for kind, groups in members.items()
    }


def _place(name: str) -> tuple[float, str]:
    """Groups that are ranges or counts come in the order of their numbers (6-20 before 21-100), after those that are
    words (oov)."""
    number = re.match(r">?(\d+(?:\.\d+)?)", name)
    return float(number[1]) if number else -1.0, name


def subset(pairs: Sequence[Pair], max_items: int | None, seed: int, stratum: str | None) -> list[Pair]:
    """All voices of at most `max_items` items, the same ones for every checkpoint.

    Strata are the values of the group `stratum`; see `sample`.
    """
    return some_of(pairs, lambda pair: pair.item, max_items, seed, lambda pair: pair.groups[stratum] if stratum else "")


def some_of(
    items: Sequence[Item],
    name: Callable[[Item], str],
    max_items: int | None,
    seed: int,
    stratum: Callable[[Item], str] = lambda item: "",
) -> list[Item]:
    """The items, in their order, whose names `sample` takes."""
    strata: dict[str, set[str]] = defaultdict(set)
    for item in items:
        strata[stratum(item)].add(name(item))
    chosen = sample(strata, max_items, seed)
    return [item for item in items if name(item) in chosen]


def sample(strata: Mapping[str, set[str]], max_items: int | None, seed: int) -> set[str]:
    """At most `max_items` of the items of all strata, by their names.

    They are taken from every stratum in proportion to its size, largest remainders first, and within a stratum in the
    order of the digests of (seed, item).
    """
    total = sum(len(items) for items in strata.values())
    if max_items is None or max_items >= total:
        return set().union(*strata.values())
    names = sorted(strata)
    exact = {name: max_items * len(strata[name]) / total for name in names}
    quota = {name: int(exact[name]) for name in names}
    for name in sorted(names, key=lambda name: (quota[name] - exact[name], name))[: max_items - sum(quota.values())]:
        quota[name] += 1
    chosen: set[str] = set()
    for name in names:
        by_digest = sorted(strata[name], key=lambda item: blake3.blake3(f"{seed} {item}".encode()).digest())
        chosen |= set(by_digest[: quota[name]])
    return chosen
