"""Recordings in which a passage is heard twice: how much likelier is it the second time?

repeat/<distance>/*.wav and *.json {"first": [start, end], "second": [start, end]}, in seconds
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ttt_moshi.evaluation.errors import EvaluationError
from ttt_moshi.evaluation.examples import Example
from ttt_moshi.evaluation.outcome import Outcome
from ttt_moshi.evaluation.scoring.engine import Engine
from ttt_moshi.evaluation.tasks.curves import group_sums, mean_difference
from ttt_moshi.evaluation.tasks.stories import distance_of
from ttt_moshi.frames import FRAME_RATE


@dataclass(frozen=True)
class SpokenPassage:
    """A recording with the frames of its passage's two hearings, and the distance that its folder names."""

    example: Example
    first: tuple[int, int]
    second: tuple[int, int]
    seconds: float


def find_repeats(data_root: Path) -> list[SpokenPassage]:
    """Every recording below `data_root/repeat`, by distance. Raises `EvaluationError` when there is none."""
    root = data_root / "repeat"
    passages = []
    for folder in sorted((f for f in root.glob("*") if f.is_dir()), key=distance_of):
        for path in sorted(folder.glob("*.wav")):
            first, second = _spans(path.with_suffix(".json"))
            example = Example.file(f"{folder.name}/{path.stem}", path)
            passages.append(SpokenPassage(example, first, second, distance_of(folder)))
    if not passages:
        raise EvaluationError(f"no repeated passages: expected {root}/<seconds>/*.wav with a .json beside each")
    return passages


def _spans(path: Path) -> tuple[tuple[int, int], tuple[int, int]]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        first, second = (
            (math.ceil(start * FRAME_RATE), math.floor(end * FRAME_RATE))
            for start, end in (found["first"], found["second"])
        )
    except (FileNotFoundError, json.JSONDecodeError, KeyError, TypeError, ValueError) as error:
        raise EvaluationError(f'{path} is not {{"first": [start, end], "second": [start, end]}} ({error!r})') from None
    return first, second


@dataclass(frozen=True)
class SpokenRepeat:
    """NLL of the second hearing minus that of the first, by the distance between them."""

    passages: list[SpokenPassage]
    name: str = "spoken_repeat"

    def run(self, engine: Engine) -> Outcome:
        nll = engine.nll([p.example for p in self.passages], self.name)
        first = [group_sums(nll[p.example.id], "semantic", *p.first) for p in self.passages]
        second = [group_sums(nll[p.example.id], "semantic", *p.second) for p in self.passages]
        points: list[dict[str, Any]] = []
        for seconds in sorted({p.seconds for p in self.passages}):
            rows = [i for i, p in enumerate(self.passages) if p.seconds == seconds]
            difference = mean_difference([first[i] for i in rows], [second[i] for i in rows])
            points.append({"frames": round(seconds * FRAME_RATE), "second_minus_first": difference})
        entry: dict[str, Any] = {
            "status": "ok",
            "metric": f"NLL in nats of semantic tokens, second minus first hearing {points[-1]['frames']} frames ago",
            "better": "lower",
            **points[-1]["second_minus_first"],
            "unit_of_n": "recordings",
            "window": engine.scorer.window,
            "distances": points,
        }
        samples = [
            {"id": p.example.id, "score": a / n - b / m}
            for p, (a, n), (b, m) in zip(self.passages, first, second, strict=True)
        ]
        return Outcome(entry, samples, data_digest=engine.tokens.digest([p.example for p in self.passages]))
