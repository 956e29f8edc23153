"""Pairs of stories with a fitting and an unfitting end, in the file naming of Spoken StoryCloze.

A pair is `<n>_<uuid>_correct.wav` and `<n+1>_<uuid>_incorrect.wav` with n even. Its two files are bit-identical up to
the sentence that decides.
"""

from __future__ import annotations

import json
import random
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ttt_moshi.synthetic import grammar
from ttt_moshi.synthetic.benchmarks import audio
from ttt_moshi.synthetic.dialogues import MOSHI_VOICES, STORYTELLER
from ttt_moshi.synthetic.espeak import SAMPLE_RATE, Voice
from ttt_moshi.synthetic.grammar import Person


@dataclass(frozen=True)
class Cloze:
    """Sentences and two ways to end them."""

    sentences: tuple[str, ...]
    fitting: str
    unfitting: str


def clozes(rng: random.Random, topic: bool) -> tuple[Cloze, Cloze]:
    """Two tales that differ in the last word before the end; each one's end is the other's unfitting one.

    A liking for one of the two ends is therefore right in one of the tales and wrong in the other. In the topic variant
    the unfitting end is about an animal that the tale does not know.
    """
    one = grammar.tale(rng, known=not topic)
    other = one.twin
    return Cloze(one.told, one.ending, other.ending), Cloze(other.told, other.ending, one.ending)


def make_cloze(folder: Path, rng: random.Random, count: int, topic: bool) -> int:
    """Writes `count` pairs of pairs, all in the storyteller's voice. Returns the pairs written."""
    folder.mkdir(parents=True)
    for index in range(count):
        for k, cloze in enumerate(clozes(rng, topic)):
            _write_pair(folder, 2 * index + k, audio.random_uuid(rng), cloze, STORYTELLER)
    return 2 * count


def make_needles(folder: Path, rng: random.Random, count: int, seconds: int) -> int:
    """Writes `count` pairs of pairs: a fact, about `seconds` of other speech, then the fact again, true or false.

    Two pairs share everything but the fact, and what is true in one is false in the other, so a preference for one
    value cancels out. `needles.json` tells which pairs are twins. Returns the pairs written.
    """
    folder.mkdir(parents=True)
    twins = []
    for index in range(count):
        voice = rng.choice(MOSHI_VOICES)
        person = grammar.random_person(rng)
        other = grammar.random_person(rng, unlike=person)
        filler = _filler(rng, other, voice, seconds)
        names = [audio.random_uuid(rng) for _ in range(2)]
        for k, (true, false) in enumerate(((person.city, other.city), (other.city, person.city))):
            said = (f"{person.name} lives in {true}.", *filler)
            cloze = Cloze(said, f"{person.name} lives in {true}.", f"{person.name} lives in {false}.")
            _write_pair(folder, 2 * index + k, names[k], cloze, voice)
        twins.append({"pairs": names, "values": [person.city, other.city]})
    (folder / "needles.json").write_text(json.dumps(twins, indent=2) + "\n")
    return 2 * count


def _filler(rng: random.Random, other: Person, voice: Voice, seconds: float) -> list[str]:
    """Sentences about animals, which say nothing about where somebody lives."""
    sentences: list[str] = []
    length = 0.0
    while length < seconds:
        sentences.append(grammar.agreement_sentence(rng, other))
        length += len(audio.sentences(sentences[-1:], voice)) / SAMPLE_RATE
    return sentences


def _write_pair(folder: Path, index: int, name: str, cloze: Cloze, voice: Voice) -> None:
    start = audio.sentences(cloze.sentences, voice)
    for offset, (ending, label) in enumerate(((cloze.fitting, "correct"), (cloze.unfitting, "incorrect"))):
        samples = np.concatenate([start, audio.sentences([ending], voice)])
        audio.write(folder / f"{2 * index + offset}_{name}_{label}.wav", audio.padded(samples))
