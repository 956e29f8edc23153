"""The largest load that is in time is found, and every percentile is what was measured."""

import json

import pytest

from ttt_moshi.cli.main import main
from ttt_moshi.inference.benchmark import Load, most_slots


@pytest.mark.parametrize("most", [0, 1, 2, 3, 5, 8, 11, 12])
def test_the_search_finds_the_largest(most):
    tried = []

    def at(count: int) -> Load:
        return Load(count, 10, 0.01, 0.02, 0.07 if count <= most else 0.09)

    assert most_slots(at, 12, tried.append) == most
    assert len(tried) == len({load.slots for load in tried}) <= 8


def test_serve_bench_prints_what_it_measured(trained, capsys):
    command = ["serve", "bench", "--checkpoint_dir", str(trained), "--seconds", "0.4", "--max_slots", "2"]
    assert main([*command, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert 0 <= found["slots_in_real_time"] <= 2
    for load in found["loads"]:
        assert load["ticks"] == 5 and 0 < load["p50"] <= load["p95"] <= load["p99"]
    assert main(command) == 0
    assert "conversations in real time: " in capsys.readouterr().out


WRONG = ["--seconds=0", "--seconds=nan", "--max_slots=0", "--max_slots=9999", "--slots=1", "--temp=0"]
CHANGES_NOTHING = ["--seed=1", "--prompt_text=Ann", "--prompt_voice=a.wav", "--no_greeting"]


@pytest.mark.parametrize("option", [*WRONG, *CHANGES_NOTHING])
def test_serve_bench_refuses_what_cannot_work(trained, capsys, option):
    assert main(["serve", "bench", "--checkpoint_dir", str(trained), option]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and option.split("=")[0].lstrip("-") in error
