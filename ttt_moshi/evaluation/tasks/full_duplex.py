"""Full-Duplex-Bench v1 in its folders, from the words that a model said: no model runs here.

full_duplex/<subset>/<id>/input.wav, output.json and the subset's annotation; subsets are known by their names:

*pause_handling*      the user pauses and goes on; taking the turn is wrong
*turn_taking*         turn_taking.json [{"timestamp": [END, ...]}]: the user's turn ends at END; taking it is right
*user_interruption*   interrupt.json [{"timestamp": [START, END]}]: the user interrupts; an answer after END is right
*backchannel*         the user tells a story; any utterance but a backchannel is wrong. Backchannels are counted, and
                      compared with people's where icc_gt_distribution.json {id: [weight of every 0.2 s]} lies beside

output.json is {"chunks": [{"text", "timestamp": [start, end]}]}, as the benchmark's recogniser writes it, or the
{"alignments": ...} of `ttt-moshi generate`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import blake3
import numpy as np

from ttt_moshi.data.audio import read_info
from ttt_moshi.data.transcripts import MAIN_SPEAKER
from ttt_moshi.data.words import TimedWord
from ttt_moshi.evaluation.errors import EvaluationError, well_formed
from ttt_moshi.evaluation.full_duplex import (
    backchannels,
    jensen_shannon,
    latency,
    over_time,
    takes_over,
    utterances,
)
from ttt_moshi.evaluation.outcome import Outcome
from ttt_moshi.evaluation.scoring.engine import Engine
from ttt_moshi.evaluation.statistics import mean_and_interval, means_by_name
from ttt_moshi.files import read_text

KINDS = ("pause_handling", "turn_taking", "user_interruption", "backchannel")
HUMANS = "icc_gt_distribution.json"


@dataclass(frozen=True)
class Situation:
    """One recording of the user, and what the model said to it.

    Args:
        kind: one of `KINDS`.
        user_end: end of the user's turn or interruption, for the kinds that have one.
        seconds: length of the user's recording.
        humans: weights of people's backchannels over time, where they are known.
    """

    id: str
    subset: str
    kind: str
    words: tuple[TimedWord, ...]
    seconds: float
    user_end: float | None
    humans: np.ndarray | None
    digest: str


def find_situations(data_root: Path) -> list[Situation]:
    """Every situation below `data_root/full_duplex`. Raises `EvaluationError` where one lacks its files."""
    root = data_root / "full_duplex"
    found = []
    for subset in sorted(path for path in root.glob("*") if path.is_dir()):
        kind = next((kind for kind in KINDS if kind in subset.name), None)
        if kind is None:
            raise EvaluationError(f"{subset}: the name of a subset holds one of {', '.join(KINDS)}")
        humans = _json(subset / HUMANS) if (subset / HUMANS).is_file() else {}
        folders = sorted((path for path in subset.iterdir() if path.is_dir()), key=lambda p: (len(p.name), p.name))
        found += [_situation(subset.name, kind, folder, humans) for folder in folders]
    if not found:
        raise EvaluationError(f"no situations: expected {root}/<subset>/<id>/input.wav and output.json")
    return found


def _situation(subset: str, kind: str, folder: Path, humans: Any) -> Situation:
    output, audio = folder / "output.json", folder / "input.wav"
    if not output.is_file():
        raise EvaluationError(f"{folder} has no output.json: let the model answer it first (`ttt-moshi generate`)")
    if not audio.is_file():
        raise EvaluationError(f"{folder} has no input.wav")
    end = None
    if kind in ("turn_taking", "user_interruption"):
        annotation = folder / ("turn_taking.json" if kind == "turn_taking" else "interrupt.json")
        times = _json(annotation)
        with well_formed(annotation):
            end = float(times[0]["timestamp"][0 if kind == "turn_taking" else 1])
    with well_formed(folder.parent / HUMANS):
        weights = np.array(humans[folder.name], np.float64) if folder.name in humans else None
    digest = blake3.blake3().update_mmap(audio).hexdigest()
    return Situation(
        f"{subset}/{folder.name}", subset, kind, _words(output), read_info(audio).seconds, end, weights, digest
    )


def _words(path: Path) -> tuple[TimedWord, ...]:
    found = _json(path)
    with well_formed(path):
        if "alignments" in found:
            rows = [(text, *times) for text, times, speaker in found["alignments"] if speaker == MAIN_SPEAKER]
        else:
            rows = [(chunk["text"], *chunk["timestamp"]) for chunk in found["chunks"]]
        return tuple(TimedWord(str(text), float(start), float(end)) for text, start, end in rows)


def _json(path: Path) -> Any:
    if not path.is_file():
        raise EvaluationError(f"there is no {path}")
    with well_formed(path):
        return json.loads(read_text(path))


@dataclass(frozen=True)
class FullDuplex:
    """Share of situations that were handled right, and the benchmark's own measures of every subset."""

    situations: Sequence[Situation]
    name: str = "full_duplex"

    def run(self, engine: Engine) -> Outcome:
        samples = [_judge(situation) for situation in self.situations]
        by_subset: dict[str, list[dict[str, Any]]] = {}
        for situation, sample in zip(self.situations, samples, strict=True):
            by_subset.setdefault(situation.subset, []).append(sample)
        right = np.array([sample["score"] for sample in samples])
        entry: dict[str, Any] = {
            "status": "ok",
            "metric": "share of situations in which the turn was taken where it was free, and left where it was not",
            "better": "higher",
            **mean_and_interval(right),
            "n": len(right),
            "unit_of_n": "situations",
            "subsets": {subset: means_by_name(own, MEASURES) for subset, own in by_subset.items()},
        }
        facts = [[situation.id, situation.digest, situation.user_end] for situation in self.situations]
        return Outcome(entry, samples, data_digest=blake3.blake3(json.dumps(facts).encode()).hexdigest())


def _judge(situation: Situation) -> dict[str, Any]:
    words: Sequence[TimedWord] = situation.words
    if situation.kind == "user_interruption":
        assert situation.user_end is not None
        words = [word for word in words if word.end > situation.user_end]
    if situation.kind == "backchannel":
        taken = any(takes_over(utterance) for utterance in utterances(words))
    else:
        taken = takes_over(words)
    right = taken == (situation.kind in ("turn_taking", "user_interruption"))
    sample: dict[str, Any] = {"id": situation.id, "score": float(right), "take_over": float(taken)}
    if situation.user_end is not None and taken:
        sample["latency"] = latency(words, situation.user_end)
    if situation.kind == "backchannel":
        found = backchannels(words)
        sample["backchannels_per_second"] = len(found) / situation.seconds
        if situation.humans is not None:
            own = over_time([utterance[0].start for utterance in found], situation.seconds)
            sample["jsd"] = jensen_shannon(own, situation.humans)
    return sample


MEASURES = ("take_over", "latency", "backchannels_per_second", "jsd")
