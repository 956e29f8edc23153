"""The files of one evaluation.

results.json            every number (see `results`)
timing.json             how long it took, where, and with which commit of this code
samples/<task>.jsonl    one line per item: id, score, groups, NLL per codebook
submission/             ZeroSpeech submission files of the tasks that were scored whole
report.md, report.html  the same for people, with plots/*.svg and *.png
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ttt_moshi.evaluation.interchange import ZEROSPEECH, most_items, write_submission
from ttt_moshi.evaluation.outcome import Outcome
from ttt_moshi.evaluation.report.write import write_run_report
from ttt_moshi.evaluation.results import Results, write_json, write_results, write_text


def write_evaluation(out: Path, results: Results, outcomes: Mapping[str, Outcome], timing: dict[str, Any]) -> None:
    """Writes everything; `results.json` last, so that where it is, the rest is."""
    for name, outcome in outcomes.items():
        lines = [json.dumps({"task": name, **sample}, allow_nan=False) + "\n" for sample in outcome.samples]
        write_text(out / "samples" / f"{name}.jsonl", "".join(lines))
        if name in ZEROSPEECH and most_items(results.config) is None:
            write_submission(out / "submission", name, results.config["split"], outcome.scores)
    write_json(out / "timing.json", timing)
    write_run_report(out, results)
    write_results(out / "results.json", results)
