"""Comparing checkpoints on shared items."""

import json

import numpy as np
import pytest

from ttt_moshi.cli.main import main
from ttt_moshi.evaluation import EvaluationError, Results, write_results
from ttt_moshi.evaluation.compare import compare, compare_task, load
from ttt_moshi.evaluation.report.write import write_comparison
from ttt_moshi.evaluation.results import skipped


def write(folder, step, scores: dict[str, float], digest="d", perplexity=None, **extra):
    """An evaluation of one task of pairs, and of a perplexity if given."""
    tasks = {
        "ssc": {"status": "ok", "value": float(np.mean(list(scores.values()))), "ci95": [0.0, 1.0], "n": len(scores),
                "better": "higher", "chance": 0.5, "unit_of_n": "items", "metric": "accuracy"} | extra
    }  # fmt: skip
    if perplexity is not None:
        tasks["perplexity"] = {"status": "ok", "value": perplexity, "ci95": [1.0, 9.0], "n": 1, "better": "lower",
                               "unit_of_n": "clips", "metric": "ppl"}  # fmt: skip
        (folder / "samples").mkdir(parents=True, exist_ok=True)
        (folder / "samples" / "perplexity.jsonl").write_text(json.dumps({"id": "c", "score": -perplexity}) + "\n")
    data = {"ssc": {"digest": digest}, "perplexity": {"digest": "p"}}
    write_results(
        folder / "results.json", Results({"state_id": f"s{step}", "step": step, "kind": "full"}, tasks, {}, data)
    )
    lines = [json.dumps({"id": f"{item}/v", "item": item, "score": score}) + "\n" for item, score in scores.items()]
    (folder / "samples").mkdir(parents=True, exist_ok=True)
    (folder / "samples" / "ssc.jsonl").write_text("".join(lines))
    return load(folder)


def test_two_points_on_a_thousand_pairs_are_seen_by_a_paired_test_alone(tmp_path):
    rng = np.random.default_rng(0)
    base = {f"i{i}": float(rng.random() < 0.6) for i in range(1000)}
    better = dict(base)
    gained = [item for item, score in base.items() if score == 0.0][:20]
    better |= dict.fromkeys(gained, 1.0)
    found = compare_task("ssc", write(tmp_path / "a", 1, base), write(tmp_path / "b", 2, better))
    assert found["difference"] == pytest.approx(0.02)
    assert found["significant"] and found["ci95"][0] > 0.01
    assert (found["first_only"], found["second_only"]) == (0, 20)
    assert found["mcnemar"] == pytest.approx(2 * 0.5**20)
    standard_error = np.sqrt(2 * 0.6 * 0.4 / 1000)
    assert 1.96 * standard_error > 0.02  # two unpaired intervals would overlap


def test_differences_from_zero_are_no_choices(tmp_path):
    a, b = (write(tmp_path / name, 1, {"x": 2.5, "y": -1.0}, chance=0.0) for name in "ab")
    assert "mcnemar" not in compare_task("ssc", a, b)


def test_a_checkpoint_does_not_differ_from_itself(tmp_path):
    a, b = (write(tmp_path / name, 1, {"x": 1.0, "y": 0.0, "z": 0.5}) for name in "ab")
    found = compare_task("ssc", a, b)
    assert found["difference"] == 0 and found["ci95"] == [0, 0] and not found["significant"] and found["mcnemar"] == 1.0


def test_items_are_matched_by_name_and_other_data_is_refused(tmp_path):
    a = write(tmp_path / "a", 1, {"x": 1.0, "y": 0.0})
    b = write(tmp_path / "b", 2, {"y": 1.0, "x": 1.0})
    assert compare_task("ssc", a, b)["difference"] == 0.5
    other = write(tmp_path / "c", 3, {"x": 1.0, "y": 0.0}, digest="other")
    assert "different recordings" in compare_task("ssc", a, other)["reason"]
    assert "was not asked for" in compare_task("tsc", a, b)["reason"]


def test_what_was_skipped_has_no_number_in_a_comparison(tmp_path):
    a = write(tmp_path / "a", 1, {"x": 1.0})
    b = write(tmp_path / "b", 2, {"x": 1.0})
    b.results.tasks["ssc"] = skipped("no folder")
    found = compare([a, b])["tasks"]["ssc"]
    assert found["values"][1] == {"status": "skipped", "value": None, "ci95": None}
    assert found["against_first"][0]["status"] == "skipped" and "no folder" in found["against_first"][0]["reason"]


def test_a_number_that_its_options_did_not_touch_is_not_compared(tmp_path):
    """An earlier version recorded `--ttt off` for tasks that it did not reach, which made memory worth nothing."""
    a = write(tmp_path / "a", 1, {"x": 1.0}, perplexity=4.0)
    b = write(tmp_path / "b", 1, {"x": 1.0}, perplexity=4.0)
    b.results.config["ttt"] = "off"
    found = compare([a, b])["tasks"]
    assert found["ssc"]["against_first"][0]["status"] == "ok"
    refused = found["perplexity"]["against_first"][0]
    assert refused["status"] == "skipped" and "`--ttt off` was recorded and not applied" in refused["reason"]
    b.results.tasks["perplexity"]["options"] = {"ttt": "off", "text": "given"}
    assert compare_task("perplexity", a, b)["status"] == "ok"
    b.results.config["text"] = "pad"
    assert "`--text pad` was recorded and not applied" in compare_task("perplexity", a, b)["reason"]
    assert "versions 1 and 2" in compare_task("ssc", a, write(tmp_path / "c", 1, {"x": 1.0}, version=2))["reason"]


def test_pareto_knows_which_direction_is_better(tmp_path):
    a = write(tmp_path / "a", 1, {"x": 1.0, "y": 0.0}, perplexity=3.0)
    b = write(tmp_path / "b", 2, {"x": 1.0, "y": 1.0}, perplexity=4.0)
    c = write(tmp_path / "c", 3, {"x": 0.0, "y": 0.0}, perplexity=3.5)
    assert compare([a, b, c])["pareto"] == [True, True, False]
    with pytest.raises(EvaluationError, match="at least two"):
        compare([a])


def test_memory_off_is_held_against_the_same_checkpoint_with_it(tmp_path):
    base = write(tmp_path / "base", 0, {"x": 0.0, "y": 0.0, "z": 0.0})
    on = write(tmp_path / "on", 5, {"x": 1.0, "y": 1.0, "z": 0.0})
    off = write(tmp_path / "off", 5, {"x": 1.0, "y": 0.0, "z": 0.0})
    off.results.config["ttt"] = "off"
    off.results.tasks["ssc"]["options"] = {"ttt": "off"}
    assert off.label == "off (step 5, --ttt off)" and on.way == ""
    found = compare([base, on, off])["tasks"]["ssc"]
    assert found["against_own"][:2] == [None, None]
    assert found["against_own"][2]["difference"] == pytest.approx(-1 / 3)
    text = write_comparison(tmp_path / "out", [base, on, off]).read_text()
    assert "Paired differences from the same checkpoint read as usual" in text
    alone = write_comparison(tmp_path / "out", [base, on]).read_text()
    assert "read as usual" not in alone


def test_values_of_other_recordings_are_marked_and_not_drawn(tmp_path):
    a = write(tmp_path / "a", 1, {"x": 1.0}, perplexity=4.0)
    b = write(tmp_path / "b", 2, {"x": 1.0}, perplexity=3.0)
    for one, seconds in ((a, 100.0), (b, 4.0)):
        one.results.config["duration_sec"] = seconds
        one.results.data["perplexity"]["digest"] = str(seconds)
    found = compare([a, b])
    reason = found["tasks"]["perplexity"]["against_first"][0]["reason"]
    assert "clips of 100.0 and 4.0 s: give both the same" in reason
    assert [v.get("not_comparable") for v in found["tasks"]["perplexity"]["values"]] == [None, reason]
    assert [v.get("not_comparable") for v in found["tasks"]["ssc"]["values"]] == [None, None]
    assert found["pareto"] == [True, True]  # as good in `ssc`, which alone can be compared
    page = write_comparison(tmp_path / "out", [a, b]).read_text()
    assert "3.0000 (1.0000 – 9.0000) (not comparable)" in page
    assert "ssc over steps" in page and "perplexity over steps" not in page and "trade-off" not in page
    b.results.data["perplexity"]["digest"] = "100.0"
    assert compare([a, b])["pareto"] == [False, True]
    assert "trade-off" in write_comparison(tmp_path / "out", [a, b]).read_text()


PROTOCOL = {"dtype": "float32", "answers": 1, "judge": "python judge.py"}


@pytest.mark.parametrize(("changed", "told"), [
    ({"answers": 5}, "`answers` (1 and 5)"),
    ({"judge": "a file of ratings"}, "`judge` (python judge.py and a file of ratings)"),
    ({"dtype": "bfloat16", "answers": 2}, "`dtype` (float32 and bfloat16), `answers` (1 and 2)"),
])  # fmt: skip
def test_values_that_were_measured_in_other_ways_are_not_compared(tmp_path, changed, told):
    a = write(tmp_path / "a", 1, {"x": 1.0, "y": 0.0}, perplexity=4.0, protocol=PROTOCOL)
    b = write(tmp_path / "b", 2, {"x": 0.0, "y": 0.0}, perplexity=3.0, protocol=PROTOCOL | changed)
    found = compare([a, b])
    assert f"the two differ in {told}: " in found["tasks"]["ssc"]["against_first"][0]["reason"]
    assert "not_comparable" in found["tasks"]["ssc"]["values"][1] and found["pareto"] == [False, True]
    assert "ssc over steps" not in write_comparison(tmp_path / "out", [a, b]).read_text()
    same = write(tmp_path / "c", 3, {"x": 0.0, "y": 0.0}, protocol=dict(PROTOCOL))
    assert compare_task("ssc", a, same)["difference"] == -0.5


def test_of_an_earlier_version_that_is_compared_which_it_has_recorded(tmp_path):
    """Entries without a protocol: their draws and the settings beside them are known, how tokens were drawn is not."""
    new = write(tmp_path / "new", 1, {"x": 1.0}, protocol={"dtype": "float32", "answers": 1, "temp": 0.8})
    old = write(tmp_path / "old", 2, {"x": 1.0}, draws=1, options={"ttt": "on"})
    old.results.config |= {"dtype": "float32", "minutes": 60.0}
    assert compare_task("ssc", new, old)["status"] == compare_task("ssc", old, old)["status"] == "ok"
    old.results.tasks["ssc"]["draws"] = 5
    assert "`answers` (1 and 5)" in compare_task("ssc", new, old)["reason"]
    hours = []
    for minutes in (1.0, 60.0):
        hours.append(write(tmp_path / f"{minutes}", 1, {"x": 1.0}))
        hours[-1].results.tasks["hour"] = hours[-1].results.tasks.pop("ssc") | {"minutes": minutes}
        hours[-1].items["hour"] = hours[-1].items.pop("ssc")
    assert "`minutes` (1.0 and 60.0)" in compare_task("hour", *hours)["reason"]
    assert compare_task("hour", hours[0], hours[0])["difference"] == 0


def test_who_rated_in_two_files_is_not_known_and_said(tmp_path):
    a, b = (write(tmp_path / n, 1, {"x": 1.0}, protocol={"judge": "a file of ratings"}) for n in "ab")
    assert "one judge" in compare_task("ssc", a, b)["note"]
    assert "whether by one judge is not recorded" in write_comparison(tmp_path / "out", [a, b]).read_text()


def test_a_task_that_the_first_lacks_is_held_against_the_first_that_has_it(tmp_path, capsys):
    base, a, b, c = (write(tmp_path / n, i, {"x": float(i > 1), "y": 0.0}) for i, n in enumerate(("base", *"abc")))
    base.results.tasks["ssc"] = skipped("no layers")
    c.results.data["ssc"]["digest"] = "other"
    task = compare([base, a, b, c])["tasks"]["ssc"]
    assert task["reference"] == 1
    assert "base (step 0): no layers" in task["against_first"][0]["reason"]
    assert task["against_first"][1]["difference"] == 0.5
    assert "different recordings" in task["against_first"][2]["reason"]
    assert ["not_comparable" in value for value in task["values"]] == [False, False, False, True]
    page = write_comparison(tmp_path / "out", [base, a, b, c]).read_text()
    assert "b (step 2), from a (step 1)" in page
    for one in (base, a, b, c):
        write_results(one.folder / "results.json", one.results)
    folders = [str(one.folder) for one in (base, a, b, c)]
    assert main(["eval", "compare", *folders, "--out", str(tmp_path / "out")]) == 1
    assert "ssc, from a (step 1)\n" in capsys.readouterr().out


def test_the_report_of_many_checkpoints(tmp_path):
    folders = [
        write(tmp_path / f"checkpoint_{i}", 10 * i, {f"i{j}": float(j < 3 + i) for j in range(8)}, perplexity=5.0 - i)
        for i in range(3)
    ]
    page = write_comparison(tmp_path / "out", folders)
    text = page.read_text()
    assert "★" in text and text.count("<svg") == 3 and "http://" not in text.replace("http://www.w3.org", "")
    assert "checkpoint_2 (step 20)" in text
    assert "<script" not in text
    first = {p.name: p.read_bytes() for p in (tmp_path / "out").rglob("*") if p.is_file()}
    write_comparison(tmp_path / "out", folders)
    assert {p.name: p.read_bytes() for p in (tmp_path / "out").rglob("*") if p.is_file()} == first


def test_damaged_samples_are_named(tmp_path):
    write(tmp_path / "a", 1, {"x": 1.0})
    (tmp_path / "a" / "samples" / "ssc.jsonl").write_text("{")
    with pytest.raises(EvaluationError, match=r"ssc\.jsonl"):
        load(tmp_path / "a")


def refused(words: list, capsys) -> str:
    assert main(["eval", *map(str, words)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1
    return error


def test_samples_that_are_not_those_that_were_measured_are_refused(tmp_path, capsys):
    for name in "ab":
        one = write(tmp_path / name, 1, {"x": 1.0, "y": 0.0, "z": 1.0})
        one.results.data["ssc"]["samples"] = 3
        write_results(one.folder / "results.json", one.results)
    words = ["compare", tmp_path / "a", tmp_path / "b", "--out", tmp_path / "out"]
    assert main(["eval", *map(str, words)]) == 0
    samples = tmp_path / "b" / "samples" / "ssc.jsonl"
    whole = samples.read_text().splitlines(keepends=True)
    for lines, told in (
        (whole[:2], "ssc.jsonl holds 2 samples, and 3 were measured"),
        ([], "ssc.jsonl holds 0 samples, and 3 were measured"),
        ([*whole[:2], '{"id": "z", "score": NaN}\n'], "ssc.jsonl, line 3: `score` is nan, and no number"),
        ([*whole[:2], '{"id": "z"}\n'], "ssc.jsonl, line 3: lacks 'score'"),
        ([*whole[:2], '{"id": "z", "score": "high"}\n'], "ssc.jsonl, line 3: could not convert"),
    ):
        samples.write_text("".join(lines))
        assert told in refused(words, capsys)


def test_reports_replace_none_of_another_kind(tmp_path, capsys):
    for name in "ab":
        write(tmp_path / name, 1, {"x": 1.0})
    (tmp_path / "a" / "report.html").write_text("the evaluation's")
    assert "holds an evaluation" in refused(["report", tmp_path / "a", tmp_path / "b", "--out", tmp_path / "a"], capsys)
    assert (tmp_path / "a" / "report.html").read_text() == "the evaluation's"
    assert "is named twice" in refused(["compare", tmp_path / "a", tmp_path / "b" / ".." / "a"], capsys)
    for command in (["report"], ["lm-eval"], ["compare", tmp_path / "b"]):
        error = refused([*command, tmp_path / "a" / "results.json"], capsys)
        assert "results.json is a file: name the folder of an evaluation" in error


def test_an_evaluation_replaces_no_comparison(tmp_path, tiny_material, capsys):
    for name in "ab":
        write(tmp_path / name, 1, {"x": 1.0})
    assert main(["eval", "compare", *(str(tmp_path / n) for n in "ab"), "--out", str(tmp_path / "out")]) == 0
    base = ["--checkpoint_dir", "base", "--hf_repo_id", tiny_material.base_model, "--data", tiny_material.eval_data]
    assert "holds a comparison" in refused([*base, "--out", tmp_path / "out"], capsys)


def test_evaluations_in_folders_of_one_name_are_told_apart(tmp_path, capsys, monkeypatch):
    for run in "ab":
        write(tmp_path / run / "step", 1, {"x": 1.0})
    monkeypatch.chdir(tmp_path / "a" / "step")
    monkeypatch.setenv("COLUMNS", "400")
    assert main(["eval", "compare", ".", "../../b/step", "--out", str(tmp_path / "out")]) == 0
    assert "differences from a/step (step 1)" in (shown := capsys.readouterr().out) and "b/step (step 1): " in shown


@pytest.mark.parametrize(("items", "significant"), [(1, False), (4, False), (5, True)])
def test_a_few_items_show_nothing(tmp_path, capsys, monkeypatch, items, significant):
    """They may be alike: then an interval has no width, and excludes everything else."""
    monkeypatch.setenv("COLUMNS", "400")
    for name, score in (("a", 0.25), ("b", 0.75)):
        write(tmp_path / name, 1, {f"i{i}": score for i in range(items)})
    assert main(["eval", "compare", *(str(tmp_path / n) for n in "ab"), "--out", str(tmp_path / "out")]) == 0
    assert ("fewer than 5 do not tell" in capsys.readouterr().out) != significant
    (found,) = json.loads((tmp_path / "out" / "comparison.json").read_text())["tasks"]["ssc"]["against_first"]
    assert found["ci95"] == [0.5, 0.5] and found["significant"] == significant
    row = next(r for r in (tmp_path / "out" / "report.md").read_text().splitlines() if r.startswith("| ssc | b"))
    assert row.rstrip(" |").endswith("yes" if significant else "fewer than 5 items do not tell")


def test_nobody_is_unbeaten_where_nothing_is_compared(tmp_path):
    a, b = (write(tmp_path / name, 1, {"x": 1.0}, digest=name) for name in "ab")
    assert compare([a, b])["pareto"] == [False, False]
    assert "★" not in write_comparison(tmp_path / "out", [a, b]).read_text()
