"""Pictures of what was measured."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ttt_moshi.evaluation.report.plots import BLUE, GREEN, GREY, ORANGE, STYLE, VIOLET, render

COLOURS = {"window": GREY, "ttt-linear": BLUE, "ttt-mlp": VIOLET, "full": ORANGE}
CONTROLS = {"reset": ":", "inner lr 0": "--", "gate 0": "-.", "memory of another": (0, (1, 2, 4, 2))}


def save(figure: Figure, path: Path) -> None:
    """Writes `path` as SVG and as PNG."""
    svg, png = render(figure)
    path.with_suffix(".svg").write_text(svg, encoding="utf-8")
    path.with_suffix(".png").write_bytes(png)


def recall_figure(summary: dict[str, Any], chance: float, trained: tuple[int, int], reach: int) -> Figure:
    """Recall against distance: mean over seeds with the range between them; `summary` as in `recall.json`."""
    with matplotlib.rc_context(STYLE):
        figure, axes = _axes("frames between the last pair and the first question", "share of answers that are right")
        axes.set_ylim(0, 1.03)
        axes.axvspan(*trained, color=GREEN, alpha=0.15, lw=0, label="training distances")
        axes.axhline(chance, color=GREY, lw=0.8, ls=(0, (1, 3)), label="chance")
        axes.axvline(reach, color=GREY, lw=0.8, label="reach of the attention window")
        for arm, curves in summary.items():
            for control, points in curves.items():
                x = [int(distance) for distance in points]
                mean = [point["mean"] for point in points.values()]
                label = arm if control == "as trained" else f"{arm}, {control}"
                axes.plot(x, mean, ls=CONTROLS.get(control, "-"), marker=".", color=COLOURS[arm], label=label)
                low, high = ([point[key] for point in points.values()] for key in ("min", "max"))
                axes.fill_between(x, low, high, color=COLOURS[arm], alpha=0.2, lw=0)
        axes.legend(fontsize=7, loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)
        return figure


def position_figure(curves: dict[str, list[dict[str, Any]]], training_frames: int, floor: float) -> Figure:
    """NLL against position with intervals over documents; `curves` as in `position.json`."""
    with matplotlib.rc_context(STYLE):
        figure, axes = _axes("frame of the recording", "nats per semantic code")
        axes.axvline(training_frames, color=GREY, lw=0.8, label="training length")
        axes.axhline(floor, color=GREY, lw=0.8, ls=(0, (1, 3)), label="knowing chain and voice")
        for name, points in curves.items():
            arm, *rest = name.split(", ")
            colour = GREEN if "carried" in rest else COLOURS[arm]
            style = next((CONTROLS[control] for control in rest if control in CONTROLS), "-")
            middle = [(point["from"] * point["to"]) ** 0.5 for point in points]
            axes.plot(middle, [point["value"] for point in points], ls=style, marker=".", color=colour, label=name)
            low, high = ([point["ci95"][i] for point in points] for i in (0, 1))
            axes.fill_between(middle, low, high, color=colour, alpha=0.15, lw=0)
        axes.legend(fontsize=7, loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)
        return figure


def _axes(x: str, y: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(8.5, 4), layout="constrained")
    axes = figure.subplots()
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes
