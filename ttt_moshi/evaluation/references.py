"""Published values to hold a result against, as others quote them: the table of the report itself was not read here.

The released Moshiko and Moshika are the models after multi-stream training; earlier stages of training score higher on
sWUGGY and sBLIMP (74.8 and 59.9 audio-only) and are other models. Values: of Moshi's technical report (arXiv
2410.00037), accuracies over the full sets with the semantic tokens weighted 100 to 1, user silent, text absent.
"""

from __future__ import annotations

from typing import Any

REFERENCES: dict[str, dict[str, float]] = {
    "moshiko": {"swuggy": 0.63, "sblimp": 0.552, "tsc": 0.836, "ssc": 0.627},
}


def add_reference(tasks: dict[str, dict[str, Any]], name: str) -> None:
    """Adds {"reference": {"name", "value", "deviation"}} to every measured task that has a published value."""
    for task, value in REFERENCES[name].items():
        if task in tasks and tasks[task]["status"] == "ok":
            deviation = tasks[task]["value"] - value
            tasks[task]["reference"] = {"name": name, "value": value, "deviation": deviation}
