"""The page's pictures, as SVG that takes its text colour from the page, so that it is readable on light and on dark."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

matplotlib.use("agg")

BLUE, ORANGE, GREY = "#3b82f6", "#ea7317", "#8a8f98"
INK = "#010203"
"""stands for the page's own text colour"""
STYLE: dict[Any, Any] = {
    "svg.hashsalt": "ttt-moshi",
    "svg.fonttype": "none",
    "font.family": ["sans-serif"],
    "font.size": 10,
    **dict.fromkeys(("axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color", "text.color"), INK),
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.color": GREY,
    "grid.alpha": 0.3,
}
# As wide as a telephone, so that its text is no smaller there than the page's.
SIZE = (5.0, 2.9)


def recall(curves: dict[str, dict[str, dict[str, Any]]], chance: float) -> str:
    """Share of right answers against the frames between fact and question."""
    with matplotlib.rc_context(STYLE):
        figure, axes = _figure("frames between fact and question (12.5 are a second)", "answers right")
        axes.axhline(100 * chance, color=GREY, linestyle=(0, (4, 3)), linewidth=1)
        for name, colour, label in (("ttt", BLUE, "with TTT memory"), ("window", ORANGE, "attention alone")):
            points = curves[name]
            x = [int(distance) for distance in points]
            y, low, high = _percent(points.values())
            axes.fill_between(x, low, high, color=colour, alpha=0.2, linewidth=0)
            axes.plot(x, y, color=colour, marker="o", markersize=4, label=label)
        axes.set_xscale("log", base=2)
        axes.set_xticks(x, [f"{value:,}" for value in x])
        axes.set_ylim(0, 103)
        axes.yaxis.set_major_formatter("{x:.0f} %")
        axes.text(x[0], 100 * chance + 4, "guessing", fontsize=9)
        axes.legend(frameon=False, loc="center")
        return _svg(figure)


def hour(looks: Sequence[dict[str, float]]) -> str:
    """Milliseconds of one frame in the course of an hour."""
    with matplotlib.rc_context(STYLE):
        figure, axes = _figure("minutes of conversation so far", "milliseconds for one frame")
        y = [look["milliseconds"] for look in looks]
        axes.plot([look["minute"] for look in looks], y, color=BLUE, marker="o", markersize=4)
        axes.set_ylim(0, 1.6 * max(y))
        axes.set_xlim(left=0)
        return _svg(figure)


def loss(records: Sequence[dict[str, Any]], killed_at: int, resumed_at: int) -> str:
    """Training loss: every step, and smoothed; where the run was killed and resumed is marked."""
    with matplotlib.rc_context(STYLE):
        figure, axes = _figure("training step", "loss (nats)")
        steps, losses = [r["step"] for r in records], np.array([r["loss"] for r in records])
        axes.plot(steps, losses, color=BLUE, alpha=0.6, linewidth=0.8, label="every step")
        axes.plot(steps, smooth(losses), color=BLUE, linewidth=2.2, label="smoothed")
        axes.axvspan(resumed_at, killed_at, color=ORANGE, alpha=0.2, linewidth=0, label="done twice: killed, resumed")
        axes.set_xlim(0, steps[-1])
        axes.legend(frameon=False, loc="upper right")
        return _svg(figure)


def smooth(values: np.ndarray, width: int = 10) -> np.ndarray:
    """Mean over the nearest `width` values on both sides, as far as there are any."""
    return np.array([values[max(0, i - width // 2) : i + width // 2 + 1].mean() for i in range(len(values))])


def _percent(points: Any) -> tuple[list[float], list[float], list[float]]:
    rows = [(100 * point["value"], 100 * point["ci95"][0], 100 * point["ci95"][1]) for point in points]
    y, low, high = zip(*rows, strict=True)
    return list(y), list(low), list(high)


def _figure(x: str, y: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=SIZE, layout="constrained")
    axes = figure.subplots()
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.grid(axis="y")
    return figure, axes


def _svg(figure: Figure) -> str:
    text = io.StringIO()
    figure.savefig(text, format="svg", transparent=True, metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    svg = text.getvalue()
    return svg[svg.index("<svg") :].replace(INK, "currentColor")
