"""Reports show what was measured and nothing else; what failed says why."""

import io

import numpy as np
import pytest
from rich.console import Console

from ttt_moshi.cli.eval_screen import show_headlines
from ttt_moshi.evaluation import Results, write_results
from ttt_moshi.evaluation.report.headline import headlines
from ttt_moshi.evaluation.report.markdown import run_report
from ttt_moshi.evaluation.report.page import Recorded, page
from ttt_moshi.evaluation.report.plots import figure_for, over_steps, render
from ttt_moshi.evaluation.report.tables import interval
from ttt_moshi.evaluation.report.write import write_run_report
from ttt_moshi.evaluation.results import skipped
from ttt_moshi.evaluation.scoring.scorer import ModelScorer
from ttt_moshi.evaluation.suite import run_suite
from ttt_moshi.evaluation.tasks.books import find_books
from ttt_moshi.evaluation.tasks.long_context import Position
from ttt_moshi.evaluation.tasks.registry import NO_BENCHMARKS, TASKS, Benchmarks


def position_entry(tmp_path, toy, oracle) -> dict:
    for i in range(3):
        toy(tmp_path / "librilight" / "small" / str(i) / "b" / "x.wav", [(7 * i + j) % 20 for j in range(90)])
    return Position(find_books(tmp_path)).run(oracle()).entry


def test_every_drawn_point_is_a_measured_one(tmp_path, toy, oracle):
    entry = position_entry(tmp_path, toy, oracle)
    (axes,) = figure_for("position", entry, training_frames=50).axes
    curves = [line for line in axes.lines if len(line.get_xdata()) > 2]
    marks = {float(line.get_xdata()[0]) for line in axes.lines if len(line.get_xdata()) == 2}
    assert marks == {32.0, 50.0}  # the attention window and the training clip
    assert len(curves) == 2  # semantic and acoustic: there is no text
    for curve, group in zip(curves, ("semantic", "acoustic"), strict=True):
        np.testing.assert_allclose(curve.get_ydata(), [b[group]["value"] for b in entry["bins"]])
        middles = [(b["start"] + b["stop"]) / 2 for b in entry["bins"]]
        np.testing.assert_allclose(curve.get_xdata(), middles)


def test_a_step_without_a_measurement_is_a_gap_in_the_curve():
    values = [{"status": "ok", "value": v, "ci95": [v, v]} for v in (0.5, 0.7)]
    lacking = {"status": "skipped", "value": None, "ci95": None}
    figure = over_steps([at(10), at(20), at(30)], [values[0], lacking, values[1]], 0.5)
    line = figure.axes[0].lines[0]
    assert line.get_xdata().tolist() == [10, 30] and line.get_ydata().tolist() == [0.5, 0.7]


def at(step: int, way: str = "", kind: str = "full") -> dict:
    return {"step": step, "way": way, "kind": kind}


def test_a_memory_that_is_off_is_a_line_of_its_own_beside_the_base():
    values = [{"status": "ok", "value": v, "ci95": [v - 1, v + 1]} for v in (9.0, 7.0, 5.0, 8.0, 6.0)]
    checkpoints = [at(0, kind="base"), at(10), at(20), at(20, "--ttt off"), at(10, "--ttt off")]
    (axes,) = over_steps(checkpoints, values, None).axes
    drawn = {c.get_label(): c[0] for c in axes.containers}
    assert drawn["as it is"].get_xdata().tolist() == [0, 10, 20]
    assert drawn["as it is"].get_ydata().tolist() == [9.0, 7.0, 5.0]
    assert drawn["--ttt off"].get_xdata().tolist() == [10, 20] and drawn["--ttt off"].get_ydata().tolist() == [6.0, 8.0]
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["base", "as it is", "--ttt off"]


def test_a_skipped_task_has_its_reason_and_no_picture(tmp_path, toy, oracle):
    results = Results(
        {"state_id": "s", "step": 1, "kind": "full"},
        {"ssc": skipped("no recordings in <sSC> | here"), "position": position_entry(tmp_path, toy, oracle)},
        {"max_items": None, "split": "test"},
    )
    write_results(tmp_path / "out" / "results.json", results)
    write_run_report(tmp_path / "out", results)
    assert sorted(p.stem for p in (tmp_path / "out" / "plots").glob("*.png")) == ["position"]
    text = (tmp_path / "out" / "report.html").read_text()
    assert "no recordings in &lt;sSC&gt; | here" in text and "not run" in text
    assert "0.0000" not in text.split("ssc")[1].split("</tr>")[0]


def test_equal_figures_are_equal_bytes(tmp_path, toy, oracle):
    entry = position_entry(tmp_path, toy, oracle)
    assert render(figure_for("position", entry, None)) == render(figure_for("position", entry, None))


def test_markdown_becomes_html_and_nothing_in_it_becomes_markup():
    text = page("t", "# A <b>\n\nsome `code` & text\n\n| x | y |\n| --- | --- |\n| 1 \\| 2 | <i> |\n", {})
    assert "<h1>A &lt;b&gt;</h1>" in text and "<code>code</code> &amp; text" in text
    assert "<td>1 | 2</td>" in text and "<td>&lt;i&gt;</td>" in text and "<i>" not in text


def test_a_picture_follows_its_heading_and_a_title_is_no_markup():
    markdown = "# top\n\n## spoken_repeat\n\nwords\n\n## other\n"
    text = page("a < b", markdown, {"spoken_repeat": "<?xml?><svg>x</svg>"})
    assert "<title>a &lt; b</title>" in text and text.count("<svg") == 1
    order = [
        text.index(part) for part in ("<h2>spoken_repeat</h2>", "<figure><svg>x</svg></figure>", "words", "<h2>other")
    ]
    assert order == sorted(order)


def test_a_model_that_fails_has_a_reason_and_no_score(new_model, tmp_path, toy, oracle):
    """Not 0.0, not infinity, and the other tasks go on."""
    for name, samples in (("0_a_correct", [1, 2, 3]), ("1_a_incorrect", [1, 2, 4])):
        toy(tmp_path / "sSC" / f"{name}.wav", samples)
    engine = oracle()
    model = new_model()
    model.text_linear.weight.data.fill_(1.0)
    model.linears[2].weight.data.fill_(float("inf"))
    engine.scorer = ModelScorer(model, "s")
    found = run_suite(["ssc", "tsc"], Benchmarks(tmp_path, frames_of=len), lambda name: engine)
    assert found.outcomes == {}
    assert found.tasks["ssc"]["status"] == "skipped" and "not finite" in found.tasks["ssc"]["reason"]
    assert found.tasks["tsc"]["status"] == "skipped" and "tSC" in found.tasks["tsc"]["reason"]
    assert found.tasks["ssc"]["value"] is None


def test_without_a_data_root_nothing_is_configured_and_nothing_scored(oracle):
    found = run_suite(["swuggy"], Benchmarks(None), lambda name: oracle())
    assert found.tasks["swuggy"]["reason"] == NO_BENCHMARKS


def test_programming_errors_are_not_turned_into_skipped_tasks(tmp_path, toy, oracle):
    for name in ("0_a_correct", "1_a_incorrect"):
        toy(tmp_path / "sSC" / f"{name}.wav", [1, 2, 3])

    def broken(k, value, t):
        raise TypeError("a bug")

    with pytest.raises(TypeError, match="a bug"):
        run_suite(["ssc"], Benchmarks(tmp_path, frames_of=len), lambda name: oracle(rule=broken))


def test_the_report_names_chance_counts_and_settings(tmp_path, toy, oracle):
    toy(tmp_path / "sSC" / "0_a_correct.wav", [1, 2, 3])
    toy(tmp_path / "sSC" / "1_a_incorrect.wav", [1, 2, 4])
    found = run_suite(["ssc"], Benchmarks(tmp_path, frames_of=len), lambda name: oracle())
    results = Results(
        {"state_id": "abc", "step": 7, "kind": "full"}, found.tasks, {"text": "absent", "user": "silence"}
    )
    text = run_report(results)
    for words in ("`abc`", "step 7", "1 pairs", "chance 0.5", "1 items", "| text | absent |", "| user | silence |"):
        assert words in text


def test_every_layer_is_drawn():
    curves = {"start": [1.0, 1.0], "before": [0.9, 0.8], "after": [0.5, 0.4]}
    figure = figure_for("inner", {"layers": {str(i): curves for i in range(9)}, "smoothing": 10}, None)
    shown = [axes for axes in figure.axes if axes.get_visible()]
    assert [axes.get_title() for axes in shown] == [f"layer {i}" for i in range(9)]
    assert all(len(axes.lines) == 3 for axes in shown)


def test_a_page_folds_what_is_below_its_first_table_and_plays_recordings():
    recordings = {"one": [Recorded("a<b", "conversations/one/a", "hello <i>")]}
    html = page("t", "# T\n\nfirst\n\n## one\n\nx\n\n## two\n\ny\n", {}, recordings, folds=True)
    assert html.index("first") < html.index("<details>") and html.count("<details>") == html.count("</details>") == 2
    first, second = html.split("<details>")[1:]
    assert 'src="conversations/one/a/output.wav"' in first and "hello &lt;i&gt;" in first and "<audio" not in second
    assert "<details>" not in page("t", "## one\n", {})


def entry(value, low, high, **more) -> dict:
    return {"status": "ok", "value": value, "ci95": [low, high], "n": 9, "unit_of_n": "items", "metric": "accuracy",
            "better": "higher"} | more  # fmt: skip


@pytest.mark.parametrize(("task", "sentence"), [
    (entry(0.7, 0.6, 0.8, chance=0.5, means="it is known"), "It is known."),
    (entry(0.7, 0.5, 0.8, chance=0.5, means="it is known"), "Chance does as well: no evidence that it is known."),
    (entry(0.3, 0.2, 0.4, chance=0.5, means="a b"), "Worse than chance: it is not so that a b."),
    (entry(-1, -2, -0.5, chance=0.0, better="lower", means="it is known"), "It is known."),
    (entry(1, 0.5, 2, chance=0.0, better="lower", means="a b"), "Worse than chance: it is not so that a b."),
    (entry(1, 1, 1, chance=0.5, n=4, means="a b"), "Fewer than 5 items do not tell whether a b."),
    (entry(1, 1, 1, chance=0.5, n=5, means="a b"), "A b."),
    (entry(7, 6, 8, means="so many nats"), "So many nats."),
    (entry(7, 6, 8), "Accuracy."),
    (entry(0.7, 0.6, 0.8, reference={"name": "moshiko", "value": 0.63, "deviation": 0.07}),
     "Accuracy. moshiko is quoted with 0.63 (+7.0 points)."),
])  # fmt: skip
def test_a_headline_says_what_its_interval_allows(task, sentence):
    (headline,) = headlines({"t": task})
    assert headline.meaning == sentence and headline.n == f"{task['n']} items"
    assert headline.chance == (f"{task['chance']:g}" if "chance" in task else "")


def test_every_task_says_what_its_value_means():
    assert [name for name, spec in TASKS.items() if not spec.means or spec.means[0].isupper()] == []


def test_the_first_screen_has_headlines_alone_and_the_rest_is_folded(tmp_path, toy, oracle):
    found = {**position_entry(tmp_path, toy, oracle), "means": "a token costs so many nats"}
    results = Results({"state_id": "s", "step": 1, "kind": "full"}, {"position": found, "ssc": skipped("no | data")})
    first, *folded = page("t", run_report(results), {}, folds=True).split("<details>")
    assert len(folded) == 2 and "semantic" in folded[0] and "semantic" not in first
    assert "A token costs so many nats." in first and "no | data" in first and f"{found['value']:.4f}" in first
    screen = Console(record=True, width=60, file=io.StringIO())
    show_headlines(screen, results.tasks)
    lines = screen.export_text().splitlines()
    assert lines[0].split() == ["position", f"{found['value']:.4f}", *interval(found).split()[1:], "3", "books"]
    assert [line.strip() for line in lines[1:]] == ["A token costs so many nats.", "ssc       not run", "no | data"]
