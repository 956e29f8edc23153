"""The demo's page: what happened, in numbers and in three plots, as one self-contained HTML file."""

from __future__ import annotations

import base64
import html
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure

matplotlib.use("agg")

BLUE, ORANGE, GREY, GREEN = "#2563eb", "#ea580c", "#64748b", "#15803d"


@dataclass(frozen=True)
class DemoFacts:
    """Everything the page shows.

    Args:
        killed, uninterrupted: training records of the two runs, by step.
        kill_step: last step that the killed process had logged.
        resume_step: step of the checkpoint that it continued from.
        state_ids: state id at the end of the killed-and-resumed run and of the uninterrupted one.
        gates: for each checkpoint step, mean |tanh(alpha)| of each TTT layer.
        results: content of results.json.
        talk: a conversation with the trained model, a wav file in the page's folder with a transcript beside it.
        rows: further lines of the table, as (name, value).
    """

    killed: Sequence[dict[str, Any]]
    uninterrupted: Sequence[dict[str, Any]]
    kill_step: int
    resume_step: int
    state_ids: tuple[str, str]
    gates: dict[int, dict[str, float]]
    results: dict[str, Any]
    talk: Path
    rows: Sequence[tuple[str, str]]


def write_page(path: Path, facts: DemoFacts) -> None:
    """Writes the page and its plots (PNG files beside it)."""
    plots = {
        "loss": ("Training loss", _loss_plot(facts)),
        "nll": ("What the model predicts: nats per token", _nll_plot(facts.results)),
        "gates": ("How far the memory gates open", _gate_plot(facts.gates)),
    }
    images = []
    for name, (title, figure) in plots.items():
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=144)
        (path.parent / f"{name}.png").write_bytes(buffer.getvalue())
        encoded = base64.b64encode(buffer.getvalue()).decode()
        images.append(f'<h2>{title}</h2>\n<img alt="{title}" src="data:image/png;base64,{encoded}">')
    same = facts.state_ids[0] == facts.state_ids[1]
    verdict = "identical to the last bit" if same else "DIFFERENT"
    rows = "\n".join(f"<tr><th>{html.escape(k)}</th><td>{html.escape(v)}</td></tr>" for k, v in facts.rows)
    path.write_text(
        PAGE.format(
            verdict=verdict, colour=GREEN if same else "#b91c1c", killed=facts.state_ids[0], whole=facts.state_ids[1],
            kill_step=facts.kill_step, resume_step=facts.resume_step, rows=rows, images="\n".join(images),
            talk=html.escape(facts.talk.name), said=html.escape(_said(facts.talk)),
        ),
        encoding="utf-8",
    )  # fmt: skip


def _said(talk: Path) -> str:
    """Moshi's words of a conversation."""
    alignments = json.loads(talk.with_suffix(".json").read_text())["alignments"]
    return " ".join(word for word, _, _ in alignments)


def _loss_plot(facts: DemoFacts) -> Figure:
    figure, axes = _figure()
    whole, resumed = facts.uninterrupted, facts.killed
    axes.plot(
        [r["step"] for r in whole],
        [r["loss"] for r in whole],
        color=GREY,
        linewidth=5,
        alpha=0.35,
        label="never killed",
    )
    axes.plot(
        [r["step"] for r in resumed],
        [r["loss"] for r in resumed],
        color=BLUE,
        linewidth=1.6,
        label="killed and resumed",
    )
    axes.axvspan(facts.resume_step, facts.kill_step, color=ORANGE, alpha=0.12)
    axes.axvline(facts.kill_step, color=ORANGE, linestyle="--", linewidth=1.3)
    bottom, top = axes.get_ylim()
    axes.set_ylim(bottom, top + 0.22 * (top - bottom))
    plate = {"facecolor": "white", "edgecolor": "none", "alpha": 0.85, "pad": 1.5}
    for step, words, side in (
        (facts.resume_step, f"resumed from step {facts.resume_step}", "right"),
        (facts.kill_step, f"SIGKILL after step {facts.kill_step}", "left"),
    ):
        shift = (6 if side == "left" else -6, -14)
        axes.annotate(
            words, (step, axes.get_ylim()[1]), shift, textcoords="offset points", ha=side, color=ORANGE, bbox=plate
        )
    axes.set_xlabel("optimizer step")
    axes.set_ylabel("weighted loss (nats)")
    axes.legend(frameon=False, loc="upper left")
    return figure


def _nll_plot(results: dict[str, Any]) -> Figure:
    figure, axes = _figure()
    components = results["tasks"]["perplexity"]["components"]
    names = list(components)
    values = [components[n]["nll"] for n in names]
    colours = [GREEN if n.startswith("text") else ORANGE if n == "semantic" else BLUE for n in names]
    axes.bar([n.replace("_", " ") for n in names], values, color=colours)
    for i, value in enumerate(values):
        axes.text(i, value, f"{value:.2f}", ha="center", va="bottom", fontsize=8)
    axes.tick_params(axis="x", rotation=35)
    axes.set_ylabel("negative log-likelihood (nats)")
    return figure


def _gate_plot(gates: dict[int, dict[str, float]]) -> Figure:
    figure, axes = _figure()
    steps = sorted(gates)
    for i, layer in enumerate(gates[steps[0]]):
        axes.plot(steps, [gates[s][layer] for s in steps], marker="o", markersize=3, label=layer, color=f"C{i}")
    axes.set_xlabel("optimizer step")
    axes.set_ylabel("mean |tanh α|")
    axes.legend(frameon=False)
    return figure


def _figure() -> tuple[Figure, Any]:
    figure = Figure(figsize=(8.6, 3.8), layout="constrained")
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", alpha=0.25)
    return figure, axes


PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>TTT-Moshi demo</title>
<style>
body {{ font: 16px/1.5 system-ui, sans-serif; color: #0f172a; max-width: 880px; margin: 2.5rem auto; padding: 0 1rem; }}
h1 {{ margin-bottom: .2rem; }} h2 {{ margin: 2.2rem 0 .4rem; font-size: 1.15rem; }}
img, audio {{ width: 100%; }} code {{ font-size: .82rem; word-break: break-all; }}
.verdict {{ border-left: 6px solid {colour}; background: #f8fafc; padding: .8rem 1.1rem; margin: 1.4rem 0; }}
.verdict strong {{ color: {colour}; }}
table {{ border-collapse: collapse; width: 100%; }}
th, td {{ text-align: left; padding: .3rem .6rem; border-bottom: 1px solid #e2e8f0; }}
th {{ font-weight: 500; color: #475569; width: 40%; }} footer {{ color: #64748b; margin: 2rem 0; font-size: .9rem; }}
</style></head><body>
<h1>TTT-Moshi demo</h1>
<p>A small Moshi with test-time-training layers, trained on generated dialogues, killed with SIGKILL after step
{kill_step}, resumed from its checkpoint of step {resume_step}, and compared with the same run never killed.</p>
<div class="verdict">The two ends are <strong>{verdict}</strong>.<br>
killed and resumed: <code>{killed}</code><br>never killed: <code>{whole}</code></div>
<table>{rows}</table>
{images}
<h2>The trained model answers a recording that it has never heard</h2>
<audio controls src="{talk}"></audio>
<p>Moshi is on the left, the recording's user on the right. Moshi's words: <q>{said}</q></p>
<p>Everything that was evaluated: <a href="evaluation/report.html">the report</a>.</p>
<footer>Synthetic speech (espeak-ng), a model of a few million parameters, CPU: this shows that the machinery is right,
not how well a 7B model speaks.</footer>
</body></html>
"""
