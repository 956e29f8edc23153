"""sLM21-dataset: lexical (words and nonwords) and syntactic (sentences and violations) pairs with gold.csv."""

from __future__ import annotations

import csv
import random
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ttt_moshi.synthetic import grammar
from ttt_moshi.synthetic.benchmarks import audio, words
from ttt_moshi.synthetic.espeak import Voice, speak

LEXICAL_COLUMNS = ("filename", "id", "voice", "frequency", "word", "phones", "length", "correct")
SYNTACTIC_COLUMNS = ("filename", "id", "voice", "type", "subtype", "transcription", "correct")


@dataclass(frozen=True)
class Violation:
    """A sentence and its ungrammatical twin."""

    type: str
    subtype: str
    right: str
    wrong: str


def make_lexical(
    folder: Path, rng: random.Random, frequency: Counter[str], in_vocabulary: int, unknown: int, voices: Sequence[Voice]
) -> int:
    """Writes a split of so many in-vocabulary and unknown words, each with its nonword, in every voice.

    `frequency` counts the words of the training transcripts; 0 makes a word out of vocabulary. Returns the number of
    pairs written.
    """
    known = words.known_pronunciations(frequency)
    heard = [word for word in words.content_words() if frequency[word] > 0]
    unheard = [word for word in dict.fromkeys(words.OTHER_WORDS) if frequency[word] == 0]
    chosen = _sample(heard, in_vocabulary, rng) + _sample(unheard, unknown, rng)
    rows = []
    folder.mkdir(parents=True)
    for index, word in enumerate(chosen):
        phones = words.pronunciation(word)
        changed = words.nonword(phones, known, rng)
        if changed is None:
            continue
        for voice in voices:
            for correct, said in ((1, phones), (0, changed)):
                name = audio.random_name(rng)
                samples = speak(words.as_input(said), voice, phonemes=True).samples
                audio.write(folder / f"{name}.wav", audio.padded(samples))
                spelling = word if correct else ""  # a nonword has no spelling, only phones
                plain = words.unstressed(said)
                row = (name, index, voice.name, frequency[word], spelling, " ".join(plain), len(plain), correct)
                rows.append(row)
    _write_gold(folder, LEXICAL_COLUMNS, rows, rng)
    return len(rows) // 2


def make_syntactic(folder: Path, rng: random.Random, per_subtype: int, voices: Sequence[Voice]) -> int:
    """Writes a split with so many sentence pairs of every subtype, in every voice. Returns the pairs written."""
    folder.mkdir(parents=True)
    rows = []
    for index, pair in enumerate(violations(rng, per_subtype)):
        for voice in voices:
            for correct, text in ((1, pair.right), (0, pair.wrong)):
                name = audio.random_name(rng)
                audio.write(folder / f"{name}.wav", audio.padded(speak(text, voice).samples))
                rows.append((name, index, voice.name, pair.type, pair.subtype, text, correct))
    _write_gold(folder, SYNTACTIC_COLUMNS, rows, rng)
    return len(rows) // 2


def violations(rng: random.Random, per_subtype: int) -> Iterator[Violation]:
    """`per_subtype` different pairs of each of eight subtypes in four types (fewer where there are not so many)."""
    makers = (_verb_singular, _verb_plural, _determiner_this, _determiner_these, _female, _male, _adjective, _place)
    for maker in makers:
        seen: set[Violation] = set()
        for _ in range(50 * per_subtype):
            pair = maker(rng)
            if len(seen) < per_subtype and pair not in seen:
                seen.add(pair)
                yield pair


def _verb_singular(rng: random.Random) -> Violation:
    animal, verb = rng.choice(grammar.ANIMALS), rng.choice(grammar.VERBS)
    right, wrong = f"The {animal} {verb}s every day.", f"The {animal} {verb} every day."
    return Violation("subject_verb_agreement", "singular", right, wrong)


def _verb_plural(rng: random.Random) -> Violation:
    animal, verb = rng.choice(grammar.ANIMALS), rng.choice(grammar.VERBS)
    right, wrong = f"The {animal}s {verb} every day.", f"The {animal}s {verb}s every day."
    return Violation("subject_verb_agreement", "plural", right, wrong)


def _sentence(rng: random.Random, determiner: str, plural: bool) -> str:
    adjective, animal, verb, place = (
        rng.choice(values) for values in (grammar.ADJECTIVES, grammar.ANIMALS, grammar.VERBS, grammar.PLACES)
    )
    noun, verb = (animal + "s", verb) if plural else (animal, verb + "s")
    return f"{determiner} {adjective} {noun} {verb} in the {place}."


def _determiner_this(rng: random.Random) -> Violation:
    right = _sentence(rng, "This", plural=False)
    return Violation("determiner_noun_agreement", "this", right, right.replace("This", "These", 1))


def _determiner_these(rng: random.Random) -> Violation:
    right = _sentence(rng, "These", plural=True)
    return Violation("determiner_noun_agreement", "these", right, right.replace("These", "This", 1))


def _female(rng: random.Random) -> Violation:
    right = f"{rng.choice(grammar.WOMEN)} made herself some {rng.choice(grammar.FOODS)}."
    return Violation("anaphor_agreement", "feminine", right, right.replace("herself", "himself"))


def _male(rng: random.Random) -> Violation:
    right = f"{rng.choice(grammar.MEN)} made himself some {rng.choice(grammar.FOODS)}."
    return Violation("anaphor_agreement", "masculine", right, right.replace("himself", "herself"))


def _adjective(rng: random.Random) -> Violation:
    right = _sentence(rng, "These", plural=True)
    first, second, third, *rest = right.split()
    return Violation("word_order", "adjective_noun", right, " ".join([first, third, second, *rest]))


def _place(rng: random.Random) -> Violation:
    right = _sentence(rng, "This", plural=False)
    *rest, preposition, article, noun = right.rstrip(".").split()
    return Violation("word_order", "prepositional_phrase", right, " ".join([*rest, article, noun, preposition]) + ".")


def _sample(values: list[str], count: int, rng: random.Random) -> list[str]:
    return sorted(rng.sample(values, min(count, len(values))))


def _write_gold(folder: Path, columns: tuple[str, ...], rows: list[tuple], rng: random.Random) -> None:
    """Rows are shuffled, so that nothing can be read from their order."""
    rng.shuffle(rows)
    with (folder / "gold.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerows(rows)
