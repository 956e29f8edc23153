"""Tasks of other packages: found by their entry points, run and recorded like our own."""

import json
import sys
from pathlib import Path

import pytest

from ttt_moshi.cli.main import main
from ttt_moshi.evaluation.conversations import Talker
from ttt_moshi.evaluation.tasks.registry import TASKS, Benchmarks, known_tasks
from ttt_moshi.evaluation.tasks.spoken_questions import Asking
from ttt_moshi.inference.driver import Driver
from ttt_moshi.inference.sampling import Sampling

MODULE = """
from dataclasses import dataclass
from ttt_moshi.evaluation.outcome import Outcome
from ttt_moshi.evaluation.tasks.registry import TaskSpec

@dataclass
class Sevens:
    name: str = "sevens"
    def run(self, engine):
        entry = {"status": "ok", "metric": "sevens", "better": "higher", "value": 7.0, "ci95": [7.0, 7.0], "n": 1,
                 "unit_of_n": "items"}
        return Outcome(entry, [{"id": "a", "score": 7.0}], data_digest="d")

SPEC = TaskSpec(lambda benchmarks: Sevens(), "nothing", version=3, protocol=lambda benchmarks: {"of": 7},
                cannot_apply=lambda c: "`--ttt off` is no seven" if c.ttt == "off" else None)
OTHER = 5
"""


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Puts a package with these entry points beside ours."""

    def put(module: str = MODULE, **points: str) -> None:
        (tmp_path / "extra_sevens.py").write_text(module)
        info = tmp_path / "extra_sevens-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: extra-sevens\nVersion: 1.0\n")
        lines = [f"{name} = {value}" for name, value in points.items()]
        (info / "entry_points.txt").write_text("[ttt_moshi.tasks]\n" + "\n".join(lines) + "\n")
        monkeypatch.syspath_prepend(str(tmp_path))
        sys.modules.pop("extra_sevens", None)
        known_tasks.cache_clear()

    yield put
    known_tasks.cache_clear()


def test_a_task_of_another_package_runs_like_our_own(install, tiny_material, tmp_path, capsys):
    install(sevens="extra_sevens:SPEC")
    assert main(["eval", "--tasks", "list"]) == 0
    assert "sevens" in capsys.readouterr().out
    base = ["eval", "--checkpoint_dir", "base", "--hf_repo_id", str(tiny_material.base_model), "--tasks", "sevens"]
    assert main([*base, "--out", str(tmp_path / "out")]) == 0
    task = json.loads((tmp_path / "out" / "results.json").read_text())["tasks"]["sevens"]
    assert task["value"] == 7.0 and task["version"] == 3 and task["options"]["ttt"] == "on"
    assert task["protocol"] == {"dtype": "bfloat16", "of": 7}
    capsys.readouterr()
    assert main([*base, "--out", str(tmp_path / "no"), "--ttt", "off"]) == 2
    assert "`--ttt off` is no seven" in capsys.readouterr().err


DRAWN = {"greedy": False, "temp": 0.8, "top_k": 7, "temp_text": 0.7, "top_k_text": 25, "pad_bias": 0.0}
ASKED = {**DRAWN, "answers": 2, "answer_seconds": 5.0}


@pytest.mark.parametrize(("name", "told", "judge", "expected"), [
    ("hour", {}, None, {"minutes": 3.0}),
    ("turns", {}, None, DRAWN),
    ("overlap", {}, "python j.py", DRAWN),  # its value needs no judge
    ("continuation", {}, None, {}),  # nor this one what is said
    ("trivia_qa", {}, None, ASKED),
    ("spoken_choices", {}, None, ASKED),
    ("judged_answers", {}, "python j.py", {**ASKED, "judge": "python j.py"}),
    ("judged_answers", {}, "by hand.jsonl", {**ASKED, "judge": "a file of ratings"}),
    ("examiner", {}, None, {"server": False, **DRAWN}),
    ("examiner", {"server": "http://localhost:1"}, None, {"server": True}),
    ("full_duplex", {}, None, DRAWN),
    ("full_duplex", {"outputs_of": "another"}, None, {}),
])  # fmt: skip
def test_what_decides_a_number_is_told(name, told, judge, expected):
    talker = Talker(Driver(None, Sampling(top_k=7)), Path("conversations"))
    asking = Asking(seconds=5.0, draws=2, judge=judge)
    found = TASKS[name].protocol(Benchmarks(None, minutes=3.0, asking=asking, talker=talker, **told))
    assert found == expected


def evaluate(material, out, tasks: str) -> int:
    base = ["eval", "--checkpoint_dir", "base", "--hf_repo_id", str(material.base_model), "--dtype", "float32"]
    return main([*base, "--data", str(material.eval_data), "--limit", "1", "--out", str(out), "--tasks", tasks])


@pytest.mark.parametrize(("points", "message"), [
    ({"sevens": "extra_sevens:GONE"}, "the task `sevens` (extra_sevens:GONE) cannot be loaded"),
    ({"sevens": "nowhere:SPEC"}, "the task `sevens` (nowhere:SPEC) cannot be loaded"),
    ({"sevens": "extra_raises:SPEC"}, "the task `sevens` (extra_raises:SPEC) cannot be loaded: no such device"),
    ({"sevens": "extra_exits:SPEC"}, "the task `sevens` (extra_exits:SPEC) cannot be loaded: bye"),
    ({"sevens": "extra_sevens:OTHER"}, "is no TaskSpec"),
    ({"ssc": "extra_sevens:SPEC"}, "the task `ssc` of extra_sevens:SPEC is there already"),
])  # fmt: skip
def test_a_task_that_cannot_be_had_is_refused_where_it_is_asked_for(
    install, tiny_material, tmp_path, capsys, monkeypatch, points, message
):
    (tmp_path / "extra_raises.py").write_text("raise RuntimeError('no such\\ndevice')\n")
    (tmp_path / "extra_exits.py").write_text("raise SystemExit('bye')\n")
    install(**points)
    (name,) = points
    monkeypatch.setenv("COLUMNS", "400")
    assert main(["eval", "--tasks", "list"]) == 0
    shown = capsys.readouterr().out
    assert message in shown and "broken: the task" in shown
    assert evaluate(tiny_material, tmp_path / "alone", name) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert evaluate(tiny_material, tmp_path / "other", "perplexity") == 0
    assert evaluate(tiny_material, tmp_path / "both", f"perplexity,{name}") == 1
    tasks = json.loads((tmp_path / "both" / "results.json").read_text())["tasks"]
    assert tasks["perplexity"]["status"] == "ok" and message in tasks[name]["reason"]


def test_a_task_is_found_by_its_name_as_it_is(install, tiny_material, tmp_path, capsys):
    install(MySevens="extra_sevens:SPEC")
    for typed in ("MySevens", "mysevens", "PPL,MySevens"):
        assert evaluate(tiny_material, tmp_path / typed, typed) == 0
        assert "MySevens" in json.loads((tmp_path / typed / "results.json").read_text())["tasks"]
    capsys.readouterr()
    assert evaluate(tiny_material, tmp_path / "no", "MySeven") == 2
    assert "unknown task `MySeven`; did you mean `MySevens`?" in capsys.readouterr().err


@pytest.mark.parametrize(("given", "complaint"), [
    ('"ci95": [7.0, 7.0], ', "task `sevens` has a result without `ci95`"),
    ('"metric": "sevens", ', "task `sevens` has a result without `metric`"),
    ('[7.0, 7.0]', "task `sevens` has no finite result"),
    ('"n": 1,', "task `sevens`: `n` is 1.5, and no whole number"),
    ('"better": "higher"', "task `sevens`: `better` is higher or lower"),
    ('"status": "ok"', "result that cannot be written: Object of type set"),
    ('"score": 7.0}', "sample that cannot be written: Out of range float"),
    ('"id": "a", ', "sample without `id` and `score`"),
    ('return Outcome', "`sevens` of another package gave back no `Outcome`"),
    ('{"of": 7}', "has failed: ZeroDivisionError: division by zero (extra_sevens.py, line 14)"),
    ('entry = {', "has failed: ZeroDivisionError: division by zero (extra_sevens.py, line 10)"),
])  # fmt: skip
def test_an_entry_that_is_no_result_is_named(install, tiny_material, tmp_path, capsys, given, complaint):
    """And the numbers of the tasks beside it are written."""
    replaced = MODULE.replace(given, INSTEAD.get(given, ""))
    assert replaced != MODULE
    install(replaced, sevens="extra_sevens:SPEC")
    assert evaluate(tiny_material, tmp_path / "out", "perplexity,sevens") == 1
    assert complaint in " ".join(capsys.readouterr().out.split())
    tasks = json.loads((tmp_path / "out" / "results.json").read_text())["tasks"]
    assert tasks["perplexity"]["status"] == "ok" and complaint in tasks["sevens"]["reason"]


INSTEAD = {
    "[7.0, 7.0]": "7.0",
    '"n": 1,': '"n": 1.5,',
    '"better": "higher"': '"better": "bigger"',
    '"status": "ok"': '"status": "ok", "more": {1, 2}',
    '"score": 7.0}': '"score": float("nan")}',
    '{"of": 7}': "1 / 0",
    "entry = {": "1 / 0; entry = {",
    "return Outcome": "Outcome",
}


@pytest.mark.parametrize(("points", "message"), [
    ({"../sevens": "extra_sevens:SPEC"}, "'../sevens' of extra_sevens:SPEC is no name for a task"),
    ({"all": "extra_sevens:SPEC"}, "'all' of extra_sevens:SPEC is no name for a task"),
    ({"sevens": "extra_two:SPEC"}, "is of version 'two', and no number"),
])  # fmt: skip
def test_a_task_that_could_not_be_recorded_is_refused_before_it_runs(
    install, tmp_path, capsys, monkeypatch, points, message
):
    (tmp_path / "extra_two.py").write_text(MODULE.replace("version=3", "version='two'"))
    install(**points)
    monkeypatch.setenv("COLUMNS", "400")
    assert main(["eval", "--tasks", "list"]) == 0
    assert message in capsys.readouterr().out


@pytest.mark.parametrize("given", ["cannot_apply=lambda c: ", "lambda benchmarks: Sevens()"])
def test_errors_of_its_options_and_its_data_are_one_line(install, tiny_material, tmp_path, capsys, given):
    install(
        MODULE.replace(given, given.replace("Sevens()", "1 / 0").replace("c: ", "c: 1 / 0 if c else ")),
        sevens="extra_sevens:SPEC",
    )
    assert evaluate(tiny_material, tmp_path / "out", "sevens") == 2
    error = capsys.readouterr().err
    assert "`sevens` of another package has failed: ZeroDivisionError" in error and error.count("\n") == 1
    assert not (tmp_path / "out").exists()
