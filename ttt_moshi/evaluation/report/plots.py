"""Pictures of measured points: values with their intervals, curves, and marks for the window and the training length.

Every function takes entries of `results.json` and returns a figure; nothing is drawn that is not in them.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import ScalarFormatter

from ttt_moshi.evaluation.compare import is_comparable

matplotlib.use("agg")

# Middle tones, readable on white and on black.
BLUE, ORANGE, GREEN, VIOLET, GREY = "#3b82f6", "#ea7317", "#16a34a", "#8b5cf6", "#888888"
COLOURS = {"semantic": ORANGE, "acoustic": BLUE, "text": GREEN}

NO_METADATA = dict.fromkeys(("Date", "Creator", "Format", "Type"))  # equal figures are equal bytes

STYLE: dict[Any, Any] = {
    "svg.hashsalt": "ttt-moshi",
    "svg.fonttype": "none",
    "font.size": 10,
    "axes.edgecolor": GREY,
    "axes.labelcolor": GREY,
    "xtick.color": GREY,
    "ytick.color": GREY,
    "text.color": GREY,
}


def render(figure: Figure) -> tuple[str, bytes]:
    """SVG text and PNG bytes."""
    with matplotlib.rc_context(STYLE):
        svg, png = io.StringIO(), io.BytesIO()
        figure.savefig(svg, format="svg", transparent=True, metadata=NO_METADATA)
        figure.savefig(png, format="png", dpi=144, facecolor="white", metadata={"Software": None})
    return svg.getvalue(), png.getvalue()


def figure_for(name: str, task: dict[str, Any], training_frames: int | None) -> Figure | None:
    """The picture of one task's entry, None for a task without one. `training_frames`: length of a training clip."""
    with matplotlib.rc_context(STYLE):
        if name == "perplexity":
            return components(task)
        if "reductions" in task:
            return two_choices(task)
        if "bins" in task:
            return by_position(task, training_frames)
        if "contexts" in task:
            return by_context(task, training_frames)
        if "distances" in task:
            return by_distance(task)
        if "layers" in task:
            return inner_loss(task)
    return None


def _axes(height: float = 3.6, columns: int = 1, rows: int = 1) -> tuple[Figure, list[Axes]]:
    figure = Figure(figsize=(8.6, height * rows), layout="constrained")
    axes = list(figure.subplots(rows, columns, squeeze=False).ravel())
    for one in axes:
        one.spines[["top", "right"]].set_visible(False)
        one.grid(axis="y", alpha=0.25)
    return figure, axes


def _bars(axes: Axes, labels: Sequence[str], entries: Sequence[dict[str, Any]], colours: Sequence[str]) -> None:
    values = [entry["value"] for entry in entries]
    low = [v - e["ci95"][0] for v, e in zip(values, entries, strict=True)]
    high = [e["ci95"][1] - v for v, e in zip(values, entries, strict=True)]
    errors = [[max(0.0, x) for x in low], [max(0.0, x) for x in high]]
    axes.bar(labels, values, color=colours, yerr=errors, ecolor=GREY, capsize=3)
    for label in axes.get_xticklabels():
        label.set(rotation=40, ha="right", rotation_mode="anchor")


def components(task: dict[str, Any]) -> Figure:
    """NLL of every kind of token, and by the position in the clip."""
    figure, (axes, curve) = _axes(3.8, 2)
    entries = {n: c for n, c in task["components"].items() if n not in ("text", "acoustic", "audio")}
    colours = [GREEN if n.startswith("text") else ORANGE if n == "semantic" else BLUE for n in entries]
    _bars(
        axes,
        [n.replace("_", " ") for n in entries],
        [{"value": c["nll"], "ci95": c["ci95"]} for c in entries.values()],
        colours,
    )
    axes.set_ylabel("NLL (nats per token)")
    for group, bins in task["positions"].items():
        points = [{"value": b["nll"], "ci95": b["ci95"]} for b in bins]
        _curve(curve, [(b["start"] + b["stop"]) / 2 for b in bins], points, group, COLOURS[group])
    _doubling(curve)
    curve.set_xlabel("frames since the start of the clip")
    curve.legend(frameon=False, fontsize=8)
    return figure


def two_choices(task: dict[str, Any]) -> Figure:
    """Accuracy by reduction, and by group, with the line of chance."""
    kinds = [kind for kind in task["groups"] if kind not in ("subtype", "length")]
    figure, axes = _axes(3.8, 1 + len(kinds[:1]))
    means = {n.split(".")[0]: e for n, e in task["reductions"].items() if n.endswith(".mean")}
    _bars(axes[0], list(means), list(means.values()), [ORANGE] * len(means))
    axes[0].set_ylabel("accuracy")
    axes[0].set_title("by reduction (mean)", color=GREY)
    for one, kind in zip(axes[1:], kinds, strict=False):
        groups = task["groups"][kind]
        if kind == "distance":
            groups = dict(sorted(groups.items(), key=lambda item: float(item[0])))
        _bars(one, [f"{n}\nn={e['n']}" for n, e in groups.items()], list(groups.values()), [BLUE] * len(groups))
        one.set_title(f"by {kind}", color=GREY)
    for one in axes:
        one.axhline(task["chance"], color=VIOLET, linestyle="--", linewidth=1.2)
        one.set_ylim(0, 1.05)
    return figure


def _curve(axes: Axes, x: Sequence[float], points: Sequence[dict[str, Any]], label: str, colour: str) -> None:
    axes.plot(x, [p["value"] for p in points], marker="o", markersize=3.5, color=colour, label=label)
    axes.fill_between(
        x, [p["ci95"][0] for p in points], [p["ci95"][1] for p in points], color=colour, alpha=0.18, linewidth=0
    )


def _mark(axes: Axes, window: int, training_frames: int | None) -> None:
    axes.axvline(window, color=VIOLET, linestyle="--", linewidth=1.2, label=f"attention window, {window} frames")
    if training_frames is not None:
        axes.axvline(
            training_frames, color=GREY, linestyle=":", linewidth=1.4, label=f"training clip, {training_frames} frames"
        )
    _doubling(axes)
    axes.legend(frameon=False, fontsize=8)


def _doubling(axes: Axes) -> None:
    """Frames on an axis where equal steps are doublings."""
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter(ScalarFormatter())


def by_position(task: dict[str, Any], training_frames: int | None) -> Figure:
    """NLL in bins of the position; a point stands at the bin's middle."""
    figure, (axes,) = _axes()
    for group, colour in COLOURS.items():
        bins = [b for b in task["bins"] if group in b]
        if bins:
            _curve(axes, [(b["start"] + b["stop"]) / 2 for b in bins], [b[group] for b in bins], group, colour)
    axes.set_xlabel("frames since the start of the recording (12.5 per second)")
    axes.set_ylabel("NLL (nats per token)")
    _mark(axes, task["window"], training_frames)
    return figure


def by_context(task: dict[str, Any], training_frames: int | None) -> Figure:
    """NLL of the same targets after ever more context."""
    figure, (axes,) = _axes()
    for group, colour in COLOURS.items():
        points = [c for c in task["contexts"] if group in c]
        if points:
            _curve(axes, [c["frames"] for c in points], [c[group] for c in points], group, colour)
    axes.set_xlabel("frames of context before the same targets")
    axes.set_ylabel("NLL (nats per token)")
    _mark(axes, task["window"], training_frames)
    return figure


def by_distance(task: dict[str, Any]) -> Figure:
    """What a second hearing gains, by how long ago the first was."""
    figure, (axes,) = _axes()
    x = [d["frames"] for d in task["distances"]]
    if "heard_minus_unheard" in task["distances"][0]:
        _curve(axes, x, [d["heard_minus_unheard"] for d in task["distances"]], "heard - never heard", ORANGE)
    _curve(axes, x, [d["second_minus_first"] for d in task["distances"]], "second - first hearing", BLUE)
    axes.axhline(0, color=GREY, linewidth=0.8)
    axes.set_xlabel("frames between the two hearings")
    axes.set_ylabel("difference of NLL (nats)")
    _mark(axes, task["window"], None)
    return figure


def inner_loss(task: dict[str, Any]) -> Figure:
    """The inner loss of each layer under the initial, the previous and the updated weights."""
    layers = task["layers"]
    columns = min(4, len(layers))
    figure, axes = _axes(3.6, columns, -(-len(layers) // columns))
    for unused in axes[len(layers) :]:
        unused.set_visible(False)
    for one, (layer, curves) in zip(axes, layers.items(), strict=False):
        for name, colour in (("start", GREY), ("before", BLUE), ("after", ORANGE)):
            step = task["smoothing"]
            x = [(i + 0.5) * step for i in range(len(curves[name]))]
            one.plot(x, curves[name], color=colour, label={"start": "W0", "before": "before", "after": "after"}[name])
        one.set_title(f"layer {layer}", color=GREY)
        one.set_xlabel("frame")
    axes[0].set_ylabel("inner loss")
    axes[0].legend(frameon=False, fontsize=8)
    return figure


def trade_off(
    labels: Sequence[str], x: Sequence[float], panels: dict[str, Sequence[float]], best: Sequence[bool]
) -> Figure:
    """Every checkpoint's perplexity against each of its accuracies; filled where no other checkpoint beats it."""
    with matplotlib.rc_context(STYLE):
        figure, axes = _axes(3.4, len(panels))
        for one, (name, y) in zip(axes, panels.items(), strict=True):
            for label, px, py, unbeaten in zip(labels, x, y, best, strict=True):
                one.plot(px, py, marker="o", color=ORANGE, markerfacecolor=ORANGE if unbeaten else "none")
                one.annotate(label, (px, py), xytext=(4, 4), textcoords="offset points", fontsize=8)
            one.set_xlabel("perplexity (lower is better)")
            one.set_title(name, color=GREY)
        axes[0].set_ylabel("accuracy")
    return figure


def over_steps(checkpoints: Sequence[dict[str, Any]], values: Sequence[dict[str, Any]], chance: float | None) -> Figure:
    """One task's value at several training steps, a line for every way in which the model was read; evaluations that
    lack it, or whose value is of another quantity, leave a gap. The base, where it is there, goes on as a thin line.

    Args:
        checkpoints: "step", "way" and "kind" of each evaluation.
    """
    with matplotlib.rc_context(STYLE):
        figure, (axes,) = _axes(3.0)
        ways = list(dict.fromkeys(c["way"] for c in checkpoints))
        comparable = [(c, v) for c, v in zip(checkpoints, values, strict=True) if is_comparable(v)]
        found = sorted(comparable, key=lambda pair: pair[0]["step"])
        for way, colour in zip(ways, (ORANGE, BLUE, GREEN, VIOLET) * len(ways), strict=False):
            known = [(c["step"], v) for c, v in found if c["way"] == way]
            y = [v["value"] for _, v in known]
            # Of equal values the mean may be the last bit beside the interval.
            low = [max(0.0, v["value"] - v["ci95"][0]) for _, v in known]
            high = [max(0.0, v["ci95"][1] - v["value"]) for _, v in known]
            label = way or "as it is"
            axes.errorbar([s for s, _ in known], y, [low, high], marker="o", capsize=3, color=colour, label=label)
        for c, v in found:
            if c["kind"] == "base" and not c["way"]:
                axes.axhline(v["value"], color=GREY, linewidth=1.0, label="base")
        if chance is not None:
            axes.axhline(chance, color=GREY, linestyle="--", linewidth=1.2, label="chance")
        axes.set_xlabel("training step")
        if len(axes.get_legend_handles_labels()[0]) > 1:
            axes.legend(frameon=False, fontsize=8)
    return figure
