"""The official rules of pairs: ties, voices, bands, types, subsets, against an independent implementation."""

import csv
import itertools
import shutil
from collections import defaultdict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ttt_moshi.evaluation import EvaluationError
from ttt_moshi.evaluation.examples import Example
from ttt_moshi.evaluation.pairs import Pair, accuracy, breakdown, item_scores, pair_score, subset
from ttt_moshi.evaluation.tasks.registry import TASKS, Benchmarks
from ttt_moshi.evaluation.tasks.slm21 import frequency_band, lexical_pairs, syntactic_pairs
from ttt_moshi.evaluation.tasks.two_choices import TwoChoices

LEXICAL = ["filename", "id", "voice", "frequency", "word", "phones", "length", "correct"]
SYNTACTIC = ["filename", "id", "voice", "type", "subtype", "transcription", "correct"]


def write_gold(folder, columns, rows):
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "gold.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(rows)


@pytest.fixture
def lexical(tmp_path, toy):
    """Six words; word 2 lacks a voice, word 3 is out of vocabulary, word 4 ties in one voice, word 5 has count 5."""
    rng = np.random.default_rng(0)
    rows = []
    frequency = {0: 150, 1: 3, 2: 12, 3: 0, 4: 60, 5: 5}
    for item, voice in itertools.product(range(6), "ABC"):
        if (item, voice) == (2, "B"):
            continue
        for correct in (1, 0):
            name = f"f{rng.integers(1 << 40):x}"
            samples = rng.integers(0, 24, 6).tolist()
            if (item, voice) == (4, "C"):
                samples = [7, 7, 7, 7, 7, 7]
            toy(tmp_path / "sLM21-dataset" / "lexical" / "dev" / f"{name}.wav", samples)
            rows.append(
                {"filename": name, "id": item, "voice": voice, "frequency": frequency[item], "word": "w" * correct,
                 "phones": "a b", "length": 2 + item % 2, "correct": correct}
            )  # fmt: skip
    rng.shuffle(rows)
    write_gold(tmp_path / "sLM21-dataset" / "lexical" / "dev", LEXICAL, rows)
    return tmp_path, rows


def official(rows, score_of, item_of):
    """The toolkit's rule written the long way: one loop per definition, no code in common with the product."""
    table = {}
    for row in rows:
        table.setdefault((item_of(row), row["voice"]), {})[row["correct"]] = (score_of[row["filename"]], row)
    by_item = defaultdict(list)
    facts = {}
    for (item, _), halves in table.items():
        (good, row), (bad, _) = halves[1], halves[0]
        by_item[item].append(0.5 * (good == bad) + 1.0 * (good > bad))
        facts[item] = row
    return {item: sum(v) / len(v) for item, v in by_item.items()}, facts


def test_swuggy_equals_an_independent_implementation_of_the_official_rule(lexical, oracle):
    root, rows = lexical
    task = TASKS["swuggy"].build(Benchmarks(root, frames_of=len, split="dev"))
    outcome = task.run(oracle())
    score = {}  # by hand: the oracle's NLL is the token's value, moshi100 weighs semantic 100 and acoustic 1
    import soundfile

    for row in rows:
        samples, _ = soundfile.read(root / "sLM21-dataset/lexical/dev" / f"{row['filename']}.wav", dtype="int16")
        total, weight = 0.0, 0.0
        for t, s in enumerate(samples.tolist()):
            total, weight = total + 100 * (s % 24), weight + 100
            if t < len(samples) - 1:  # the last frame's acoustic codes are never predicted
                for k in range(1, 8):
                    total, weight = total + (s + k) % 24, weight + 1
        score[row["filename"]] = -round(total / weight, 9)
    items, facts = official(rows, score, lambda row: str(row["id"]))
    entry = outcome.entry
    assert entry["value"] == pytest.approx(sum(items.values()) / len(items))
    assert entry["n"] == 6 and entry["pairs"] == 17 and entry["voices"] == 3
    assert items["4"] in (0.5 / 3, 1.5 / 3, 2.5 / 3)  # the tie counts one half
    for band, found in entry["groups"]["band"].items():
        mine = [items[i] for i in items if official_band(facts[i]["frequency"]) == band]
        assert found["value"] == pytest.approx(sum(mine) / len(mine)) and found["n"] == len(mine)
    in_vocabulary = [v for i, v in items.items() if i != "3"]
    assert entry["groups"]["vocabulary"]["in"]["value"] == pytest.approx(sum(in_vocabulary) / 5)
    assert {s["id"]: s["score"] for s in outcome.samples}["4/C"] == 0.5
    for name, value in outcome.scores.items():
        assert value == pytest.approx(score[name], abs=1e-6)


def official_band(frequency):
    """pandas.cut(frequency, [0, 1, 5, 20, 100, inf], right=False), as the toolkit does it."""
    edges = [(0, 1, "oov"), (1, 5, "1-5"), (5, 20, "6-20"), (20, 100, "21-100"), (100, float("inf"), ">100")]
    return next(name for low, high, name in edges if low <= frequency < high)


@given(st.integers(0, 100000))
def test_bands_are_those_of_the_toolkit(frequency):
    assert frequency_band(frequency) == official_band(frequency)


def test_sblimp_reports_pairs_and_the_mean_over_types(tmp_path, toy, oracle):
    """One type with three items that succeed, one with a single item that fails: 0.75 over pairs, 0.5 over types."""
    rows = []
    for i, kind in enumerate(["agreement"] * 3 + ["filler_gap"]):
        for correct in (1, 0):
            name = f"s{i}{correct}"
            likely = bool(correct) == (kind == "agreement")
            toy(tmp_path / "syntactic" / "test" / f"{name}.wav", [1] * 5 if likely else [9] * 5)
            rows.append({"filename": name + ".wav", "id": i, "voice": "A", "type": kind, "subtype": "x",
                         "transcription": "", "correct": correct})  # fmt: skip
    write_gold(tmp_path / "syntactic" / "test", SYNTACTIC, rows)
    entry = TASKS["sblimp"].build(Benchmarks(tmp_path, frames_of=len)).run(oracle()).entry
    assert entry["value"] == 0.75
    assert entry["macro"] == 0.5
    assert entry["groups"]["type"]["agreement"]["value"] == 1.0
    for name, found in entry["reductions"].items():
        assert found["value"] == 0.75, name


def rewrite(root, rows, change):
    rows = [dict(row) for row in rows]
    change(rows)
    write_gold(root / "sLM21-dataset" / "lexical" / "dev", LEXICAL, rows)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda rows: rows.pop(), r"has \d correct rows and \d incorrect ones"),
        (lambda rows: rows.append(rows[0]), "listed twice"),
        (lambda rows: rows.append(rows[0] | {"filename": "other"}), "has 2 correct rows and 1 incorrect ones"),
        (lambda rows: rows[0].update(filename="gone"), "there is no"),
        (lambda rows: rows[0].update(frequency="many"), "frequency holds 'many'"),
        (lambda rows: rows[0].update(frequency="inf"), "frequency holds 'inf', not a number"),
        (lambda rows: rows[0].update(length="1e400"), "length holds '1e400', not a number"),
        (lambda rows: rows[0].update(length="nan"), "length holds 'nan', not a number"),
        (lambda rows: rows.clear(), "lists no recordings"),
    ],
)
def test_incomplete_or_ambiguous_gold_files_are_errors(lexical, change, message):
    root, rows = lexical
    rewrite(root, sorted(rows, key=lambda r: -r["correct"]), change)
    with pytest.raises(EvaluationError, match=message):
        lexical_pairs(root, "dev")


def test_a_byte_order_mark_and_several_pairs_of_one_voice(lexical):
    """The official toolkit pairs the k-th right row of a voice with its k-th wrong one."""
    root, rows = lexical
    folder = root / "sLM21-dataset" / "lexical" / "dev"
    item, voice = rows[0]["id"], rows[0]["voice"]
    again = [dict(row) for row in rows if (row["id"], row["voice"]) == (item, voice)]
    for row in again:
        copy = f"again_{row['filename']}"
        shutil.copy(folder / f"{row['filename']}.wav", folder / f"{copy}.wav")
        row["filename"] = copy
    rewrite(root, [*rows, *again], lambda rows: None)
    gold = folder / "gold.csv"
    gold.write_bytes(b"\xef\xbb\xbf" + gold.read_bytes())
    pairs = lexical_pairs(root, "dev")
    assert len(pairs) == len(rows) // 2 + 1 and len({pair.id for pair in pairs}) == len(pairs)
    (second,) = [pair for pair in pairs if pair.voice == f"{voice}+2"]
    assert (
        second.item == str(item) and second.correct.id.startswith("again_") and second.incorrect.id.startswith("again_")
    )
    gold.write_bytes(b"filename,id\xff\n")
    with pytest.raises(EvaluationError, match=r"gold\.csv"):
        lexical_pairs(root, "dev")


def test_missing_data_says_where_it_was_expected(tmp_path):
    with pytest.raises(EvaluationError, match="sLM21-dataset"):
        syntactic_pairs(tmp_path, "dev")


def pairs_of(items: int, voices: int = 2, strata: int = 3) -> list[Pair]:
    nothing = Example("x", ())
    return [
        Pair(f"i{i}", f"v{v}", nothing, nothing, {"band": f"b{i % strata}"})
        for i in range(items)
        for v in range(voices)
    ]


@settings(deadline=None)
@given(st.integers(1, 40), st.integers(1, 60), st.integers(0, 3))
def test_subsets_are_stratified_reproducible_and_keep_all_voices(items, limit, seed):
    pairs = pairs_of(items)
    chosen = subset(pairs, limit, seed, "band")
    assert chosen == subset(list(reversed(pairs)), limit, seed, "band")[::-1]
    names = {pair.item for pair in chosen}
    assert len(names) == min(items, limit)
    assert len(chosen) == 2 * len(names)
    for stratum in {pair.groups["band"] for pair in pairs}:
        share = len({p.item for p in pairs if p.groups["band"] == stratum}) / items
        got = len({p.item for p in chosen if p.groups["band"] == stratum})
        assert abs(got - share * len(names)) < 1


def test_other_seeds_choose_other_items():
    chosen = {tuple(sorted({p.item for p in subset(pairs_of(40), 10, seed, "band")})) for seed in range(5)}
    assert len(chosen) == 5
    first_ten = tuple(f"i{i}" for i in range(10))
    assert first_ten not in chosen  # not simply the first ones


@given(st.lists(st.tuples(st.floats(0, 5), st.floats(0, 5)), min_size=1, max_size=12))
def test_a_pair_scores_one_half_on_a_tie_and_swapping_the_halves_mirrors_it(values):
    for a, b in values:
        assert pair_score(a, b) + pair_score(b, a) == 1.0
        assert pair_score(a, a) == 0.5


def test_voices_are_averaged_before_items():
    """An item heard in nine voices weighs as much as one heard once."""
    nothing = Example("x", ())
    pairs = [Pair("many", f"v{i}", nothing, nothing, {"g": "a"}) for i in range(9)]
    pairs.append(Pair("one", "v", nothing, nothing, {"g": "b"}))
    scores = [0.0] * 9 + [1.0]
    assert accuracy(pairs, scores)["value"] == 0.5
    assert item_scores(pairs, scores) == {"many": 0.0, "one": 1.0}
    assert breakdown(pairs, scores)["g"]["a"]["n"] == 1


def test_labels_that_are_shuffled_leave_chance(toy, tmp_path, oracle):
    """The signal is in the labels: with halves exchanged at random, accuracy is near one half."""
    rng = np.random.default_rng(1)
    pairs = []
    for i in range(100):
        good, bad = (
            Example.file(f"{i}{kind}", toy(tmp_path / f"{i}{kind}.wav", [value] * 4))
            for kind, value in (("a", 1), ("b", 9))
        )
        pairs.append((good, bad) if i < 100 or rng.random() < 0.5 else (bad, good))
    true = [Pair(str(i), "", a, b) for i, (a, b) in enumerate(pairs[:100])]
    assert TwoChoices("true", true).run(oracle()).entry["value"] == 1.0
    shuffled = []
    for i, (a, b) in enumerate(pairs[:100]):
        a, b = (a, b) if rng.random() < 0.5 else (b, a)
        shuffled.append(Pair(str(i), "", a, b))
    low, high = TwoChoices("shuffled", shuffled).run(oracle()).entry["ci95"]
    assert low < 0.5 < high
