"""Is what was said the answer? Rules on words, without a model.

Text is in lower case, without articles, words apart by one space. Punctuation goes as in SQuAD, where it is deleted
("oneill"), or as in TriviaQA, where it parts words ("o neill", arXiv 1606.05250, 1705.03551): who speaks says no
hyphens, so an answer counts by either. A spoken answer is a sentence, so an answer counts when it stands in it, as
whole words, as in the evaluation of Spectron and of Moshi (arXiv 2305.15255, 2410.00037); that it is nothing else is
reported beside it.
"""

from __future__ import annotations

import re
import string
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ttt_moshi.evaluation.fields import texts

_PUNCTUATION = string.punctuation + "‘’´`“”"
_DELETED = str.maketrans(dict.fromkeys(_PUNCTUATION, ""))
_PARTING = str.maketrans(dict.fromkeys(_PUNCTUATION, " "))
_SPEAKER = re.compile(r"\bI(?:['’]|\s+(?!(?:or|and|is|because|since)\b)(?=[A-Za-z]{2}))")
"""I as a word: "I think", "I'm", but not "I or B\""""
_ARTICLES = re.compile(r"\b(a|an|the)\b")


def normalised(text: str) -> tuple[str, str]:
    """Lower case, without articles, words apart by one space; punctuation deleted, and punctuation parting words."""
    return _words(text.lower().translate(_DELETED)), _words(text.lower().translate(_PARTING))


def _words(text: str) -> str:
    return " ".join(_ARTICLES.sub(" ", text).split())


def answers_of(found: Any, what: str) -> tuple[str, ...]:
    """The answers that a file accepts: a list of texts, or one text.

    Args:
        what: what the field is called.

    Raises:
        ValueError: no answer, something else, and an answer that nothing that is said can be.
    """
    answers = texts(found, what)
    for answer in answers:
        if not can_be_said(answer):
            raise ValueError(
                f"`{what}` holds {answer!r}, which is nothing but articles and punctuation and never found in what is "
                "said: write it out"
            )
    return answers


def can_be_said(answer: str) -> bool:
    """Whether anything is left of an answer without articles and punctuation."""
    return any(normalised(answer))


def contains(said: str, answers: Sequence[str]) -> bool:
    """Whether one of the answers stands in what was said, as whole words."""
    return any(f" {wanted} " in f" {words} " for words, wanted in _compared(said, answers))


def equals(said: str, answers: Sequence[str]) -> bool:
    """Whether what was said is one of the answers and nothing else."""
    return any(wanted == words for words, wanted in _compared(said, answers))


def _compared(said: str, answers: Sequence[str]) -> Iterator[tuple[str, str]]:
    """What was said beside each answer, normalised alike; an answer of nothing but articles is none."""
    for answer in answers:
        for words, wanted in zip(normalised(said), normalised(answer), strict=True):
            if wanted:
                yield words, wanted


def chosen(said: str, choices: Mapping[str, str]) -> str | None:
    """The letter that was chosen among `choices`, {letter: text}, None where it cannot be told.

    The last letter that is called the answer, an option or a choice; else the only capital letter of a choice that
    stands alone and is no word (the article A, who speaks as I); else the only choice whose text stands in what was
    said. A choice of a small letter is said by its capital one.
    """
    by_capital = {letter.upper(): letter for letter in choices}
    letters = "".join(by_capital)
    without_words = _SPEAKER.sub(" ", said)
    called = r"(?i:\b(?:answer|option|choice)(?:\s+(?:is|would be))?[\s:]+(?:option\s+)?)"
    named = re.findall(rf"{called}\(?([{letters}])\b", without_words)
    if named:
        return by_capital[named[-1]]
    alone = set(re.findall(rf"\b([{letters}])\b(?!['’])", without_words)) - ({"A"} if _article(said) else set())
    if len(alone) == 1:
        return by_capital[alone.pop()]
    texts = [letter for letter, text in choices.items() if contains(said, [text])]
    return texts[0] if len(texts) == 1 else None


def _article(said: str) -> bool:
    """Whether a capital A begins a sentence as an article: "A dog does", but not "A or B"."""
    return re.search(r"(?:^|[.!?]\s+)A\s+(?!(?:or|and|is|because|since)\b)[a-z]", said) is not None
