"""Uncertainty: bootstrap intervals over items, paired comparisons, McNemar's test.

The resampled unit is always the item (a clip, a word pair with all its voices, a book, a dialogue with all its
questions), never the token or the voice: tokens of one recording are not independent. Every function is a pure function
of its arguments; resampling uses its own generator with a fixed seed, so two evaluations print the same interval.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np

Interval = tuple[float, float]
Item = TypeVar("Item", bound=Hashable)

RESAMPLES = 2000
SEED = 0
FEWEST = 5
"""items of which an interval says something: fewer may be alike, and one has an interval of no width"""


def _resampled_sums(values: np.ndarray, resamples: int, seed: int) -> np.ndarray:
    """Sums over bootstrap samples of the rows: values [N, C] -> [resamples, C]; in pieces that fit into memory.

    Scores of pairs have a handful of distinct values, and then it is enough to draw how often each of these comes up.
    """
    generator = np.random.default_rng(seed)
    n = len(values)
    distinct, counts = np.unique(values, axis=0, return_counts=True)
    few = 4 * len(distinct) <= n
    chunk = max(1, 4_000_000 // n)
    sums = []
    for start in range(0, resamples, chunk):
        size = min(chunk, resamples - start)
        if few:
            sums.append(generator.multinomial(n, counts / n, size=size) @ distinct)
        else:
            rows = generator.integers(n, size=(size, n))
            sums.append(np.stack([column[rows].sum(axis=1) for column in values.T], axis=1))
    return np.concatenate(sums)


def _percentiles(samples: np.ndarray) -> Interval:
    low, high = np.percentile(samples, [2.5, 97.5])
    return float(low), float(high)


def bootstrap_mean(values: np.ndarray, resamples: int = RESAMPLES, seed: int = SEED) -> Interval:
    """95 % percentile interval of the mean of `values` [N], one value per item."""
    return bootstrap_ratio(values, np.ones(len(values)), resamples, seed)


def bootstrap_ratio(sums: np.ndarray, counts: np.ndarray, resamples: int = RESAMPLES, seed: int = SEED) -> Interval:
    """95 % percentile interval of sum(sums) / sum(counts), items resampled: the interval of a token-weighted mean.

    A resample without any token says nothing about the ratio and is left out.
    """
    kept = counts > 0
    samples = _resampled_sums(np.stack([sums[kept], counts[kept]], axis=1), resamples, seed)
    return _percentiles(samples[:, 0] / samples[:, 1])


def mean_and_interval(values: np.ndarray) -> dict[str, Any]:
    """{"value", "ci95"} as results hold them: mean of `values` [N], one value per item, and its `bootstrap_mean`."""
    return {"value": float(values.mean()), "ci95": list(bootstrap_mean(values))}


def mean_by_item(items: Iterable[Item], values: Iterable[float]) -> dict[Item, float]:
    """Mean of the values of each item, in the order of the items' first ones."""
    own: dict[Item, list[float]] = {}
    for item, value in zip(items, values, strict=True):
        own.setdefault(item, []).append(float(value))
    return {item: float(np.mean(group)) for item, group in own.items()}


def item_means(items: Iterable[Hashable], values: Iterable[float]) -> np.ndarray:
    """`mean_by_item` without the items, float64 [items]: what depends on one another is resampled as one."""
    return np.array(list(mean_by_item(items, values).values()))


def means_by_name(samples: Sequence[Mapping[str, Any]], names: Sequence[str]) -> dict[str, Any]:
    """{name: {"value", "ci95", "n"}} over the samples that have it, without the names that none has.

    Samples of one `item` are averaged first; those without are items themselves.
    """
    found = {}
    for name in names:
        own = [(sample.get("item", i), sample[name]) for i, sample in enumerate(samples) if name in sample]
        if own:
            values = item_means([item for item, _ in own], [value for _, value in own])
            found[name] = {**mean_and_interval(values), "n": len(values)}
    return found


def correlation(x: np.ndarray, y: np.ndarray, resamples: int = RESAMPLES, seed: int = SEED) -> tuple[float, Interval]:
    """Pearson's correlation of two values of every item, [N] each, with its 95 % percentile interval.

    NaN where one of the two is the same for all items; resamples in which it is are left out.
    """
    x, y = x - x.mean(), y - y.mean()
    values = np.stack([x, y, x * x, y * y, x * y], axis=1)
    (whole,) = _pearson(values.sum(axis=0, keepdims=True), len(x))
    samples = _pearson(_resampled_sums(values, resamples, seed), len(x))
    defined = samples[~np.isnan(samples)]
    return float(whole), _percentiles(defined) if len(defined) else (math.nan, math.nan)


def _pearson(sums: np.ndarray, n: int) -> np.ndarray:
    """Correlations [M] from sums [M, 5] of x, y, x², y², xy over `n` items."""
    x, y, xx, yy, xy = sums.T / n
    variances = np.stack([xx - x * x, yy - y * y])
    varies = (variances > 1e-12 * np.stack([xx, yy])).all(axis=0)
    spread = np.sqrt(np.where(varies, variances[0] * variances[1], np.nan))
    return np.clip((xy - x * y) / spread, -1.0, 1.0)


def paired_difference(first: np.ndarray, second: np.ndarray, resamples: int = RESAMPLES, seed: int = SEED) -> Interval:
    """95 % percentile interval of mean(second - first) over the same items."""
    return bootstrap_mean(second - first, resamples, seed)


def mcnemar(first_only: int, second_only: int) -> float:
    """Exact two-sided p value: of the items that exactly one of two systems got right, is a fair coin credible?"""
    n = first_only + second_only
    if n == 0:
        return 1.0
    k = min(first_only, second_only)
    log_terms = [math.lgamma(n + 1) - math.lgamma(i + 1) - math.lgamma(n - i + 1) for i in range(k + 1)]
    tail = math.fsum(math.exp(term - n * math.log(2)) for term in log_terms)
    return min(1.0, 2.0 * tail)
