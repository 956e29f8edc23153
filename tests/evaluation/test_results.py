"""The results file: a number with its interval, or a reason; never a zero that was not measured."""

import json

import pytest

from ttt_moshi.evaluation import EvaluationError, Results, read_results, write_results
from ttt_moshi.evaluation.results import skipped

CHECKPOINT = {"state_id": "ab", "step": 3, "kind": "adapters"}
OK_TASK = {
    "status": "ok", "value": 0.7, "ci95": [0.6, 0.8], "n": 10,
    "metric": "accuracy", "unit_of_n": "pairs", "better": "higher",
}  # fmt: skip


def test_what_is_written_is_read_and_equal_results_are_equal_bytes(tmp_path):
    results = Results(CHECKPOINT, {"sblimp": OK_TASK}, {"dtype": "float32"})
    write_results(tmp_path / "results.json", results)
    assert read_results(tmp_path / "results.json") == results
    first = (tmp_path / "results.json").read_bytes()
    write_results(tmp_path / "results.json", results)
    assert (tmp_path / "results.json").read_bytes() == first
    assert json.loads(first)["tasks"]["sblimp"]["value"] == 0.7
    assert [f.name for f in tmp_path.iterdir()] == ["results.json"]


def test_a_task_that_did_not_run_has_a_reason_and_no_number(tmp_path):
    results = Results(CHECKPOINT, {"ssc": skipped("no folder sSC"), "sblimp": OK_TASK})
    write_results(tmp_path / "results.json", results)
    entry = json.loads((tmp_path / "results.json").read_text())["tasks"]["ssc"]
    assert entry["value"] is None and entry["reason"] == "no folder sSC" and entry["status"] == "skipped"
    assert read_results(tmp_path / "results.json").skipped == ["ssc"]


@pytest.mark.parametrize(
    "bad",
    [
        OK_TASK | {"value": float("nan")},
        OK_TASK | {"value": float("inf")},
        OK_TASK | {"ci95": [0.1, float("nan")]},
        OK_TASK | {"n": 0},
        OK_TASK | {"status": "completed"},
        {"status": "skipped", "value": 0.0, "reason": "x"},
        {"status": "skipped", "value": None, "reason": ""},
    ],
)
def test_entries_that_are_not_results_are_refused(tmp_path, bad):
    with pytest.raises(EvaluationError, match="ssc"):
        write_results(tmp_path / "results.json", Results({}, {"ssc": bad}))
    assert not list(tmp_path.iterdir())


def test_files_that_are_not_results_are_refused_with_a_reason(tmp_path):
    path = tmp_path / "results.json"
    with pytest.raises(EvaluationError, match="no evaluation at"):
        read_results(path)
    path.write_text("{")
    with pytest.raises(EvaluationError, match="not valid JSON"):
        read_results(path)
    path.write_text('{"schema": 99}')
    with pytest.raises(EvaluationError, match="schema 99"):
        read_results(path)
