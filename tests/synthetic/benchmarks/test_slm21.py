"""sLM21: gold.csv, minimal pairs, vocabulary."""

from __future__ import annotations

import csv
import random
from collections import Counter, defaultdict
from pathlib import Path

import pytest
import soundfile

from ttt_moshi.synthetic import Material, grammar
from ttt_moshi.synthetic.benchmarks import words
from ttt_moshi.synthetic.benchmarks.slm21 import violations
from ttt_moshi.synthetic.dialogues import read_words


def gold(bench: Path, part: str, split: str) -> list[dict[str, str]]:
    with (bench / "sLM21-dataset" / part / split / "gold.csv").open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("split", ["dev", "test"])
@pytest.mark.parametrize(
    ("part", "columns"),
    [
        ("lexical", "filename,id,voice,frequency,word,phones,length,correct"),
        ("syntactic", "filename,id,voice,type,subtype,transcription,correct"),
    ],
)
def test_gold_has_the_official_columns_and_names_every_file_once(
    bench: Path, part: str, split: str, columns: str
) -> None:
    folder = bench / "sLM21-dataset" / part / split
    assert (folder / "gold.csv").read_text().splitlines()[0] == columns
    rows = gold(bench, part, split)
    assert sorted(row["filename"] for row in rows) == sorted(path.stem for path in folder.glob("*.wav"))
    pairs: dict[tuple[str, str], list[str]] = defaultdict(list)
    for row in rows:
        pairs[row["id"], row["voice"]].append(row["correct"])
    assert all(sorted(labels) == ["0", "1"] for labels in pairs.values())
    assert len({row["voice"] for row in rows}) == 2


def test_lexical_pairs_differ_in_one_phone_of_the_same_kind(bench: Path) -> None:
    pairs: dict[str, dict[str, dict[str, str]]] = defaultdict(dict)
    for row in gold(bench, "lexical", "test"):
        pairs[row["id"]][row["correct"]] = row
    for pair in pairs.values():
        right, wrong = pair["1"]["phones"].split(), pair["0"]["phones"].split()
        assert len(right) == len(wrong) == int(pair["1"]["length"])
        changes = [(a, b) for a, b in zip(right, wrong, strict=True) if a != b]
        assert len(changes) == 1
        assert any({*changes[0]} <= {*shape} for shape in words.SHAPES)
        assert pair["1"]["word"] and not pair["0"]["word"]


def test_frequency_is_that_of_the_training_transcripts(bench: Path, tiny_material: Material) -> None:
    said = Counter(word.strip(".,?!").lower() for word in read_words(tiny_material.train_data))
    rows = [row for row in gold(bench, "lexical", "test") if row["word"]]
    assert {int(row["frequency"]) > 0 for row in rows} == {True, False}
    for row in rows:
        assert int(row["frequency"]) == said[row["word"]]


def test_no_nonword_sounds_like_a_known_word() -> None:
    vocabulary = words.content_words()
    known = words.known_pronunciations(vocabulary)
    rng = random.Random(0)
    for word in vocabulary:
        made = words.nonword(words.pronunciation(word), known, rng)
        assert made is None or words.unstressed(made) not in known


def test_right_and_wrong_sentences_use_the_same_words_but_one(bench: Path) -> None:
    kinds: Counter[tuple[str, str]] = Counter()
    for pair in violations(random.Random(0), 10):
        kinds[pair.type, pair.subtype] += 1
        right, wrong = (Counter(text.rstrip(".").split()) for text in (pair.right, pair.wrong))
        changed = sum((right - wrong).values())
        assert changed == (0 if pair.type == "word_order" else 1)
        assert pair.right != pair.wrong
    assert len({kind for kind, _ in kinds}) == 4 and len(kinds) == 8
    assert set(kinds.values()) == {10}


def test_agreement_is_right_in_right_sentences() -> None:
    for pair in violations(random.Random(1), 20):
        if pair.type == "anaphor_agreement":
            name, _, pronoun, *_ = pair.right.split()
            assert (name in grammar.WOMEN) == (pronoun == "herself")
        if pair.subtype in ("this", "these"):
            determiner, _, noun, verb, *_ = pair.right.split()
            assert (determiner == "These") == noun.endswith("s") == (not verb.endswith("s"))


def test_speech_of_a_pair_has_about_the_same_length(bench: Path) -> None:
    """Otherwise a sum of log-probabilities would choose by length."""
    durations: dict[tuple[str, str], list[float]] = defaultdict(list)
    for row in gold(bench, "lexical", "test"):
        path = bench / "sLM21-dataset/lexical/test" / f"{row['filename']}.wav"
        durations[row["id"], row["voice"]].append(soundfile.info(path).duration)
    assert all(abs(a - b) < 0.2 for a, b in durations.values())
