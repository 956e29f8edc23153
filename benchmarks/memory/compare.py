"""What the curves say: differences over the same documents, and the bounds they must keep."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np

from benchmarks.memory.curves import BINS, CLIP_FRAMES
from benchmarks.memory.measure import mean_and_interval
from benchmarks.memory.plots import AS_TRAINED, BEFORE_CARRYING, BOUNDED

CLIP, FAR, LAST = BINS.index(CLIP_FRAMES) - 1, BINS.index(4 * CLIP_FRAMES) - 1, len(BINS) - 2
"""places of the bins that end with a training clip, with four times its length, and with a test recording"""

Curves = dict[str, dict[str, np.ndarray]]
"""by model and control, NLL [seeds, documents, bins]"""


def gather(runs: dict[str, Any]) -> Curves:
    """The curves of all seeds, from runs named `model/seed`."""
    found: dict[str, dict[str, list[Any]]] = {}
    for key, run in runs.items():
        for control, values in run["by_bin"].items():
            found.setdefault(key.split("/")[0], {}).setdefault(control, []).append(values)
    return {arm: {control: np.array(v) for control, v in curves.items()} for arm, curves in found.items()}


def points(curves: Curves) -> dict[str, dict[str, list[dict[str, Any]]]]:
    """Every curve's mean over seeds with its interval over documents, bin by bin."""
    return {
        arm: {
            control: [
                {"from": start, "to": stop, **mean_and_interval(values[:, :, i].mean(0))}
                for i, (start, stop) in enumerate(pairwise(BINS))
            ]
            for control, values in by_control.items()
        }
        for arm, by_control in curves.items()
    }


def compare(curves: Curves) -> list[dict[str, Any]]:
    """Differences of NLL, negative where the first named is better: mean over seeds, interval over documents, and the
    value of every seed. Where something is expected of a difference, `met` says whether it holds.
    """
    found = []
    window = curves.get("window", {}).get(AS_TRAINED)
    for arm, by_control in curves.items():
        plain = by_control[AS_TRAINED]
        if arm.startswith("window"):
            change = _change(arm, plain, LAST, CLIP)
            found.append({**change, "expected": "level", "met": change["ci95"][0] <= 0 <= change["ci95"][1]})
            continue
        if window is not None:
            for place in (CLIP, FAR, LAST):
                name = f"{arm} - window, frames {_bin(place)}"
                found.append(_lower(difference(name, plain[..., place], window[..., place])))
        found += [_no_higher(_change(arm, plain, place, place - 1)) for place in range(CLIP - 2, FAR + 1)]
        found.append(_no_higher(_change(arm, plain, FAR, CLIP)))
        found += [_change(arm, plain, LAST, CLIP), _change(arm, plain, LAST, FAR)]
        for control, values in by_control.items():
            if control == BEFORE_CARRYING:
                found += [_change(f"{arm}, {control}", values, place, CLIP) for place in (FAR, LAST)]
            elif control == BOUNDED:
                found.append(_no_higher(_change(f"{arm}, {control}", values, FAR, CLIP)))
                found.append(_change(f"{arm}, {control}", values, LAST, CLIP))
                found.append(
                    difference(f"{arm}, {control} - as trained, last bin", values[..., LAST], plain[..., LAST])
                )
            elif control != AS_TRAINED:
                change = difference(f"{arm}, as trained - {control}, last bin", plain[..., LAST], values[..., LAST])
                found.append(_lower(change))
    return found


def _bin(place: int) -> str:
    return f"{BINS[place]} to {BINS[place + 1]}"


def _change(name: str, nll: np.ndarray, place: int, before: int) -> dict[str, Any]:
    """From one bin to another of the same curve [seeds, documents, bins]."""
    return difference(f"{name}, frames {_bin(place)} - {_bin(before)}", nll[..., place], nll[..., before])


def difference(name: str, first: np.ndarray, second: np.ndarray) -> dict[str, Any]:
    """Of NLL [seeds, documents]: the mean over seeds with its interval over documents, and the same of every seed."""
    apart = first - second
    seeds = [mean_and_interval(values) for values in apart]
    return {"name": name, **mean_and_interval(apart.mean(0)), "seeds": seeds}


def _lower(change: dict[str, Any]) -> dict[str, Any]:
    """Expects every seed's interval to lie below zero."""
    return {**change, "expected": "lower", "met": all(seed["ci95"][1] < 0 for seed in change["seeds"])}


def _no_higher(change: dict[str, Any]) -> dict[str, Any]:
    """Expects the interval of the mean over seeds not to lie above zero."""
    return {**change, "expected": "no higher", "met": change["ci95"][0] <= 0}
