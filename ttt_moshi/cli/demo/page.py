"""The demo's page: what happened, in four sections, as one HTML file that needs nothing else."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined

from ttt_moshi.cli.demo import plots
from ttt_moshi.files import write_atomically
from ttt_moshi.synthetic.recall import CHANCE, reach

WINDOW = 16
"""frames of attention in recall.yaml"""

# The words that codes of the recall task are shown as.
THINGS = [
    "apple", "bell", "boat", "book", "bread", "bridge", "candle", "chair", "cloud", "coat", "door", "drum", "feather",
    "fence", "flute", "garden", "glove", "hammer", "hat", "island", "kettle", "key", "ladder", "lamp", "mirror", "nest",
    "pillow", "river", "rope", "shoe", "spoon", "train",
]  # fmt: skip
COLOURS = [
    "amber", "black", "blue", "brown", "coral", "cyan", "gold", "green", "grey", "lilac", "olive", "pink", "red",
    "silver", "white", "yellow",
]  # fmt: skip

TASKS = {
    "swuggy": "tells words from made-up words",
    "sblimp": "tells right sentences from wrong ones",
    "ssc": "knows how a story ends",
    "tsc": "knows which ending is of this story",
}
COMPONENTS = {
    "text_words": "next word",
    "semantic": "next sound: what is said",
    "acoustic": "next sound: how it sounds",
}
MODELS = {"base": "base", "trained": "trained", "off": "trained, memory off"}
CONTROLS = {
    "off": "memory switched off",
    "no_writes": "memory never written",
    "reset": f"memory emptied every {WINDOW} frames",
    "another": "memory of another conversation",
}


def write_page(path: Path, facts: dict[str, Any], program: str, minutes: float) -> None:
    """Writes the page.

    Args:
        facts: as `steps.Demo` gathers them.
        program: how `ttt-moshi` is called in this environment.
        minutes: that the demo took.
    """
    environment = Environment(
        loader=PackageLoader("ttt_moshi.cli.demo", "."),
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    environment.filters["percent"] = percent
    environment.filters["clock"] = lambda seconds: f"{int(seconds) // 60}:{int(seconds) % 60:02}"
    page = environment.get_template("page.html").render(
        remembers=_remembers(facts["remembers"]),
        lost=facts["lost"],
        learns=_learns(facts["learns"], facts["lost"]),
        talks={**facts["talks"], "mp3": base64.b64encode(facts["talks"]["talk"]["mp3"]).decode()},
        program=program,
        minutes=minutes,
    )
    write_atomically(path, page.encode())


def percent(share: float) -> str:
    """Whole percents, but nothing short of all of them is called 100 %."""
    number = f"{100 * share:.0f}" if share == 1 or share < 0.995 else f"{100 * share:.1f}"
    return f"{number}\N{NO-BREAK SPACE}%"


def _remembers(facts: dict[str, Any]) -> dict[str, Any]:
    curves, looks = facts["recall"]["curves"], facts["hour"]["looks"]
    farthest = max(curves["ttt"], key=int)
    values = dict(facts["told"]["facts"])
    asked = [
        {
            "thing": THINGS[key],
            "told": COLOURS[values[key]],
            "resumed": _colour(facts["resumed"]["answers"][i]),
            "fresh": _colour(facts["fresh"]["answers"][i]),
        }
        for i, key in enumerate(facts["resumed"]["asked"])
    ]
    return {
        "plot": plots.recall(curves, CHANCE),
        "hour": plots.hour(looks),
        "farthest": int(farthest),
        "ttt": curves["ttt"][farthest]["value"],
        "window": curves["window"][farthest]["value"],
        "chance": CHANCE,
        "window_frames": WINDOW,
        "reach": reach(WINDOW),
        "questions": facts["recall"]["questions"],
        "distance": facts["recall"]["control_distance"],
        "controls": [
            ("as trained", _cell(curves["ttt"][str(facts["recall"]["control_distance"])], "value")),
            *((CONTROLS[name], _cell(point, "value")) for name, point in facts["recall"]["controls"].items()),
        ],
        "facts": [(THINGS[key], COLOURS[value]) for key, value in facts["told"]["facts"]],
        "asked": asked,
        "resumed": facts["resumed"],
        "fresh": facts["fresh"],
        "session_kb": facts["session_bytes"] / facts["resumed"]["conversations"] / 1000,
        "first_ms": looks[0]["milliseconds"],
        "last_ms": looks[-1]["milliseconds"],
        "same_size": len({look["state_bytes"] for look in looks}) == 1,
    }


def _colour(code: int) -> str:
    """What the model said; it may also say a code that is no answer at all."""
    return COLOURS[code] if code < len(COLOURS) else "(something else)"


def _learns(facts: dict[str, Any], lost: dict[str, Any]) -> dict[str, Any]:
    records, results = facts["records"], facts["results"]
    smoothed = plots.smooth(np.array([record["loss"] for record in records]))
    return {
        "plot": plots.loss(records, lost["killed_at"], lost["resumed_at"]),
        "steps": len(records),
        "first": smoothed[0],
        "last": smoothed[-1],
        "models": list(MODELS.values()),
        "tables": [
            ("surprise at what comes next, in nats: lower is better", _component_rows(results), "{:.2f}"),
            ("right choices of two: higher is better, 50 % is guessing", _task_rows(results), "percent"),
        ],
    }


def _component_rows(results: dict[str, Any]) -> list[tuple[str, list[dict[str, Any]]]]:
    found = {name: results[name]["tasks"]["perplexity"]["components"] for name in MODELS}
    return [(what, [_cell(found[name][part], "nll") for name in MODELS]) for part, what in COMPONENTS.items()]


def _task_rows(results: dict[str, Any]) -> list[tuple[str, list[dict[str, Any]]]]:
    found = {name: results[name]["tasks"] for name in MODELS}
    return [
        (f"{what} ({task})", [_cell(found[name][task], "value") for name in MODELS])
        for task, what in TASKS.items()
        if all(found[name].get(task, {}).get("status") == "ok" for name in MODELS)
    ]


def _cell(entry: dict[str, Any], key: str) -> dict[str, Any]:
    """A number with its interval, None where all items came out alike and an interval would say nothing."""
    low, high = entry["ci95"]
    return {"value": entry[key], "interval": (low, high) if high > low else None}
