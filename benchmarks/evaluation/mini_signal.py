"""Do the benchmarks tell more than their labels by accident would?

    python benchmarks/evaluation/mini_signal.py RESULTS [RESULTS ...] [--shuffles N] [--out OUT]

Takes evaluations that are there already (folders with `results.json` and `samples/`) and prints a table: every accuracy
with its interval, and beside it what labels without meaning would give. Right and wrong are exchanged at random, item
by item, so many times; shown are the middle 95 % of the accuracies and the share of them that reach the true one. No
model runs.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np

from ttt_moshi.evaluation.results import OK, read_results

SHUFFLES = 10_000


def items_of(samples: Path) -> np.ndarray:
    """float64 [items]: the share of an item's pairs that were decided rightly, ties counting half."""
    found: dict[str, list[float]] = {}
    for line in samples.read_text(encoding="utf-8").splitlines():
        sample = json.loads(line)
        found.setdefault(sample["item"], []).append(sample["score"])
    return np.array([np.mean(scores) for scores in found.values()])


def shuffled_labels(items: np.ndarray, shuffles: int, seed: int) -> dict[str, Any]:
    """{"range95": middle 95 % of the accuracies of so many shuffles, "p": share of them at least as high as the true
    one, the true one among them}"""
    generator = np.random.default_rng(seed)
    turned = generator.random((shuffles, len(items))) < 0.5
    values = np.where(turned, 1.0 - items, items).mean(axis=1)
    low, high = np.percentile(values, [2.5, 97.5])
    at_least = int((values >= items.mean() - 1e-12).sum())
    return {"range95": [float(low), float(high)], "p": (1 + at_least) / (1 + shuffles)}


def signal(folder: Path, shuffles: int, seed: int = 0) -> dict[str, dict[str, Any]]:
    """For every two-alternative task of an evaluation its accuracy, and that of shuffled labels."""
    results = read_results(folder / "results.json")
    found = {}
    for name, task in results.tasks.items():
        if task["status"] == OK and "chance" in task:
            items = items_of(folder / "samples" / f"{name}.jsonl")
            assert len(items) == task["n"] and abs(items.mean() - task["value"]) < 1e-9, (
                f"{name}: not of one evaluation"
            )
            control = shuffled_labels(items, shuffles, seed)
            found[name] = {"value": task["value"], "ci95": task["ci95"], "n": task["n"], "shuffled_labels": control}
    return found


def table(found: dict[str, dict[str, Any]]) -> str:
    """The Markdown table of one evaluation."""
    lines = ["| accuracy | value (95 % interval) | items | shuffled labels | p |", "|---|---|---|---|---|"]
    for name, task in found.items():
        low, high = task["ci95"]
        control = task["shuffled_labels"]
        bounds = " – ".join(f"{bound:.3f}" for bound in control["range95"])
        value = f"{task['value']:.3f} ({low:.3f} – {high:.3f})"
        lines.append(f"| `{name}` | {value} | {task['n']} | {bounds} | {control['p']:.4f} |")
    return "\n".join(lines)


def main() -> None:
    """Prints a table for every evaluation."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, nargs="+", help="folders of evaluations")
    parser.add_argument("--shuffles", type=int, default=SHUFFLES)
    parser.add_argument("--out", type=Path, help="JSON file")
    options = parser.parse_args()
    found = {str(folder): signal(folder, options.shuffles) for folder in options.results}
    for folder, tasks in found.items():
        print(f"\n{folder}\n\n{table(tasks)}")
    if options.out:
        options.out.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
