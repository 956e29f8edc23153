"""The soak says what is not as it should be, and runs."""

from __future__ import annotations

import copy
import json

import pytest

from benchmarks.inference.soak import main, problems

FINE = {
    "memory_mb": {"second third": 700, "last third": 701, "growth": 0.0014},
    "places": {"all": 8, "free at the end": 8},
    "sessions": {"kept": 30, "that did not go on": []},
    "refused": [],
    "exit_code": 0,
}


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        (("memory_mb", "growth"), 0.2, "memory grew by 20.0%"),
        (("places", "free at the end"), 7, "1 places were lost"),
        (("sessions", "that did not go on"), ["a1"], "did not go on: ['a1']"),
        (("refused",), ["closed with 1011"], "closed with 1011"),
        (("exit_code",), 1, "ended with code 1"),
    ],
)
def test_what_is_wrong_is_said(path, value, words):
    assert problems(FINE) == []
    found = copy.deepcopy(FINE)
    *way, last = path
    place = found[way[0]] if way else found
    place[last] = value
    (problem,) = problems(found)
    assert words in problem


@pytest.mark.parametrize("option", ["--clients=0", "--minutes=0", "--minutes=nan", "--clients=many"])
def test_what_cannot_work_is_refused(option, capsys):
    with pytest.raises(SystemExit) as stopped:
        main([option])
    assert stopped.value.code == 2 and option.split("=")[0] in capsys.readouterr().err


@pytest.mark.slow
def test_people_come_and_go(trained, tmp_path):
    arguments = ["--minutes", "0.4", "--clients", "2", "--checkpoint_dir", str(trained)]
    assert main([*arguments, "--json", str(tmp_path / "found.json")]) == 0
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["sessions"]["kept"] >= 2 and found["2 clients"]["frames answered"] > 50
    assert found["2 clients"]["lag_ms"].keys() == {"p50", "p95", "p99"} and found["memory_mb"]["first"] > 100
    assert found["alone"]["mouth_to_ear_ms"]["p50"] <= found["alone"]["mouth_to_ear_ms"]["p99"]
