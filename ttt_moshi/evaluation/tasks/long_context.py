"""What a long memory is worth: loss by position, loss by context length at fixed targets, and repeated passages.

Lengths are multiples of the model's attention window W, so that "beyond the window" means the same for every model; for
Moshi (W = 3000 frames, 240 s) the contexts are 15 s to 32 min. Intervals resample books, never positions.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from ttt_moshi.evaluation.errors import EvaluationError
from ttt_moshi.evaluation.examples import Example, Piece
from ttt_moshi.evaluation.outcome import Outcome
from ttt_moshi.evaluation.scoring.engine import Engine
from ttt_moshi.evaluation.tasks.books import Book
from ttt_moshi.evaluation.tasks.curves import group_sums, mean_difference, mean_nll, point

CONTEXTS = (1 / 16, 1 / 8, 1 / 4, 1 / 2, 1.0, 2.0, 4.0, 8.0)
DISTANCES = (1 / 4, 1 / 2, 1.0, 1.5, 2.0, 4.0)
LONGEST = 10.0  # of a book, in windows
FIRST_BIN = 8  # frames


@dataclass(frozen=True)
class Position:
    """Mean NLL in bins of the position since the start of the recording, each twice as long as the one before."""

    books: list[Book]
    name: str = "position"

    def run(self, engine: Engine) -> Outcome:
        window = engine.scorer.window
        stop = round(LONGEST * window)
        examples = [Example(book.id, (Piece(book.source, 0, stop),)) for book in self.books]
        nll = engine.nll(examples, self.name)
        ordered = [nll[example.id] for example in examples]
        longest = max(values.shape[1] for values in ordered)
        edges = [0, FIRST_BIN]
        while edges[-1] < longest:
            edges.append(2 * edges[-1])
        bins = [{"start": a, "stop": b, **point(ordered, [(a, b)] * len(ordered))} for a, b in pairwise(edges)]
        whole = [group_sums(values, "semantic") for values in ordered]
        entry: dict[str, Any] = {
            "status": "ok",
            "metric": "mean NLL in nats of semantic tokens over whole books",
            "better": "lower",
            **mean_nll(whole),
            "unit_of_n": "books",
            "window": window,
            "bins": bins,
            "beyond_window": beyond_window(ordered, window),
        }
        samples = [
            {"id": book.id, "score": -total / count, "frames": int(values.shape[1])}
            for book, values, (total, count) in zip(self.books, ordered, whole, strict=True)
        ]
        return Outcome(entry, samples, data_digest=engine.tokens.digest(examples))


def beyond_window(nll: list[np.ndarray], window: int) -> dict[str, Any]:
    """Mean over books of (semantic NLL beyond the window - semantic NLL in the second half of the window)."""
    long = [values for values in nll if values.shape[1] > window]
    if not long:
        return {"status": "skipped", "reason": f"no book is longer than the window of {window} frames"}
    inside = [group_sums(values, "semantic", window // 2, window) for values in long]
    beyond = [group_sums(values, "semantic", window) for values in long]
    return {"status": "ok", **mean_difference(inside, beyond)}


@dataclass(frozen=True)
class Context:
    """NLL of the last W / 8 frames of each book after c frames of what precedes them, for growing c.

    The targets are the same for every c, so that a book's end being easier than its beginning plays no part. Control:
    the longest context with everything but the last window replaced by another speaker's book.
    """

    books: list[Book]
    lengths: dict[str, int]  # frames of each book
    name: str = "context"

    def run(self, engine: Engine) -> Outcome:
        window = engine.scorer.window
        target = max(2, window // 8)
        contexts = sorted({max(1, round(c * window)) for c in CONTEXTS})
        contexts, books = hosts(self.books, self.lengths, contexts, extra=target)
        longest = contexts[-1]
        reference = window if longest > window else contexts[0]
        examples: dict[int, list[Example]] = {c: [self._example(book, c, target) for book in books] for c in contexts}
        foreign = [] if longest <= window else self._foreign(books, longest, window, target)
        every = [example for group in examples.values() for example in group] + foreign
        nll = engine.nll(every, self.name)

        def semantic(group: list[Example], context: int) -> list[tuple[float, int]]:
            return [group_sums(nll[example.id], "semantic", context) for example in group]

        entry: dict[str, Any] = {
            "status": "ok",
            "metric": f"NLL in nats of semantic tokens after {longest} frames minus after {reference} frames",
            "better": "lower",
            "chance": 0.0,
            **mean_difference(semantic(examples[reference], reference), semantic(examples[longest], longest)),
            "unit_of_n": "books",
            "window": window,
            "target_frames": target,
            "left_out": sorted({book.id for book in self.books} - {book.id for book in books}),
            "contexts": [
                {"frames": c, **point([nll[e.id] for e in examples[c]], [(c, None)] * len(books))} for c in contexts
            ],
            "controls": {},
        }
        if foreign:
            entry["controls"]["foreign_distant_context"] = {
                "metric": f"the same with all but the last {window} frames from another speaker's book",
                **mean_difference(semantic(examples[reference], reference), semantic(foreign, longest)),
            }
        samples = []
        for i, book in enumerate(books):
            after = {c: _mean(nll[examples[c][i].id], c) for c in contexts}
            score = after[reference] - after[longest]
            samples.append({"id": book.id, "score": score, "nll": {str(c): value for c, value in after.items()}})
        return Outcome(entry, samples, data_digest=engine.tokens.digest(every))

    def _example(self, book: Book, context: int, target: int) -> Example:
        end = self.lengths[book.id]
        return Example(f"{book.id}@{context}", (Piece(book.source, end - target - context, end),))

    def _foreign(self, books: list[Book], context: int, window: int, target: int) -> list[Example]:
        """Each book's end after the beginning of a book by another speaker; none when all have one speaker."""
        examples = []
        for i, book in enumerate(books):
            others = [b for b in (*books[i + 1 :], *books[:i]) if b.speaker != book.speaker]
            if not others:
                return []
            end = self.lengths[book.id]
            pieces = (
                Piece(others[0].source, 0, context - window),
                Piece(book.source, end - target - window, end),
            )
            examples.append(Example(f"{book.id}@{context}:foreign", pieces))
        return examples


def _mean(nll: np.ndarray, start: int) -> float:
    total, count = group_sums(nll, "semantic", start)
    return total / count


@dataclass(frozen=True)
class Repeat:
    """A passage of W / 16 frames is heard, and heard again `distance` frames later: does the model know it?

    Two answers for each distance. `second_minus_first` compares the two hearings. `heard_minus_unheard` compares the
    second hearing with the very same frames at the same place after another passage was heard first; only memory of
    the passage can make it negative.
    """

    books: list[Book]
    lengths: dict[str, int]
    name: str = "repeat"

    def run(self, engine: Engine) -> Outcome:
        window = engine.scorer.window
        clip = max(2, window // 16)
        lead = max(1, window // 8)
        distances = sorted({max(clip, round(d * window)) for d in DISTANCES})
        distances, books = hosts(self.books, self.lengths, distances, extra=lead + 2 * clip)
        if len(books) < 2:
            raise EvaluationError("the repeat test needs two long enough books: one supplies the other passage")
        pairs = {d: [self._examples(books, i, d, clip, lead) for i in range(len(books))] for d in distances}
        every = [example for group in pairs.values() for both in group for example in both]
        nll = engine.nll(every, self.name)
        points: list[dict[str, Any]] = []
        samples: dict[str, dict[str, Any]] = {book.id: {"id": book.id, "nll": {}} for book in books}
        for d in distances:
            heard, unheard = ([nll[pair[j].id] for pair in pairs[d]] for j in (0, 1))
            start = lead + d
            first = [group_sums(values, "semantic", lead, lead + clip) for values in heard]
            second = [group_sums(values, "semantic", start, start + clip) for values in heard]
            never = [group_sums(values, "semantic", start, start + clip) for values in unheard]
            points.append(
                {
                    "frames": d,
                    "second_minus_first": mean_difference(first, second),
                    "heard_minus_unheard": mean_difference(never, second),
                }
            )
            for book, a, b, c in zip(books, first, second, never, strict=True):
                samples[book.id]["nll"][str(d)] = [total / count for total, count in (a, b, c)]
                samples[book.id]["score"] = c[0] / c[1] - b[0] / b[1]
        last = points[-1]
        entry = {
            "status": "ok",
            "metric": f"NLL in nats of semantic tokens of a passage heard {last['frames']} frames ago, minus unheard",
            "better": "lower",
            "chance": 0.0,
            **last["heard_minus_unheard"],
            "unit_of_n": "books",
            "window": window,
            "clip_frames": clip,
            "left_out": sorted({book.id for book in self.books} - {book.id for book in books}),
            "distances": points,
        }
        return Outcome(entry, list(samples.values()), data_digest=engine.tokens.digest(every))

    def _examples(self, books: list[Book], i: int, distance: int, clip: int, lead: int) -> tuple[Example, Example]:
        book, other = books[i], books[(i + 1) % len(books)]
        passage = Piece(book.source, lead, lead + clip)
        before = Piece(book.source, 0, lead)
        between = Piece(book.source, lead + clip, lead + distance)
        stranger = Piece(other.source, lead, lead + clip)
        # A piece of no frames (the second hearing follows at once) is left out.
        middle = (between,) if distance > clip else ()
        return (
            Example(f"{book.id}+{distance}:heard", (before, passage, *middle, passage)),
            Example(f"{book.id}+{distance}:unheard", (before, stranger, *middle, passage)),
        )


def hosts(books: list[Book], lengths: dict[str, int], sizes: list[int], extra: int) -> tuple[list[int], list[Book]]:
    """The sizes up to the largest that at least half of the books can host, and the books that can host it.

    So every size is measured on the same books. Raises `EvaluationError` when not even the smallest fits into half of
    them.
    """
    for count in range(len(sizes), 0, -1):
        able = [book for book in books if lengths[book.id] >= sizes[count - 1] + extra]
        if able and 2 * len(able) >= len(books):
            return sizes[:count], able
    longest = max(lengths.values())
    raise EvaluationError(f"the books are too short: {sizes[0] + extra} frames are needed, the longest has {longest}")
