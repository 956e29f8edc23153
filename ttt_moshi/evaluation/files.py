"""The files of one evaluation.

results.json            every number (see `results`)
timing.json             how long it took and where, which no two runs share
samples/<task>.jsonl    one line per item: id, score, groups, NLL per codebook
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ttt_moshi.evaluation.outcome import Outcome
from ttt_moshi.evaluation.results import Results, write_json, write_results, write_text


def write_evaluation(out: Path, results: Results, outcomes: Mapping[str, Outcome], timing: dict[str, Any]) -> None:
    """Writes everything; `results.json` last, so that where it is, the rest is."""
    for name, outcome in outcomes.items():
        lines = [json.dumps({"task": name, **sample}, allow_nan=False) + "\n" for sample in outcome.samples]
        write_text(out / "samples" / f"{name}.jsonl", "".join(lines))
    write_json(out / "timing.json", timing)
    write_results(out / "results.json", results)
