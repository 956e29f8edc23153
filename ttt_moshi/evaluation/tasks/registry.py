"""Every task by its name, and what it needs."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Protocol

from ttt_moshi.evaluation.errors import EvaluationError
from ttt_moshi.evaluation.examples import Example, Piece
from ttt_moshi.evaluation.outcome import Outcome
from ttt_moshi.evaluation.pairs import sample, subset
from ttt_moshi.evaluation.scoring.engine import Engine
from ttt_moshi.evaluation.scoring.recordings import count_frames
from ttt_moshi.evaluation.tasks.books import Book, find_books
from ttt_moshi.evaluation.tasks.inner_loss import InnerLoss
from ttt_moshi.evaluation.tasks.long_context import Context, Position, Repeat
from ttt_moshi.evaluation.tasks.slm21 import lexical_pairs, syntactic_pairs
from ttt_moshi.evaluation.tasks.spoken_repeat import SpokenRepeat, find_repeats
from ttt_moshi.evaluation.tasks.stories import needle_pairs, salmon_pairs, story_pairs
from ttt_moshi.evaluation.tasks.two_choices import TwoChoices

INNER_FRAMES = 2048


class Task(Protocol):
    """Something that can be measured."""

    @property
    def name(self) -> str: ...

    def run(self, engine: Engine) -> Outcome: ...


@dataclass(frozen=True)
class Benchmarks:
    """Where the data is and how much of it is used. Everything here is part of the result."""

    data_root: Path
    split: str = "test"
    max_items: int | None = None
    seed: int = 0
    frames_of: Callable[[Example], int] = count_frames

    def books(self) -> tuple[list[Book], dict[str, int]]:
        """The books in use, and the length of each in frames."""
        found = find_books(self.data_root)
        chosen = sample({"": {book.id for book in found}}, self.max_items, self.seed)
        books = [book for book in found if book.id in chosen]
        return books, {book.id: self.frames_of(Example(book.id, (Piece(book.source),))) for book in books}


def _swuggy(b: Benchmarks) -> Task:
    pairs = subset(lexical_pairs(b.data_root, b.split), b.max_items, b.seed, "band")
    return TwoChoices("swuggy", pairs)


def _sblimp(b: Benchmarks) -> Task:
    pairs = subset(syntactic_pairs(b.data_root, b.split), b.max_items, b.seed, "type")
    return TwoChoices("sblimp", pairs, macro="type")


def _story(name: str, folder: str) -> Callable[[Benchmarks], Task]:
    def build(b: Benchmarks) -> Task:
        pairs = subset(story_pairs(b.data_root, folder), b.max_items, b.seed, None)
        return TwoChoices(name, pairs, continuation=True)

    return build


def _salmon(b: Benchmarks) -> Task:
    # Acoustic consistency is a matter of all codebooks alike.
    pairs = subset(salmon_pairs(b.data_root), b.max_items, b.seed, "part")
    return TwoChoices("salmon", pairs, reduction="uniform", macro="part")


def _needle(b: Benchmarks) -> Task:
    return TwoChoices("needle", subset(needle_pairs(b.data_root), b.max_items, b.seed, "distance"), macro="distance")


def _spoken_repeat(b: Benchmarks) -> Task:
    passages = find_repeats(b.data_root)
    distances: dict[str, set[str]] = defaultdict(set)
    for passage in passages:
        distances[f"{passage.seconds:g}"].add(passage.example.id)
    chosen = sample(distances, b.max_items, b.seed)
    return SpokenRepeat([passage for passage in passages if passage.example.id in chosen])


def _inner(b: Benchmarks) -> Task:
    books, _ = b.books()
    return InnerLoss([Example(book.id, (Piece(book.source, 0, INNER_FRAMES),)) for book in books])


TASKS: dict[str, Callable[[Benchmarks], Task]] = {
    "swuggy": _swuggy,
    "sblimp": _sblimp,
    "ssc": _story("ssc", "sSC"),
    "tsc": _story("tsc", "tSC"),
    "salmon": _salmon,
    "position": lambda b: Position(b.books()[0]),
    "context": lambda b: Context(*b.books()),
    "repeat": lambda b: Repeat(*b.books()),
    "spoken_repeat": _spoken_repeat,
    "needle": _needle,
    "inner": _inner,
}

PAPER_METRICS = ("swuggy", "sblimp", "ssc", "tsc")
PERPLEXITY = "ppl"


def parse_tasks(names: str) -> list[str]:
    """Task names from a comma-separated list; `all` is every one. Raises `EvaluationError` with the known names."""
    if names.strip() == "all":
        return list(TASKS)
    found = [name.strip().lower() for name in names.split(",") if name.strip()]
    for name in found:
        if name not in TASKS and name != PERPLEXITY:
            nearest = get_close_matches(name, (PERPLEXITY, *TASKS), n=1)
            hint = f"; did you mean `{nearest[0]}`?" if nearest else ""
            raise EvaluationError(f"unknown task `{name}`{hint} (there are {', '.join((PERPLEXITY, *TASKS))})")
    return list(dict.fromkeys(found))
