"""StoryCloze, SALMon, needle and the long-context curves, with scores computed by hand."""

import json
import sys

import numpy as np
import pytest

from ttt_moshi.evaluation import EvaluationError
from ttt_moshi.evaluation.scoring.scorer import ModelScorer, ScoringOptions
from ttt_moshi.evaluation.tasks.books import find_books
from ttt_moshi.evaluation.tasks.long_context import Context, Position, Repeat, hosts
from ttt_moshi.evaluation.tasks.registry import TASKS, Benchmarks
from ttt_moshi.evaluation.tasks.slm21 import lexical_pairs, syntactic_pairs
from ttt_moshi.evaluation.tasks.spoken_repeat import find_repeats
from ttt_moshi.evaluation.tasks.stories import needle_pairs, salmon_pairs, story_pairs
from ttt_moshi.evaluation.tasks.two_choices import common_beginning
from ttt_moshi.synthetic.benchmarks import make_bench


def benchmarks(root, tokens=None, **changes):
    return Benchmarks(root, frames_of=tokens.frames if tokens else len, **changes)


def test_stories_are_paired_by_their_uuid_and_continuations_scored_after_the_common_beginning(tmp_path, toy, oracle):
    """The wrong story is worse where the two differ, and looks better as a whole because it is longer."""
    folder = tmp_path / "sSC" / "sSC"
    toy(folder / "0_3f-9a_correct.wav", [5] * 6 + [2, 2, 2, 2])
    toy(folder / "1_3f-9a_incorrect.wav", [5] * 6 + [3, 2] * 10)
    outcome = TASKS["ssc"].build(benchmarks(tmp_path)).run(oracle(rule=lambda k, v, t: float(v) if k == 1 else 0.0))
    assert [sample["id"] for sample in outcome.samples] == ["3f-9a"]
    reductions = {name: found["value"] for name, found in outcome.entry["reductions"].items()}
    assert reductions["semantic.mean"] == 0.0  # 38 / 10 against 80 / 26
    assert reductions["semantic.sum"] == 1.0  # 38 against 80
    assert reductions["acoustic.mean"] == 0.5  # a tie
    variants = {name: found["value"] for name, found in outcome.entry["variants"].items()}
    assert variants["continuation"] == 1.0  # 2 against 2.5
    assert variants["localized"] == 1.0
    assert variants["minus_unconditional"] == 0.5  # this oracle does not listen, so nothing is gained by hearing


def test_the_unconditional_likelihood_is_subtracted(tmp_path, toy, oracle):
    """The oracle finds every token cheap once it has heard something: only the difference tells the endings apart."""
    toy(tmp_path / "tSC" / "0_a_correct.wav", [1, 1, 1, 1, 9, 9, 9])
    toy(tmp_path / "tSC" / "1_a_incorrect.wav", [1, 1, 1, 1, 2, 2, 2])

    def rule(k, value, t):  # a 9 is dear at the start of a sequence and costs 3 later; a 2 always costs 2
        return (20.0 if t < 3 else 3.0) if value == 9 else float(value)

    entry = TASKS["tsc"].build(benchmarks(tmp_path)).run(oracle(rule=rule)).entry
    assert entry["variants"]["continuation"]["value"] == 0.0
    assert entry["variants"]["minus_unconditional"]["value"] == 1.0


def test_a_shared_beginning_in_a_file_of_its_own(tmp_path, toy, oracle):
    for name, samples in {"s_mutual": [5, 5], "s_correct": [1, 1, 1], "s_incorrect": [2, 2, 2]}.items():
        toy(tmp_path / "sSC" / f"{name}.wav", samples)
    (pair,) = story_pairs(tmp_path, "sSC")
    assert oracle().tokens.tokens(pair.correct)[1].tolist() == [5, 5, 1, 1, 1]
    assert TASKS["ssc"].build(benchmarks(tmp_path)).run(oracle()).entry["value"] == 1.0


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["0_a_correct.wav"], "has only"),
        (["0_a_correct.wav", "2_a_correct.wav"], "two correct files"),
        (["story.wav"], "is not named"),
        ([], "no recordings"),
    ],
)
def test_stories_that_cannot_be_paired_are_errors(tmp_path, toy, names, message):
    for name in names:
        toy(tmp_path / "sSC" / name, [1, 2])
    with pytest.raises(EvaluationError, match=message):
        story_pairs(tmp_path, "sSC")


def test_salmon_weighs_all_codebooks_alike_and_reports_parts(tmp_path, toy, oracle):
    for part, (good, bad) in {"speaker_consistency": (1, 2), "rir_consistency": (2, 1)}.items():
        for i in range(3):
            toy(tmp_path / "salmon" / part / f"sample_{i}_0.wav", [good + i] * 3)
            toy(tmp_path / "salmon" / part / f"sample_{i}_1.wav", [bad + i] * 3)
    entry = TASKS["salmon"].build(benchmarks(tmp_path)).run(oracle()).entry
    assert entry["metric"] == "accuracy by uniform, mean"
    assert entry["groups"]["part"]["speaker_consistency"]["value"] == 1.0
    assert entry["groups"]["part"]["rir_consistency"]["value"] == 0.0
    assert entry["value"] == 0.5 and entry["n"] == 6
    (tmp_path / "salmon" / "rir_consistency" / "sample_1_1.wav").unlink()
    with pytest.raises(EvaluationError, match="sample 1 has only"):
        salmon_pairs(tmp_path)


def test_needles_are_grouped_by_distance(tmp_path, toy, oracle):
    for distance, wrong in (("4", 9), ("60", 1)):
        toy(tmp_path / "needle" / distance / "0_n_correct.wav", [2, 2, 2])
        toy(tmp_path / "needle" / distance / "1_n_incorrect.wav", [2, 2, wrong])
    groups = TASKS["needle"].build(benchmarks(tmp_path)).run(oracle()).entry["groups"]["distance"]
    assert {name: group["value"] for name, group in groups.items()} == {"4": 1.0, "60": 0.0}
    with pytest.raises(EvaluationError, match="must be a number of seconds"):
        (tmp_path / "needle" / "far").mkdir()
        needle_pairs(tmp_path)


def test_common_beginning_leaves_something_to_score():
    a = np.arange(10)[None]
    assert common_beginning(a, a) == 8
    assert common_beginning(a, a[:, :5]) == 3
    assert common_beginning(a, a + 1) == 0


def write_book(root, toy, name, samples, activity=None, files=1):
    folder = root / "librilight" / "small" / name
    for i, part in enumerate(np.array_split(np.array(samples), files)):
        path = toy(folder / f"part_{i}.wav", part.tolist())
        if activity is not None:
            path.with_suffix(".json").write_text(json.dumps({"voice_activity": activity}))


def test_books_are_consecutive_files_without_their_pauses(tmp_path, toy, oracle):
    frame = 1 / 12500
    write_book(tmp_path, toy, "7/emma", list(range(20)), [[0, 3 * frame], [5 * frame, 8 * frame]], files=2)
    (book,) = find_books(tmp_path)
    assert (book.id, book.speaker) == ("7/emma", "7")
    engine = oracle()
    assert engine.tokens.samples(book.source).tolist() == [0, 1, 2, 5, 6, 7, 10, 11, 12, 15, 16, 17]


def test_books_of_one_name_in_two_sizes_are_two_books(tmp_path, toy, oracle):
    for place in ("small/100/stories_01", "medium/100/stories_01", "medium/100/other"):
        toy(tmp_path / "librilight" / place / "a.wav", list(range(20 if "small" in place else 10)))
    books, lengths = benchmarks(tmp_path, oracle().tokens).books()
    assert [(book.id, book.speaker) for book in books] == [
        ("100/other", "100"), ("medium/100/stories_01", "100"), ("small/100/stories_01", "100"),
    ]  # fmt: skip
    assert lengths == {"100/other": 10, "medium/100/stories_01": 10, "small/100/stories_01": 20}
    toy(tmp_path / "librilight" / "medium" / "100" / "other" / "a.flac", [1, 2])
    with pytest.raises(EvaluationError, match=r"other/a\.flac and .*other/a\.wav would both be called a"):
        find_books(tmp_path)


@pytest.mark.parametrize(
    "activity", ["[[0, 1e400]]", "[[NaN, 1]]", "[[-1, 1]]", "[[2, 1]]", "[[0, 1, 2]]", "[[0, 1" + 400 * "0" + "]]"]
)
def test_voice_activity_that_is_no_time_is_refused(tmp_path, toy, activity):
    path = toy(tmp_path / "librilight" / "small" / "7" / "emma" / "a.wav", list(range(20)))
    path.with_suffix(".json").write_text(f'{{"voice_activity": {activity}}}')
    with pytest.raises(EvaluationError, match=r"a\.json is no Libri-Light description"):
        find_books(tmp_path)


def test_loss_by_position_of_a_model_that_learns_until_its_window_ends(tmp_path, toy, oracle):
    """The oracle's NLL is max(0, 32 - t): bins, their means and the difference beyond the window follow by hand."""
    for i in range(3):
        write_book(tmp_path, toy, f"{i}/b", [1] * 100)
    engine = oracle(rule=lambda k, value, t: float(max(0, 32 - t)))
    outcome = Position(find_books(tmp_path)).run(engine)
    bins = {(b["start"], b["stop"]): b["semantic"] for b in outcome.entry["bins"]}
    assert list(bins) == [(0, 8), (8, 16), (16, 32), (32, 64), (64, 128)]
    assert bins[0, 8]["value"] == 28.5 and bins[0, 8]["tokens"] == 24 and bins[0, 8]["n"] == 3
    assert bins[16, 32]["value"] == 8.5
    assert bins[64, 128]["tokens"] == 3 * 36
    assert outcome.entry["beyond_window"] == {"status": "ok", "value": -8.5, "ci95": [-8.5, -8.5], "n": 3}
    assert outcome.entry["value"] == pytest.approx(sum(range(33)) / 100)


def test_books_shorter_than_the_window_have_no_number_beyond_it(tmp_path, toy, oracle):
    write_book(tmp_path, toy, "1/b", [1] * 20)
    beyond = Position(find_books(tmp_path)).run(oracle()).entry["beyond_window"]
    assert beyond["status"] == "skipped" and "value" not in beyond and "32 frames" in beyond["reason"]


def test_context_scores_the_same_targets_after_ever_more_context(tmp_path, toy, oracle):
    """An oracle that gains a tenth of a nat per frame heard; the targets, four frames, are the book's last."""
    rng = np.random.default_rng(0)
    for name in ("1/a", "2/b"):
        write_book(tmp_path, toy, name, rng.integers(0, 20, 150).tolist())
    seen = []

    def rule(k, value, t):
        if k == 1:
            seen.append(value)
        return 50.0 - 0.1 * t

    engine = oracle(rule=rule)
    books, lengths = Benchmarks(tmp_path, frames_of=engine.tokens.frames).books()
    outcome = Context(books, lengths).run(engine)
    frames = [c["frames"] for c in outcome.entry["contexts"]]
    assert frames == [2, 4, 8, 16, 32, 64, 128]  # 256 does not fit
    for c in outcome.entry["contexts"]:
        expected = np.mean([50 - 0.1 * (c["frames"] + i) for i in range(4)])
        assert c["semantic"]["value"] == pytest.approx(expected, abs=1e-5) and c["semantic"]["n"] == 2
    assert outcome.entry["value"] == pytest.approx(-0.1 * (128 - 32), abs=1e-5)
    assert outcome.entry["controls"]["foreign_distant_context"]["value"] == pytest.approx(-9.6, abs=1e-5)
    ends = {tuple(engine.tokens.samples(book.source)[-4:].tolist()) for book in books}
    for c in (4, 128):
        examples = [Context(books, lengths)._example(book, c, 4) for book in books]
        assert {tuple(engine.tokens.tokens(e)[1][-4:].tolist()) for e in examples} == ends
    # the control keeps the last window and replaces all before it
    foreign = Context(books, lengths)._foreign(books, 128, 32, 4)[0]
    mine, other = (engine.tokens.samples(b.source) for b in books)
    tokens = engine.tokens.tokens(foreign)[1]
    assert tokens[-36:].tolist() == mine[-36:].tolist() and tokens[:96].tolist() == other[:96].tolist()


def test_a_sample_of_books_is_not_the_first_ones(tmp_path, toy):
    for i in range(8):
        write_book(tmp_path, toy, f"{i}/a", [1, 2, 3])

    def chosen(seed: int) -> list[str]:
        return [book.id for book in Benchmarks(tmp_path, frames_of=lambda e: 3, max_items=3, seed=seed).books()[0]]

    samples = [chosen(seed) for seed in range(20)]
    assert samples == [chosen(seed) for seed in range(20)] and all(len(sample) == 3 for sample in samples)
    assert {book for sample in samples for book in sample} == {f"{i}/a" for i in range(8)}


def test_repeats_are_told_from_what_was_never_heard(tmp_path, toy, oracle):
    """The oracle remembers: a passage costs 1 less when its tokens were heard before in the sequence."""
    rng = np.random.default_rng(0)
    for name in ("1/a", "2/b"):
        write_book(tmp_path, toy, name, rng.integers(0, 20, 200).tolist())
    engine = oracle()
    history: list[tuple[int, ...]] = []

    def score(codes, frames):
        found = type(engine.scorer).score(engine.scorer, codes, frames)
        for b in range(len(codes)):
            row = codes[b, 1].tolist()
            for t in range(1, int(frames[b])):
                heard = any(row[s - 1 : s + 1] == row[t - 1 : t + 1] for s in range(1, t))
                found.nll[b, 1, t] = 3.0 - heard
        history.append(tuple(codes.shape))
        return found

    engine.scorer.score = score
    books, lengths = Benchmarks(tmp_path, frames_of=engine.tokens.frames).books()
    entry = Repeat(books, lengths).run(engine).entry
    assert entry["clip_frames"] == 2
    assert [d["frames"] for d in entry["distances"]] == [8, 16, 32, 48, 64, 128]
    assert entry["value"] < 0
    assert all(d["second_minus_first"]["n"] == 2 for d in entry["distances"])


def test_every_size_is_measured_on_the_same_books(tmp_path, toy):
    for i, length in enumerate((40, 80, 90, 200)):
        write_book(tmp_path, toy, f"{i}/b", [0] * length)
    books = find_books(tmp_path)
    lengths = dict(zip([b.id for b in books], (40, 80, 90, 200), strict=True))
    sizes, able = hosts(books, lengths, [16, 32, 64, 128], extra=4)
    assert sizes == [16, 32, 64] and [b.id for b in able] == ["1/b", "2/b", "3/b"]
    with pytest.raises(EvaluationError, match="too short: 304 frames are needed, the longest has 200"):
        hosts(books, lengths, [300], extra=4)


def test_a_needle_asked_both_ways_is_one_item(tmp_path, toy, oracle):
    """A model that always likes 2 better than 9 gets one way right and the other wrong: no better than chance."""
    for n, story, good, bad in ((0, "a", 2, 9), (2, "b", 9, 2)):
        toy(tmp_path / "needle" / "8s" / f"{n}_{story}_correct.wav", [5, good, good])
        toy(tmp_path / "needle" / "8s" / f"{n + 1}_{story}_incorrect.wav", [5, bad, bad])
    (tmp_path / "needle" / "8s" / "needles.json").write_text('[{"pairs": ["a", "b"], "values": ["2", "9"]}]')
    entry = TASKS["needle"].build(benchmarks(tmp_path)).run(oracle()).entry
    assert entry["n"] == 1 and entry["pairs"] == 2 and entry["value"] == 0.5
    for wrong in ("[{}]", '[{"pairs": []}]', '[{"pairs": [["a", "b"]]}]', "{", "[1]", "1"):
        (tmp_path / "needle" / "8s" / "needles.json").write_text(wrong)
        with pytest.raises(EvaluationError, match=r"needles\.json is not"):
            needle_pairs(tmp_path)


def test_spoken_repeats_compare_the_two_hearings(tmp_path, toy, oracle):
    """A frame lasts 0.08 s: the first hearing is frames 2 to 4, the second 8 to 10, and partial frames do not count."""
    for folder, samples in (("1s", [9, 9, 4, 4, 4, 9, 9, 9, 1, 1, 1, 9]), ("2s", [9, 9, 4, 4, 4, 9, 9, 9, 6, 6, 6, 9])):
        path = toy(tmp_path / "repeat" / folder / "x.wav", samples)
        path.with_suffix(".json").write_text(json.dumps({"first": [0.15, 0.41], "second": [0.63, 0.89]}))
    outcome = TASKS["spoken_repeat"].build(benchmarks(tmp_path, oracle().tokens)).run(oracle())
    assert [d["second_minus_first"]["value"] for d in outcome.entry["distances"]] == [-3.0, 2.0]
    # This oracle does not listen: what was heard before plays no part.
    assert outcome.entry["value"] == 0.0
    assert [s["nll"] for s in outcome.samples] == [
        {"first": 4.0, "second": 1.0, "never": 1.0}, {"first": 4.0, "second": 6.0, "never": 6.0},
    ]  # fmt: skip
    path.with_suffix(".json").unlink()
    with pytest.raises(EvaluationError, match=r"cannot read .*x\.json"):
        TASKS["spoken_repeat"].build(benchmarks(tmp_path, oracle().tokens))
    for first, complaint in (
        ("[0.15, 1e400]", "0.15 to inf"), ("[NaN, 0.4]", "nan to 0.4"), ("[-0.15, 0.4]", "-0.15 to 0.4"),
        ("[0.4, 0.15]", "0.4 to 0.15"), ("[0.15, 0.2]", "no whole frame"), ("[150, 410]", "beyond the 12 frames"),
        ("[1.0, 1.3]", "no whole frame"),
    ):  # fmt: skip
        path.with_suffix(".json").write_text(f'{{"first": {first}, "second": [0.63, 0.89]}}')
        with pytest.raises(EvaluationError, match=rf"x\.json is not .*{complaint}"):
            TASKS["spoken_repeat"].build(benchmarks(tmp_path, oracle().tokens))


def test_what_is_repeated_beyond_the_reach_of_attention_is_known_by_memory_alone(tmp_path, toy, oracle, new_ttt_model):
    """Two layers with a window of 8 see 2 * 7 + 1 = 15 positions, whose delayed codebooks are one frame older. So 16
    frames after the passage the difference is exactly zero without a memory, and one frame nearer it is not."""
    rng = np.random.default_rng(0)
    model = new_ttt_model(context=8)

    def measured(gap: int, **options) -> float:
        """`gap` frames lie between the end of the first hearing and the beginning of the second."""
        root = tmp_path / str(gap)
        for i in range(2):
            passage, lead, between = (rng.integers(0, 20, n).tolist() for n in (5, 3, gap))
            path = toy(root / "repeat" / "1" / f"{i}.wav", [*lead, *passage, *between, *passage, 1, 1])
            spans = {"first": [2.6 / 12.5, 8.4 / 12.5], "second": [(7.6 + gap) / 12.5, (13.4 + gap) / 12.5]}
            path.with_suffix(".json").write_text(json.dumps(spans))
        engine = oracle()
        engine.scorer = ModelScorer(model, "s", ScoringOptions(**options))
        return TASKS["spoken_repeat"].build(benchmarks(root, engine.tokens)).run(engine).entry["value"]

    assert measured(16, gate=0.0) == 0.0
    assert measured(16, inner_lr=0.0) == 0.0
    assert measured(15, gate=0.0) != 0.0
    assert measured(16) != 0.0 and measured(16, reset_every=1000) != 0.0


def test_generated_benchmarks_are_read_by_every_loader(tiny_material, tmp_path):
    """What `data make-bench` writes is what the loaders of the official layouts expect, item for item."""
    made = make_bench(tmp_path, tiny_material.train_data, size="tiny")
    for split in ("dev", "test"):
        for kind, load in (("lexical", lexical_pairs), ("syntactic", syntactic_pairs)):
            assert len(load(tmp_path, split)) == made[f"sLM21-dataset/{kind}/{split}"]
    assert {p.groups["vocabulary"] for p in lexical_pairs(tmp_path, "test")} == {"in", "oov"}
    assert len({p.groups["type"] for p in syntactic_pairs(tmp_path, "test")}) >= 4
    for name in ("sSC", "tSC"):
        assert len(story_pairs(tmp_path, name)) == made[name]
    assert len(salmon_pairs(tmp_path)) == made["salmon"]
    needles = needle_pairs(tmp_path)
    assert len(needles) == made["needle/2s"] + made["needle/4s"]
    assert len({p.item for p in needles}) == len(needles) / 2
    assert len(find_repeats(tmp_path)) == made["repeat/2s"] + made["repeat/4s"]
    assert len(find_books(tmp_path)) == made["librilight/small"] / 2  # two chapters each


@pytest.mark.parametrize("name", ["salmon", "SALMon", "salmon_benchmark"])
def test_salmon_is_found_as_its_archive_unpacks(tmp_path, toy, name):
    for half in (0, 1):
        toy(tmp_path / name / "speaker_consistency" / f"sample_0_{half}.wav", [1, 2])
    assert [pair.item for pair in salmon_pairs(tmp_path)] == ["speaker_consistency/0"]


def test_looking_for_books_takes_time_in_proportion_to_their_number(tmp_path):
    """Comparisons of paths are counted, not seconds: every file is looked at a bounded number of times."""
    counts = {}
    for number in (40, 160):
        root = tmp_path / str(number)
        for i in range(number):
            folder = root / "librilight" / "small" / str(i) / "b"
            folder.mkdir(parents=True)
            (folder / "x.wav").write_bytes(b"")
        calls = 0

        def count(frame, event, arg):
            nonlocal calls
            calls += event == "call"

        sys.setprofile(count)
        try:
            assert len(find_books(root)) == number
        finally:
            sys.setprofile(None)
        counts[number] = calls
    assert counts[160] < 6 * counts[40]
