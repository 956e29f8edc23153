"""Full-Duplex-Bench's measures on words whose answer is known, and its folders."""

import json
import math

import numpy as np
import pytest
import soundfile

from ttt_moshi.cli.main import main
from ttt_moshi.data.words import TimedWord
from ttt_moshi.evaluation import EvaluationError
from ttt_moshi.evaluation.full_duplex import (
    apart_from_people,
    backchannels,
    jensen_shannon,
    latency,
    over_time,
    takes_over,
    utterances,
)
from ttt_moshi.evaluation.tasks.full_duplex import FullDuplex, Outputs, find_situations, read_output


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


def test_bins_hold_every_span_that_reaches_into_them():
    assert over_time([(0.05, 0.15), (0.15, 0.5), (0.9, 7.0), (3.0, 4.0)], 1.1).tolist() == [2, 1, 1, 0, 1, 1]
    assert over_time([(-1.0, -0.5), (-0.1, -0.05), (-0.3, 0.1)], 0.5).tolist() == [1, 0, 0]


def test_the_distance_of_distributions():
    a = np.array([1.0, 2.0, 1.0])
    assert jensen_shannon(a, 5 * a) == pytest.approx(0.0, abs=1e-7)
    assert jensen_shannon(np.array([1.0, 0.0]), np.array([0.0, 3.0])) == pytest.approx(math.sqrt(math.log(2)))
    by_hand = (0.5 * math.log(0.5 / 0.75) + 0.5 * math.log(0.5 / 0.25) + math.log(1 / 0.75)) / 2
    assert jensen_shannon(np.array([0.5, 0.5]), np.array([1.0, 0.0])) == pytest.approx(math.sqrt(by_hand))


def distance_by_hand(spans_ms: list[tuple[int, int]], ms: int, people: list[float]) -> float:
    """The benchmark's JSD, bin by bin in milliseconds, from Kullback and Leibler's divergences."""
    bins = ms // 200 + 1
    ours = [sum(a // 200 <= i <= b // 200 for a, b in spans_ms) + 1e-10 for i in range(bins)]
    theirs = []
    for i in range(bins):
        place = i * (len(people) - 1) / (bins - 1)
        left = min(int(place), len(people) - 2)
        theirs.append(people[left] + (place - left) * (people[left + 1] - people[left]))
    p, q = [x / sum(ours) for x in ours], [x / sum(theirs) for x in theirs]
    mean = [(x + y) / 2 for x, y in zip(p, q, strict=True)]
    kl = [sum(x * math.log(x / m) for x, m in zip(one, mean, strict=True) if x) for one in (p, q)]
    return math.sqrt(max(0.0, sum(kl) / 2))


def test_backchannels_are_held_against_peoples_as_the_benchmark_does_it():
    rng = np.random.default_rng(0)
    for ms, bins in ((10_050, 50), (24_510, 143), (7_730, 20)):
        starts = range(251, ms, 2_370)  # nothing begins or ends at an edge of a bin, where 12.6 / 0.2 is below 63
        spans = [(start + int(rng.integers(9)), start + 502) for start in starts]
        people = rng.random(bins).tolist()
        found = [said((a / 1000, a / 1000 + 0.1), (a / 1000 + 0.2, b / 1000)) for a, b in spans]
        distance = apart_from_people(found, ms / 1000, np.array(people))
        assert distance == pytest.approx(distance_by_hand(spans, ms, people), abs=1e-9) and 0.1 < distance < 0.8326
    assert apart_from_people([], 10.0, np.ones(50)) == 1.0


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


def outputs_of_another(bench, engine):
    """What is measured of the outputs that lie in the benchmark's folders."""
    situations = find_situations(bench)
    outputs = Outputs("Parrot 2", [read_output(situation.folder) for situation in situations])
    return FullDuplex(situations, None, outputs).run(engine)


def test_situations_in_the_benchmarks_folders(bench, oracle):
    outcome = outputs_of_another(bench, oracle())
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
    people = [float(i in (10, 20)) for i in range(50)]
    first = distance_by_hand([(2000, 2300), (4100, 4300)], 10_000, people)
    assert subsets["icc_backchannel"]["jsd"]["value"] == pytest.approx((first + 1) / 2)  # and never
    assert "latency" not in subsets["synthetic_pause_handling"]


def test_outputs_of_another_model_are_told_by_their_words(bench, oracle):
    first = outputs_of_another(bench, oracle())
    assert first.entry["made_by"] == "Parrot 2" and "Parrot 2, and not this checkpoint" in first.entry["means"]
    assert first.entry["words_without_end"] == first.entry["words_without_start"] == 0
    assert outputs_of_another(bench, oracle()).data_digest == first.data_digest
    path = bench / "full_duplex" / "icc_backchannel" / "1" / "output.json"
    path.write_text(path.read_text().replace("mhm", "hm"))
    assert outputs_of_another(bench, oracle()).data_digest != first.data_digest


def test_a_word_without_a_time_is_counted_and_the_others_are_measured(bench, oracle):
    folder = bench / "full_duplex" / "candor_turn_taking" / "2"
    times = [[5.3, 5.5], [5.6, None], [None, 5.9], [None, None], [7.0, None]]
    chunks = [{"text": f"w{i}", "timestamp": pair} for i, pair in enumerate(times)]
    (folder / "output.json").write_text(json.dumps({"text": "", "chunks": chunks}))
    words = read_output(folder).words
    assert [(w.text, w.start, w.end) for w in words] == [("w0", 5.3, 5.5), ("w1", 5.6, 5.6), ("w4", 7.0, 7.0)]
    outcome = outputs_of_another(bench, oracle())
    assert outcome.entry["words_without_end"] == 2 and outcome.entry["words_without_start"] == 2
    (sample,) = [one for one in outcome.samples if one["id"] == "candor_turn_taking/2"]
    assert sample["take_over"] == 1.0 and sample["latency"] == pytest.approx(0.3)  # 1.7 s are no backchannel


NO_WORDS = "not a transcript of words with times"


@pytest.mark.parametrize(("content", "message"), [
    (None, "has no output.json"),
    ("{", "is not valid JSON"),
    ('{"chunks": [1]}', NO_WORDS),
    ('{"text": "mhm"}', NO_WORDS),
    ('["mhm"]', NO_WORDS),
    ('{"chunks": [{"text": "mhm", "timestamp": ["soon", 2]}]}', NO_WORDS),
    ('{"chunks": [{"text": "mhm", "timestamp": [NaN, 2]}]}', NO_WORDS),
    ('{"chunks": [{"text": "mhm", "timestamp": null}]}', NO_WORDS),
    ('{"chunks": [{"text": "mhm", "timestamp": [1, 1e400]}]}', "1 to inf is no stretch"),
    ('{"chunks": [{"text": "mhm", "timestamp": [1' + 400 * "0" + ', null]}]}', NO_WORDS),
    ('{"chunks": [{"text": "mhm", "timestamp": [-1, -0.5]}]}', "-1 to -0.5 is no stretch"),
    ('{"chunks": [{"text": "mhm", "timestamp": [2, 1]}]}', "2 to 1 is no stretch"),
    ('{"alignments": [["mhm", [1], "SPEAKER_MAIN"]]}', NO_WORDS),
])  # fmt: skip
def test_outputs_that_hold_no_words_are_refused(tmp_path, content, message):
    if content is not None:
        (tmp_path / "output.json").write_text(content)
    with pytest.raises(EvaluationError, match=message):
        read_output(tmp_path)


def test_words_may_not_be_said_after_what_was_recorded_of_them(tmp_path):
    content = {"chunks": [{"text": "mhm", "timestamp": [3.9, 4.2]}, {"text": "yes", "timestamp": [5, None]}]}
    (tmp_path / "output.json").write_text(json.dumps(content))
    assert len(read_output(tmp_path).words) == 2
    for seconds in (5.0, 4.6):
        soundfile.write(tmp_path / "output.wav", np.zeros(round(16000 * seconds), np.float32), 16000)
        assert len(read_output(tmp_path).words) == 2  # 4.6 s may be 5 s in whole seconds
    soundfile.write(tmp_path / "output.wav", np.zeros(16000 * 4, np.float32), 16000)
    with pytest.raises(EvaluationError, match=r"5 to 5 is no stretch of a recording of 4\.000 s"):
        read_output(tmp_path)


CANDOR, ICC = "candor_turn_taking/1", "icc_backchannel/1"
INTERRUPT = "synthetic_user_interruption/1/interrupt.json"


@pytest.mark.parametrize(("file", "content", "message"), [
    (f"{CANDOR}/turn_taking.json", None, r"there is no .*turn_taking\.json"),
    (f"{CANDOR}/turn_taking.json", "[]", r"turn_taking\.json holds something else"),
    (f"{ICC}/input.wav", None, r"no input\.wav"),
    ("icc_backchannel/icc_gt_distribution.json", '{"1": "x"}', "icc_gt_distribution"),
    *[(f"{CANDOR}/turn_taking.json", f'[{{"timestamp": [{end}, 9]}}]', r"turn_taking\.json: .* is no stretch")
      for end in ("NaN", "1e400", "5200", "-5", "10.6")],
    *[(INTERRUPT, f'[{{"timestamp": {times}}}]', r"interrupt\.json: .* is no stretch of a recording of 10\.000 s")
      for times in ("[4.1, NaN]", "[NaN, 4.7]", "[4.1, 4740]", "[4.7, 4.1]", "[-1, 4.7]", "[4.1, 1e400]")],
    (INTERRUPT, '[{"timestamp": [4.1]}]', r"interrupt\.json holds something else"),
    ("icc_backchannel/icc_gt_distribution.json", '{"1": [1' + 400 * "0" + "]}", "icc_gt_distribution"),
    ("icc_backchannel/icc_gt_distribution.json", '{"1": [0, 0]}', "weights are numbers from 0 on"),
    ("icc_backchannel/icc_gt_distribution.json", '{"1": [1, -1]}', "weights are numbers from 0 on"),
    ("something/1/input.wav", "", "the name of a subset holds one of"),
])  # fmt: skip
def test_what_is_missing_is_named(bench, file, content, message):
    path = bench / "full_duplex" / file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    if content is not None:
        path.write_text(content)
    with pytest.raises(EvaluationError, match=message):
        find_situations(bench)


def test_a_time_may_be_rounded_beyond_the_end_of_the_recording(bench):
    path = bench / "full_duplex" / CANDOR / "turn_taking.json"
    path.write_text('[{"timestamp": [10.4, 11]}]')
    assert [s.user_end for s in find_situations(bench) if s.id == CANDOR] == [10.4]


def test_the_command(bench, tiny_material, tmp_path, capsys):
    base = ["eval", "--checkpoint_dir", "base", "--hf_repo_id", str(tiny_material.base_model), "--dtype", "float32"]
    base += ["--tasks", "full_duplex", "--data_root", str(bench)]

    def measured(out: str) -> dict:
        return json.loads((tmp_path / out / "results.json").read_text())["tasks"]["full_duplex"]

    assert main([*base, "--outputs_of", "Parrot 2", "--out", str(tmp_path / "other")]) == 0
    task = measured("other")
    assert task["value"] == 0.5 and task["made_by"] == "Parrot 2" and task["version"] == 2
    assert task["options"] == task["protocol"] == {}
    report = (tmp_path / "other" / "report.md").read_text()
    assert "take-over rate" in report and "Parrot 2, and not this checkpoint" in report
    assert not (tmp_path / "other" / "conversations").exists()

    written = {path.parent: json.loads(path.read_text()) for path in (bench / "full_duplex").glob("*/*/output.json")}
    for folder in written:
        (folder / "output.json").unlink()  # the checkpoint talks itself
    own = [*base, "--limit", "4", "--out", str(tmp_path / "own")]
    assert main(own) == 0
    state = json.loads((tmp_path / "own" / "results.json").read_text())["checkpoint"]["state_id"]
    task = measured("own")
    assert task["n"] == 4 and "made_by" not in task and task["options"]["ttt"] == "on"
    samples = [json.loads(line) for line in (tmp_path / "own" / "samples" / "full_duplex.jsonl").open()]
    # What the model is found to have said is exchanged for something known; the same command goes on from there.
    for sample in samples:
        folder = tmp_path / "own" / sample["conversation"]
        assert sample["conversation"] == f"conversations/full_duplex/{sample['id']}"
        assert soundfile.info(folder / "output.wav").duration == pytest.approx(10.0)
        assert json.loads((folder / "made_by.json").read_text())["state_id"] == state
        said = written[bench / "full_duplex" / sample["id"]]
        rows = said.get("alignments") or [[c["text"], c["timestamp"], "SPEAKER_MAIN"] for c in said["chunks"]]
        (folder / "output.json").write_text(json.dumps({"alignments": [r for r in rows if r[2] == "SPEAKER_MAIN"]}))
    assert main(own) == 0
    assert measured("own")["value"] == np.mean([sample["id"].endswith("/1") for sample in samples])
    assert f'src="{samples[0]["conversation"]}/output.wav"' in (tmp_path / "own" / "report.html").read_text()
    capsys.readouterr()
    assert main([*base, "--ttt", "off", "--out", str(tmp_path / "no")]) == 2
    assert main([*base, "--outputs_of", "Parrot 2", "--out", str(tmp_path / "no")]) == 2
    assert "has no output.json" in capsys.readouterr().err
