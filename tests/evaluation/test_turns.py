"""Turn statistics: known streams with known answers, correlations by NumPy, and the command."""

import json

import numpy as np
import pytest
import soundfile

from ttt_moshi.cli.main import main
from ttt_moshi.evaluation.statistics import correlation
from ttt_moshi.evaluation.tasks.turns import beside_recorded, distance, turn_statistics

RATE = 24_000


def bursts(spans, seconds: float = 30) -> np.ndarray:
    noise = 0.1 * np.random.default_rng(0).standard_normal(seconds * RATE).astype(np.float32)
    loud = np.zeros(len(noise), bool)
    for start, end in spans:
        loud[round(start * RATE) : round(end * RATE)] = True
    return noise * loud


USER = bursts([(1, 4), (10, 14), (20, 23)])
RECORDED = bursts([(5, 8), (8.5, 9.5), (14.4, 18), (22, 25)])
LATE = bursts([(7, 8), (14.9, 18)])


def test_the_events_of_known_streams_are_those_that_were_put_in():
    found = turn_statistics(RECORDED, USER)
    per_minute = {kind: one["per_minute"] for kind, one in found.items()}
    assert per_minute == {"ipu": 14, "pause": 2, "gap": 8, "overlap": 2}
    seconds = {kind: one["seconds_per_minute"] for kind, one in found.items()}
    # Units of 10 and 10.6 s; the pause 8 - 8.5; gaps 4 - 5, 9.5 - 10, 14 - 14.4 and 18 - 20; both speak in 22 - 23.
    assert seconds == pytest.approx({"ipu": 41.2, "pause": 1.0, "gap": 7.8, "overlap": 2.0}, abs=0.05)
    late = turn_statistics(LATE, USER)
    assert (
        late["overlap"] == {"per_minute": 0, "seconds_per_minute": 0, "median": 0} and late["pause"]["per_minute"] == 0
    )
    # Units last 6.5 s less, the pause and the overlap are gone, gaps are 4 - 7, 8 - 10, 14 - 14.9 and 18 - 20.
    assert distance(late, found) == pytest.approx(2 * (6.5 + 0.5 + (7.9 - 3.9) + 1.0), abs=0.05)
    assert distance(found, found) == 0.0


def test_correlations_are_numpys_and_undefined_without_variation():
    rng = np.random.default_rng(3)
    x = rng.standard_normal(40) + 100
    y = x + rng.standard_normal(40)
    value, (low, high) = correlation(x, y)
    assert value == pytest.approx(np.corrcoef(x, y)[0, 1]) and low < value < high
    draws = [rng.integers(40, size=40) for _ in range(2000)]
    oracle = np.percentile([np.corrcoef(x[rows], y[rows])[0, 1] for rows in draws], [2.5, 97.5])
    assert (low, high) == pytest.approx(tuple(oracle), abs=0.03)
    assert correlation(x, -2 * x)[0] == pytest.approx(-1.0)
    assert np.isnan(correlation(x, np.full(40, 7.0))[0])


def test_who_does_what_people_did_is_no_second_off_and_correlates_fully():
    agents = (RECORDED, LATE, bursts([(5, 6), (15, 16)]))
    recorded = [turn_statistics(agent, USER) for agent in agents]
    same = beside_recorded([(one, one) for one in recorded])
    assert same["value"] == 0.0 and same["n"] == 3
    correlated = 0
    for kind, measures in same["kinds"].items():
        for measure, found in measures.items():
            assert found["said"] == found["recorded"]
            varies = len({one[kind][measure] for one in recorded}) > 1
            assert ("correlation" in found) == varies, (kind, measure)
            correlated += varies
            assert not varies or found["correlation"]["value"] == pytest.approx(1.0)
    assert correlated >= 8
    always_late = beside_recorded([(recorded[1], one) for one in recorded])
    expected = [distance(recorded[1], one) for one in recorded]
    assert always_late["value"] == pytest.approx(np.mean(expected)) and expected[1] == 0.0 < expected[0]
    assert "correlation" not in always_late["kinds"]["ipu"]["per_minute"]


def go(material, out, *options) -> int:
    base = ["eval", "--checkpoint_dir", "base", "--hf_repo_id", str(material.base_model), "--dtype", "float32"]
    return main([*base, "--tasks", "turns", "--out", str(out), *options])


def test_the_command_talks_with_recorded_users(tiny_material, tmp_path, capsys):
    audio, rate = soundfile.read(sorted(tiny_material.eval_data.parent.rglob("*.wav"))[0])
    soundfile.write(tmp_path / "first.wav", audio[: 3 * rate], rate)
    soundfile.write(tmp_path / "second.wav", audio[3 * rate : 5 * rate, ::-1], rate)
    for name in ("first", "second"):
        (tmp_path / f"{name}.json").write_text('{"alignments": []}')
    lines = [{"path": "first.wav", "duration": 3.0}, {"path": "second.wav", "duration": 2.0, "moshi_speaker": "B"}]
    (tmp_path / "d.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    data = ("--data", str(tmp_path / "d.jsonl"))
    assert go(tiny_material, tmp_path / "out", *data) == 0
    task = json.loads((tmp_path / "out" / "results.json").read_text())["tasks"]["turns"]
    samples = [json.loads(line) for line in (tmp_path / "out" / "samples" / "turns.jsonl").read_text().splitlines()]
    sides = [audio[: 3 * rate], audio[3 * rate : 5 * rate]]
    for sample, both in zip(samples, sides, strict=True):
        folder = tmp_path / "out" / sample["conversation"]
        agent, user = (soundfile.read(folder / f"{name}.wav", dtype="float32")[0] for name in ("output", "input"))
        np.testing.assert_allclose(user, both[:, 1], atol=1e-4)
        assert sample["said"] == turn_statistics(agent, both[:, 1].astype(np.float32))
        assert sample["recorded"] == turn_statistics(*both.T.astype(np.float32))
    assert task["value"] == pytest.approx(np.mean([distance(s["said"], s["recorded"]) for s in samples]))
    assert "events a minute" in (tmp_path / "out" / "report.md").read_text()
    capsys.readouterr()
    assert go(tiny_material, tmp_path / "no", *data, "--user", "absent") == 2
    assert "`turns`: `--user absent` is about a model that reads" in capsys.readouterr().err
    soundfile.write(tmp_path / "first.wav", audio[: 5 * rate, 0], rate)
    assert go(tiny_material, tmp_path / "no", *data) == 2
    assert "no user can be played: first.wav" in capsys.readouterr().out
