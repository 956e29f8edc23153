"""Full-Duplex-Bench's measures on words whose answer is known, and its folders."""

import json

import numpy as np
import pytest
import soundfile

from ttt_moshi.cli.main import main
from ttt_moshi.data.words import TimedWord
from ttt_moshi.evaluation import EvaluationError
from ttt_moshi.evaluation.full_duplex import (
    backchannels,
    jensen_shannon,
    latency,
    over_time,
    takes_over,
    utterances,
)
from ttt_moshi.evaluation.tasks.full_duplex import FullDuplex, find_situations


def said(*times: tuple[float, float]) -> list[TimedWord]:
    return [TimedWord("w", start, end) for start, end in times]


def test_a_turn_is_taken_by_more_than_a_backchannel():
    assert not takes_over([])
    assert not takes_over(said((1.0, 1.2), (1.3, 1.5), (1.6, 1.99)))  # three words in 0.99 s
    assert takes_over(said((1.0, 1.2), (1.3, 1.5), (1.6, 2.0)))  # they last a second
    assert takes_over(said((1.0, 1.1), (1.1, 1.2), (1.2, 1.3), (1.3, 1.4)))  # four words
    assert takes_over(said((1.0, 1.2), (9.0, 9.2)))


def test_a_planted_delay_is_measured():
    assert latency(said((5.24, 5.5), (5.6, 7.0)), 5.0) == pytest.approx(0.24)
    assert latency(said((9.0, 9.5), (5.24, 5.5)), 5.0) == pytest.approx(0.24)  # the first by time
    assert latency(said((4.0, 4.5)), 5.0) == 0.0


def test_utterances_and_backchannels():
    words = said((0.0, 0.3), (1.2, 1.5), (2.5, 2.8), (10.0, 10.4), (20.0, 20.2), (20.3, 22.0))
    assert [len(u) for u in utterances(words)] == [2, 1, 1, 2]  # a pause of exactly a second ends one
    assert [u[0].start for u in backchannels(words)] == [2.5, 10.0]


def test_divergence_over_time():
    assert over_time([0.0, 0.19, 0.2, 5.0], 1.0).tolist() == [2, 1, 0, 0, 1]
    a = np.array([1.0, 2.0, 1.0])
    assert jensen_shannon(a, 5 * a) == pytest.approx(0.0, abs=1e-12)
    assert jensen_shannon(np.array([1.0, 0.0]), np.array([0.0, 3.0])) == pytest.approx(1.0)
    p, q = np.array([0.5, 0.5]), np.array([1.0])
    mean = np.array([0.75, 0.25])
    expected = (0.5 * np.log2(0.5 / mean) @ np.ones(2) + np.log2(1 / 0.75)) / 2
    assert jensen_shannon(p, q) == pytest.approx(expected)
    assert jensen_shannon(np.zeros(3), a) == 1.0 and jensen_shannon(np.zeros(3), np.zeros(2)) == 0.0


@pytest.fixture
def bench(tmp_path):
    """Two situations of every kind: in the first the model does right, in the second wrong."""
    talk = [("I", 5.24, 5.4), ("think", 5.5, 5.9), ("that", 6.0, 6.2), ("so", 6.3, 6.9)]

    def put(subset: str, id: str, words, ours: bool = False, **annotation) -> None:
        folder = tmp_path / "full_duplex" / subset / id
        folder.mkdir(parents=True)
        soundfile.write(folder / "input.wav", np.zeros(16000 * 10, np.float32), 16000)
        chunks = [{"text": text, "timestamp": [start, end]} for text, start, end in words]
        rows = [[text, [start, end], "SPEAKER_MAIN"] for text, start, end in words] + [["x", [0, 9], "SPEAKER_OTHER"]]
        output = {"alignments": rows} if ours else {"text": "", "chunks": chunks}
        (folder / "output.json").write_text(json.dumps(output))
        for name, value in annotation.items():
            (folder / f"{name}.json").write_text(json.dumps(value))

    put("synthetic_pause_handling", "1", [("mhm", 2.0, 2.3)])
    put("synthetic_pause_handling", "2", talk)
    put("candor_turn_taking", "1", talk, ours=True, turn_taking=[{"text": "[TURN-TAKING]", "timestamp": [5.0, 5.2]}])
    put("candor_turn_taking", "2", [], turn_taking=[{"timestamp": [5.0, 5.2]}])
    put("synthetic_user_interruption", "1", [("Well", 1.0, 4.0), *talk], interrupt=[{"timestamp": [4.1, 4.74]}])
    put("synthetic_user_interruption", "2", [("a", 0.0, 1.0), ("b", 1.0, 3.0)], interrupt=[{"timestamp": [4.1, 4.74]}])
    put("icc_backchannel", "1", [("mhm", 2.0, 2.3), ("right", 4.1, 4.3)])
    put("icc_backchannel", "2", talk)
    weights = np.zeros(50)
    weights[[10, 20]] = 1
    humans = {"1": weights.tolist(), "2": weights.tolist()}
    (tmp_path / "full_duplex" / "icc_backchannel" / "icc_gt_distribution.json").write_text(json.dumps(humans))
    return tmp_path


def test_situations_in_the_benchmarks_folders(bench, oracle):
    outcome = FullDuplex(find_situations(bench)).run(oracle())
    assert {sample["id"]: sample["score"] for sample in outcome.samples} == {
        f"{subset}/{id}": float(id == "1")
        for subset in (
            "candor_turn_taking",
            "icc_backchannel",
            "synthetic_pause_handling",
            "synthetic_user_interruption",
        )
        for id in "12"
    }
    subsets = outcome.entry["subsets"]
    assert outcome.entry["value"] == 0.5 and {s["take_over"]["value"] for s in subsets.values()} == {0.5}
    assert subsets["candor_turn_taking"]["latency"] == {
        "value": pytest.approx(0.24),
        "ci95": [pytest.approx(0.24)] * 2,
        "n": 1,
    }
    assert subsets["synthetic_user_interruption"]["latency"]["value"] == pytest.approx(0.5)
    assert subsets["icc_backchannel"]["backchannels_per_second"]["value"] == pytest.approx(0.1)  # 2 and 0 in 10 s
    assert subsets["icc_backchannel"]["jsd"]["value"] == pytest.approx(0.5)  # just like people, and never
    assert "latency" not in subsets["synthetic_pause_handling"]


CANDOR, ICC = "candor_turn_taking/1", "icc_backchannel/1"


@pytest.mark.parametrize(("file", "content", "message"), [
    (f"{CANDOR}/turn_taking.json", None, r"there is no .*turn_taking\.json"),
    (f"{CANDOR}/turn_taking.json", "[]", r"turn_taking\.json is not what"),
    (f"{ICC}/output.json", None, "let the model answer it first"),
    (f"{ICC}/output.json", '{"chunks": [1]}', r"output\.json is not what"),
    (f"{ICC}/output.json", "{", r"output\.json is not valid JSON"),
    (f"{ICC}/input.wav", None, r"no input\.wav"),
    ("icc_backchannel/icc_gt_distribution.json", '{"1": "x"}', "icc_gt_distribution"),
    ("something/1/output.json", "", "the name of a subset holds one of"),
])  # fmt: skip
def test_what_is_missing_is_named(bench, file, content, message):
    path = bench / "full_duplex" / file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    if content is not None:
        path.write_text(content)
    with pytest.raises(EvaluationError, match=message):
        find_situations(bench)


def test_the_command(bench, tiny_material, tmp_path, capsys):
    base = ["eval", "--checkpoint_dir", "base", "--hf_repo_id", str(tiny_material.base_model)]
    base += ["--data_root", str(bench)]
    assert main([*base, "--tasks", "full_duplex", "--out", str(tmp_path / "out")]) == 0
    task = json.loads((tmp_path / "out" / "results.json").read_text())["tasks"]["full_duplex"]
    assert task["value"] == 0.5 and task["options"] == {}
    assert "take-over rate" in (tmp_path / "out" / "report.md").read_text()
    assert main([*base, "--tasks", "full_duplex", "--limit", "4", "--out", str(tmp_path / "few")]) == 0
    assert json.loads((tmp_path / "few" / "results.json").read_text())["tasks"]["full_duplex"]["n"] == 4
    assert main([*base, "--tasks", "full_duplex", "--ttt", "off", "--out", str(tmp_path / "no")]) == 2
