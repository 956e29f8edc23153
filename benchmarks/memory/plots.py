"""Pictures of what was measured: the colour of a curve is its model, the dashes and the marks are its control."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from ttt_moshi.evaluation.report.plots import BLUE, GREEN, GREY, ORANGE, STYLE, VIOLET, render

TEAL = "#0d9488"
COLOURS = {"window": GREY, "ttt-linear": BLUE, "ttt-mlp": VIOLET, "ttt-delta": TEAL, "full": ORANGE}
"""by what the names of models begin with: variants of one memory have its colour"""
AS_TRAINED, BEFORE_CARRYING, BOUNDED = "as trained", "before carrying", "bounded memory"
LOOKS: dict[str, dict[str, Any]] = {
    AS_TRAINED: {"linestyle": "-", "marker": "o"},
    "reset": {"linestyle": (0, (1, 1.5)), "marker": "v"},
    "inner lr 0": {"linestyle": (0, (5, 2)), "marker": "s"},
    "gate 0": {"linestyle": (0, (5, 2, 1, 2)), "marker": "D"},
    "silence between": {"linestyle": (0, (1, 3)), "marker": "*"},
    "memory of another": {"linestyle": (0, (8, 2, 1, 2, 1, 2)), "marker": "x"},
    BOUNDED: {"linestyle": (0, (9, 1.5)), "marker": "^"},
    BEFORE_CARRYING: {"linestyle": (0, (2, 2)), "marker": "+"},
}
LINE = {"linewidth": 1.3, "markersize": 4.0}


def colour_of(model: str) -> str:
    """Raises StopIteration for a model of no known kind."""
    return next(colour for kind, colour in COLOURS.items() if model.startswith(kind))


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
        axes.axvspan(*trained, color=GREEN, alpha=0.15, linewidth=0, label="training distances")
        axes.axhline(chance, color=GREY, linewidth=0.8, linestyle=(0, (1, 3)), label="chance")
        axes.axvline(reach, color=GREY, linewidth=0.8, label="reach of the attention window")
        for arm, curves in summary.items():
            for control, points in curves.items():
                x = [float(distance) for distance in points]
                mean, low, high = ([point[key] for point in points.values()] for key in ("mean", "min", "max"))
                _curve(axes, arm, control, x, mean, low, high)
        _legend(figure, axes, summary, (control for curves in summary.values() for control in curves))
        return figure


def position_figure(curves: dict[str, dict[str, list[dict[str, Any]]]], marks: dict[str, int]) -> Figure:
    """NLL against position, with intervals over documents for the models as trained.

    Args:
        curves: by model and control, points with `from`, `to`, `value` and `ci95`.
        marks: lengths in frames, each drawn as a line, by their description.
    """
    with matplotlib.rc_context(STYLE):
        figure, axes = _axes("frame of the recording", "nats per semantic code")
        for (label, frames), style in zip(marks.items(), ("-", (0, (6, 3))), strict=False):
            axes.axvline(frames, color=GREEN, linewidth=1, linestyle=style, label=label)
        for arm, controls in curves.items():
            for control, points in controls.items():
                x = [(point["from"] * point["to"]) ** 0.5 for point in points]
                low, high = ([point["ci95"][i] for point in points] for i in (0, 1))
                _curve(axes, arm, control, x, [point["value"] for point in points], low, high)
        _legend(figure, axes, curves, (control for controls in curves.values() for control in controls))
        return figure


def capacity_figure(curves: dict[str, dict[str, dict[str, float]]]) -> Figure:
    """Recall against pairs, one panel for each way in which the networks are equal.

    Args:
        curves: by way and network, share right by number of pairs.
    """
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(8.5, 4), layout="constrained")
        panels = figure.subplots(1, len(curves), sharey=True, squeeze=False)[0]
        for axes, (way, networks) in zip(panels, curves.items(), strict=True):
            axes.set_xscale("log", base=2)
            axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
            axes.set_title(way, fontsize=9)
            axes.set_xlabel("pairs heard once")
            axes.spines[["top", "right"]].set_visible(False)
            for label, points in networks.items():
                colour = colour_of(f"ttt-{label.split(',')[0]}")
                axes.plot(
                    [int(n) for n in points], list(points.values()), color=colour, marker="o", label=label, **LINE
                )
            axes.legend(fontsize=8, frameon=False, loc="lower left")
        panels[0].set_ylabel("share of keys whose own value is nearest")
        panels[0].set_ylim(0, 1.03)
        return figure


def _axes(x: str, y: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(8.5, 5), layout="constrained")
    axes = figure.subplots()
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _curve(
    axes: Axes, arm: str, control: str, x: list[float], middle: list[float], low: list[float], high: list[float]
) -> None:
    axes.plot(x, middle, color=colour_of(arm), **LOOKS[control], **LINE)
    if control == AS_TRAINED:  # bands of all curves would hide each other; they differ less than their recordings do
        axes.fill_between(x, low, high, color=colour_of(arm), alpha=0.13, linewidth=0)


def _legend(figure: Figure, axes: Axes, arms: Iterable[str], controls: Iterable[str]) -> None:
    """Below the axes: what lines across them mean, a colour for each model, a look for each control."""
    handles = list(axes.get_legend_handles_labels()[0])
    handles += [Line2D([], [], color=colour_of(arm), linewidth=3, label=arm) for arm in arms]
    handles += [
        Line2D([], [], color=GREY, label=control, **LOOKS[control], **LINE) for control in dict.fromkeys(controls)
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=4, fontsize=8, handlelength=4.5, frameon=False)
