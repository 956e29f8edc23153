"""Words, how often the training speech says them, and nonwords that differ from them in one phone."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable
from functools import cache

from ttt_moshi.synthetic import grammar
from ttt_moshi.synthetic.dialogues import MOSHI_VOICES
from ttt_moshi.synthetic.espeak import speak

# Words that the grammar never says, of the same everyday kind.
OTHER_WORDS = (
    "winter", "summer", "window", "table", "music", "doctor", "mountain", "village", "kitchen", "bottle", "paper",
    "silver", "market", "station", "forest", "island", "flower", "pencil", "dinner", "sugar", "butter", "candle",
    "blanket", "mirror", "ladder", "hammer", "basket", "pocket", "rabbit", "tiger", "monkey", "spider", "dragon",
    "castle", "temple", "palace", "tower", "desert", "valley", "engine", "rocket", "planet", "signal", "thunder",
    "letter", "number", "corner", "finger", "sister", "brother", "mother", "father", "doctor", "farmer", "painter",
    "printer", "bucket", "carpet", "helmet", "magnet", "sunset", "mustard", "lemon", "melon", "salmon", "cotton",
)  # fmt: skip
SMALLEST_LENGTH = 3
SHAPES = (  # phones that may take each other's place without breaking English syllables
    ("p", "b", "t", "d", "k", "g"),
    ("f", "v", "s", "z"),
    ("m", "n"),
    ("l", "r", "w"),
    ("a", "E", "I", "V", "0"),
    ("eI", "aI", "oU", "i:", "u:"),
)


def bare(word: str) -> str:
    """The word without punctuation, in lower case."""
    return word.strip(".,?!").lower()


def count_words(words: Iterable[str]) -> Counter[str]:
    """How often every word occurs."""
    return Counter(bare(word) for word in words)


@cache
def pronunciation(word: str) -> tuple[str, ...]:
    """espeak-ng's American English phones, stress marks included, without pauses."""
    phones = speak(word, MOSHI_VOICES[0]).phones
    return tuple(phone.text for phone in phones if not phone.text.startswith("_"))


def as_input(phones: Iterable[str]) -> str:
    """The form in which `speak(..., phonemes=True)` takes phones: the bar keeps neighbours from being read as one."""
    return "|".join(phones)


def known_pronunciations(vocabulary: Iterable[str]) -> set[tuple[str, ...]]:
    """Stress-free pronunciations of every word that is known here; a nonword must be none of them."""
    return {unstressed(pronunciation(word)) for word in {*vocabulary, *OTHER_WORDS}}


def unstressed(phones: Iterable[str]) -> tuple[str, ...]:
    """The phones without stress marks."""
    return tuple(phone.strip("',") for phone in phones)


def nonword(phones: tuple[str, ...], known: set[tuple[str, ...]], rng: random.Random) -> tuple[str, ...] | None:
    """The phones with one of them exchanged for another of its kind; None if every exchange gives a known word."""
    choices = []
    for position, phone in enumerate(phones):
        name = phone.strip("',")
        for shape in SHAPES:
            if name in shape:
                for other in shape:
                    changed = (*phones[:position], phone.replace(name, other), *phones[position + 1 :])
                    if other != name and unstressed(changed) not in known:
                        choices.append(changed)
    return rng.choice(choices) if choices else None


def content_words() -> list[str]:
    """The grammar's names, things, places and doings, in lower case, long enough to have a nonword beside them."""
    plural = [animal + "s" for animal in grammar.ANIMALS]
    singular_verbs = [verb + "s" for verb in grammar.VERBS]
    groups = (grammar.NAMES, grammar.CITIES, grammar.ANIMALS, plural, grammar.PLACES, grammar.FOODS, grammar.NUMBERS)
    words = [bare(word) for group in (*groups, grammar.ADJECTIVES, grammar.VERBS, singular_verbs) for word in group]
    words += ["hello", "moshi", "goodbye", "name", "story", "lives", "every", "herself", "himself"]
    return [word for word in dict.fromkeys(words) if len(pronunciation(word)) >= SMALLEST_LENGTH]
