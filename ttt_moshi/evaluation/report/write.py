"""Writes reports: Markdown, pictures and one HTML page."""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ttt_moshi.evaluation.compare import Evaluation, compare, is_comparable
from ttt_moshi.evaluation.documents import read_json
from ttt_moshi.evaluation.errors import well_formed, writing
from ttt_moshi.evaluation.report.markdown import UNBEATEN, comparison_report, run_report
from ttt_moshi.evaluation.report.page import Recorded, page
from ttt_moshi.evaluation.results import OK, Results, write_json, write_text
from ttt_moshi.extras import installed, remedy
from ttt_moshi.files import write_atomically
from ttt_moshi.frames import FRAME_RATE

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_TOLD = ("state_id", "dtype", "sink")
"""what conversations and results both say about the model"""
COMPARISON = "comparison.json"
MOST_PLAYERS = 20
"""conversations of a task that its report plays"""
ACCURACIES = ("swuggy", "sblimp", "ssc", "tsc", "salmon", "needle")


def write_run_report(out: Path, results: Results, into: Path | None = None) -> Path:
    """`report.md`, `report.html` and `plots/*.{svg,png}` of one evaluation; returns the page.

    Args:
        out: the folder of the evaluation, where its conversations are.
        into: where the report is written, to be moved to `out`; None writes it there.

    Raises `EvaluationError` when the results lack what a report shows, and when a file cannot be written.
    """
    clip = results.config.get("training_clip_sec")
    training_frames = None if clip is None else round(clip * FRAME_RATE)
    figures: dict[str, Figure] = {}
    if installed("matplotlib"):
        from ttt_moshi.evaluation.report.plots import figure_for

        for name, task in results.tasks.items():
            if task["status"] == OK and (figure := figure_for(name, task, training_frames)) is not None:
                figures[name] = figure
    recordings = {name: found for name in results.tasks if (found := _conversations(out, name, results))}
    return _write(into or out, "Evaluation", run_report(results), figures, recordings, folds=True)


def _conversations(out: Path, task: str, results: Results) -> list[Recorded]:
    """The first conversations of a task that lie beside the report, without those that another model has held."""
    found = []
    own = out / "conversations" / task
    of_this = (words for words in sorted(own.rglob("output.json")) if not _by_another(words.parent, results))
    for words in islice(of_this, MOST_PLAYERS):
        with well_formed(words):
            said = " ".join(text for text, _, _ in read_json(words)["alignments"])
        folder = words.parent.relative_to(out).as_posix()
        name = words.parent.relative_to(own).as_posix()
        found.append(Recorded(name, folder, said if len(said) <= 500 else f"{said[:500]} ..."))
    return found


def _by_another(conversation: Path, results: Results) -> bool:
    """Whether a conversation says of itself that another model has held it, or the same one run otherwise."""
    # Their names are those of `inference.driver` and `tasks.examiner`, which need PyTorch and a report does not.
    for path in (conversation / "made_by.json", conversation / "exam.json"):
        if path.is_file():
            with well_formed(path):
                values = read_json(path)
                made_by = dict(values.get("made_by", values))
            wanted = {"state_id": results.checkpoint["state_id"], **results.config}
            return any(key in wanted and made_by.get(key, wanted[key]) != wanted[key] for key in _TOLD)
    return False


def write_comparison(out: Path, evaluations: list[Evaluation]) -> Path:
    """`comparison.json` and a report of several evaluations; returns the page."""
    comparison = compare(evaluations)
    write_json(out / COMPARISON, comparison)
    text = comparison_report(comparison)
    if not installed("matplotlib"):
        return _write(out, "Comparison", text, {})
    from ttt_moshi.evaluation.report.plots import over_steps

    figures = {}
    checkpoints = comparison["checkpoints"]
    for name, task in comparison["tasks"].items():
        if sum(map(is_comparable, task["values"])) > 1:
            entry = evaluations[task["reference"]].results.tasks[name]
            figures[f"{name} over steps"] = over_steps(checkpoints, task["values"], entry.get("chance"))
            text += f"\n## {name} over steps\n\n{entry['metric']}\n"
    if (figure := _trade_off(comparison)) is not None:
        figures["trade-off"] = figure
        text += f"\n## trade-off\n\nFilled: {UNBEATEN}.\n"
    return _write(out, "Comparison", text, figures)


def _trade_off(comparison: dict[str, Any]) -> Figure | None:
    """Perplexity against accuracies, where those of all checkpoints can be compared."""
    complete = {n: t["values"] for n, t in comparison["tasks"].items() if all(map(is_comparable, t["values"]))}
    panels = {n: [v["value"] for v in values] for n, values in complete.items() if n in ACCURACIES}
    if "perplexity" not in complete or not panels:
        return None
    from ttt_moshi.evaluation.report.plots import trade_off

    shown = dict(list(panels.items())[:4])
    labels = [f"{c['step']} {c['way']}".strip() for c in comparison["checkpoints"]]
    return trade_off(labels, [v["value"] for v in complete["perplexity"]], shown, comparison["pareto"])


def _write(
    out: Path,
    title: str,
    markdown: str,
    figures: dict[str, Figure],
    recordings: dict[str, list[Recorded]] | None = None,
    folds: bool = False,
) -> Path:
    svgs = {}
    if not installed("matplotlib"):
        markdown += f"\nPictures need the package matplotlib: `{remedy('matplotlib')}`.\n"
    elif figures:
        from ttt_moshi.evaluation.report.plots import render
    for name, figure in figures.items():
        svg, png = render(figure)
        svgs[name] = svg
        drawn, rendered = plot_files(out, name)
        write_text(drawn, svg)
        _write_bytes(rendered, png)
    write_text(out / "report.md", markdown)
    write_text(out / "report.html", page(f"TTT-Moshi {title.lower()}", markdown, svgs, recordings, folds))
    return out / "report.html"


def plot_files(out: Path, name: str) -> tuple[Path, Path]:
    """Where the SVG and the PNG of a figure are."""
    stem = name.replace(" ", "_")
    return out / "plots" / f"{stem}.svg", out / "plots" / f"{stem}.png"


def _write_bytes(path: Path, content: bytes) -> None:
    with writing(path):
        write_atomically(path, content)
