"""Recordings in which a passage is heard twice: how much likelier is it the second time?

repeat/<distance>/*.wav and *.json {"first": [start, end], "second": [start, end]}, in seconds

The second hearing may be easier for other reasons than memory. So each recording has a twin in which the first hearing
is another recording's passage, frame for frame at the same places: only a memory of the passage can tell the second
hearing in the recording from that in its twin. Without one the difference is exactly zero once the passage is further
back than the attention reaches: L (W - 1) + 1 frames of L layers with a window of W, and the codebooks' delay.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ttt_moshi.evaluation.documents import read_json
from ttt_moshi.evaluation.errors import MALFORMED, EvaluationError
from ttt_moshi.evaluation.examples import Example, Piece
from ttt_moshi.evaluation.fields import ROUNDING_SEC, span
from ttt_moshi.evaluation.listing import files_in, folders_in
from ttt_moshi.evaluation.outcome import Outcome
from ttt_moshi.evaluation.scoring.engine import Engine
from ttt_moshi.evaluation.scoring.recordings import count_frames
from ttt_moshi.evaluation.tasks.curves import group_sums, mean_difference
from ttt_moshi.evaluation.tasks.stories import distance_of
from ttt_moshi.frames import FRAME_RATE, seconds_to_frames


@dataclass(frozen=True)
class SpokenPassage:
    """A recording with the frames of its passage's two hearings, and the distance that its folder names."""

    example: Example
    first: tuple[int, int]
    second: tuple[int, int]
    seconds: float


def find_repeats(data_root: Path, frames_of: Callable[[Example], int] = count_frames) -> list[SpokenPassage]:
    """Every recording below `data_root/repeat`, by distance. Raises `EvaluationError` when there is none, and where a
    hearing is no part of its recording, whose length `frames_of` tells."""
    root = data_root / "repeat"
    passages = []
    for folder in sorted(folders_in(root), key=distance_of):
        for path in files_in(folder, ".wav"):
            example = Example.file(f"{folder.name}/{path.stem}", path)
            first, second = _spans(path.with_suffix(".json"), frames_of(example))
            passages.append(SpokenPassage(example, first, second, distance_of(folder)))
    if not passages:
        raise EvaluationError(f"no repeated passages: expected {root}/<seconds>/*.wav with a .json beside each")
    return passages


def _spans(path: Path, frames: int) -> tuple[tuple[int, int], tuple[int, int]]:
    """The whole frames of both hearings in a recording of so many."""
    found = read_json(path)
    try:
        first, second = (
            (math.ceil(start * FRAME_RATE), math.floor(end * FRAME_RATE))
            for start, end in (span(*found[name]) for name in ("first", "second"))
        )
        for start, stop in (first, second):
            if stop > frames + seconds_to_frames(ROUNDING_SEC):
                raise ValueError(f"a hearing lasts beyond the {frames} frames of the recording")
            if start >= min(stop, frames):
                raise ValueError("a hearing holds no whole frame of 80 ms")
    except MALFORMED as error:
        raise EvaluationError(f'{path} is not {{"first": [start, end], "second": [start, end]}} ({error!r})') from None
    return (first[0], min(first[1], frames)), (second[0], min(second[1], frames))


@dataclass(frozen=True)
class SpokenRepeat:
    """NLL of the second hearing minus that of the same frames where another passage was heard first, and minus that of
    the first hearing, by the distance between the two."""

    passages: list[SpokenPassage]
    name: str = "spoken_repeat"

    def run(self, engine: Engine) -> Outcome:
        twins = {p.example.id: twin for i, p in enumerate(self.passages) if (twin := self._twin(i)) is not None}
        if not twins:
            raise EvaluationError("no recording has another one that is long enough to stand for its first hearing")
        paired = [p for p in self.passages if p.example.id in twins]
        every = [p.example for p in paired] + list(twins.values())
        nll = engine.nll(every, self.name)
        first = [group_sums(nll[p.example.id], "semantic", *p.first) for p in paired]
        second = [group_sums(nll[p.example.id], "semantic", *p.second) for p in paired]
        never = [group_sums(nll[twins[p.example.id].id], "semantic", *p.second) for p in paired]
        points: list[dict[str, Any]] = []
        for seconds in sorted({p.seconds for p in paired}):
            rows = [i for i, p in enumerate(paired) if p.seconds == seconds]
            a, b, c = ([sums[i] for i in rows] for sums in (first, second, never))
            points.append(
                {
                    "frames": seconds_to_frames(seconds),
                    "second_minus_first": mean_difference(a, b),
                    "heard_minus_unheard": mean_difference(c, b),
                }
            )
        last = points[-1]
        entry: dict[str, Any] = {
            "status": "ok",
            "metric": f"NLL in nats of semantic tokens of a passage heard {last['frames']} frames ago, minus unheard",
            "better": "lower",
            "chance": 0.0,
            **last["heard_minus_unheard"],
            "unit_of_n": "recordings",
            "window": engine.scorer.window,
            "left_out": sorted({p.example.id for p in self.passages} - twins.keys()),
            "distances": points,
        }
        farthest = max(p.seconds for p in paired)
        samples = [
            {
                "id": p.example.id,
                "score": c / k - b / m if p.seconds == farthest else None,  # as the value, of the last distance alone
                "nll": {"first": a / n, "second": b / m, "never": c / k},
            }
            for p, (a, n), (b, m), (c, k) in zip(paired, first, second, never, strict=True)
        ]
        return Outcome(entry, samples, data_digest=engine.tokens.digest(every))

    def _twin(self, i: int) -> Example | None:
        """Recording `i` with the first hearing replaced by as many frames of the next recording, from its passage on;
        None where no other is long enough."""
        own = self.passages[i]
        start, stop = own.first
        for other in (*self.passages[i + 1 :], *self.passages[:i]):
            begin, end = other.first[0], other.second[1]
            if end - begin >= stop - start and other.example.files != own.example.files:
                (piece,), (stranger,) = own.example.pieces, other.example.pieces
                pieces = (
                    Piece(piece.source, 0, start),
                    Piece(stranger.source, begin, begin + stop - start),
                    Piece(piece.source, stop),
                )
                # A piece without frames, where the first hearing begins the recording, is left out.
                return Example(f"{own.example.id}:unheard", pieces if start else pieces[1:])
        return None
