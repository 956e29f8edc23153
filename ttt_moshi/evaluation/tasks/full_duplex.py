"""Full-Duplex-Bench v1 (arXiv 2503.04721): does the model take the turn where it is free, and leave it where it is not?

full_duplex/<subset>/<id>/input.wav, the user, and the subset's annotation; subsets are known by their names:

*pause_handling*      the user pauses and goes on; taking the turn is wrong
*turn_taking*         turn_taking.json [{"timestamp": [END, ...]}]: the user's turn ends at END; taking it is right
*user_interruption*   interrupt.json [{"timestamp": [START, END]}]: the user interrupts; an answer after END is right
*backchannel*         the user tells a story; any utterance but a backchannel is wrong. Backchannels are counted, and
                      compared with people's where icc_gt_distribution.json {id: [weight of every 0.2 s]} lies beside

The recordings are played to the model. What another model has said to them is measured where its name is given: from
output.json beside input.wav, {"chunks": [{"text", "timestamp": [START, END]}]} as the benchmark's recogniser writes it,
or the {"alignments": ...} of `ttt-moshi generate`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import blake3
import numpy as np
import torch

from ttt_moshi.data.audio import read_audio, read_info
from ttt_moshi.data.transcripts import MAIN_SPEAKER
from ttt_moshi.data.words import TimedWord
from ttt_moshi.evaluation.conversations import Talker, needed
from ttt_moshi.evaluation.documents import read_json
from ttt_moshi.evaluation.errors import EvaluationError, well_formed
from ttt_moshi.evaluation.fields import span
from ttt_moshi.evaluation.full_duplex import (
    apart_from_people,
    backchannels,
    latency,
    takes_over,
    utterances,
)
from ttt_moshi.evaluation.listing import folders_in
from ttt_moshi.evaluation.outcome import Outcome
from ttt_moshi.evaluation.scoring.engine import Engine
from ttt_moshi.evaluation.statistics import mean_and_interval, means_by_name
from ttt_moshi.inference.driver import Item

KINDS = ("pause_handling", "turn_taking", "user_interruption", "backchannel")
INPUT, OUTPUT, SPOKEN, HUMANS = "input.wav", "output.json", "output.wav", "icc_gt_distribution.json"
MEASURES = ("take_over", "latency", "backchannels_per_second", "jsd")


@dataclass(frozen=True)
class Situation:
    """One recording of the user.

    Args:
        kind: one of `KINDS`.
        seconds: length of the recording.
        user_end: end of the user's turn or interruption, for the kinds that have one.
        humans: weights of people's backchannels over time, where they are known.
        digest: of the recording.
    """

    id: str
    subset: str
    kind: str
    folder: Path
    seconds: float
    user_end: float | None
    humans: np.ndarray | None
    digest: str


def find_situations(data_root: Path) -> list[Situation]:
    """Every situation below `data_root/full_duplex`. Raises `EvaluationError` where one lacks its files."""
    root = data_root / "full_duplex"
    found = []
    for subset in folders_in(root):
        kind = next((kind for kind in KINDS if kind in subset.name), None)
        if kind is None:
            raise EvaluationError(f"{subset}: the name of a subset holds one of {', '.join(KINDS)}")
        humans = _json(subset / HUMANS) if (subset / HUMANS).is_file() else {}
        folders = sorted(folders_in(subset), key=lambda p: (len(p.name), p.name))
        found += [_situation(subset.name, kind, folder, humans) for folder in folders]
    if not found:
        raise EvaluationError(f"no situations: expected {root}/<subset>/<id>/{INPUT}")
    return found


def _situation(subset: str, kind: str, folder: Path, humans: Any) -> Situation:
    audio = folder / INPUT
    if not audio.is_file():
        raise EvaluationError(f"{folder} has no {INPUT}")
    end, seconds = None, read_info(audio).seconds
    if kind in ("turn_taking", "user_interruption"):
        annotation = folder / ("turn_taking.json" if kind == "turn_taking" else "interrupt.json")
        times = _json(annotation)
        with well_formed(annotation):
            own = times[0]["timestamp"]
            began, ended = (0, own[0]) if kind == "turn_taking" else (own[0], own[1])
            _, end = span(began, ended, seconds=seconds)
    with well_formed(folder.parent / HUMANS):
        weights = _weights(humans[folder.name]) if folder.name in humans else None
    digest = blake3.blake3().update_mmap(audio).hexdigest()
    return Situation(f"{subset}/{folder.name}", subset, kind, folder, seconds, end, weights, digest)


def _weights(found: Any) -> np.ndarray:
    weights = np.array(found, np.float64)
    if weights.ndim != 1 or not np.isfinite(weights).all() or (weights < 0).any() or not weights.sum() > 0:
        raise ValueError("weights are numbers from 0 on, and not all of them 0")
    return weights


def _json(path: Path) -> Any:
    if not path.is_file():
        raise EvaluationError(f"there is no {path}")
    return read_json(path)


@dataclass(frozen=True)
class Output:
    """What was said to one recording.

    Args:
        without_end: words without a time of their end, which is taken to be that of their start.
        without_start: words without a time of their start, which are left out.
    """

    words: Sequence[TimedWord]
    without_end: int = 0
    without_start: int = 0


def read_output(folder: Path) -> Output:
    """The words of output.json.

    Raises:
        EvaluationError: there is none, or it holds something else: words that begin before the recording, end before
            they begin, or end after what is in the output.wav beside, where there is one.
    """
    path = folder / OUTPUT
    if not path.is_file():
        raise EvaluationError(
            f"{folder} has no {OUTPUT}: --outputs_of is for what another model has said; without it this one talks"
        )
    found = _json(path)
    seconds = read_info(folder / SPOKEN).seconds if (folder / SPOKEN).is_file() else None
    try:
        if "alignments" in found:
            rows = [(text, times) for text, times, speaker in found["alignments"] if speaker == MAIN_SPEAKER]
        else:
            rows = [(chunk["text"], chunk["timestamp"]) for chunk in found["chunks"]]
        timed = [(str(text), start, end) for text, (start, end) in rows]
        words = [
            TimedWord(text, *span(start, start if end is None else end, seconds=seconds))
            for text, start, end in timed
            if start is not None
        ]
    except (ValueError, KeyError, TypeError, OverflowError) as error:
        raise EvaluationError(
            f"{path} is not a transcript of words with times in seconds: "
            f'{{"chunks": [{{"text", "timestamp": [START, END]}}, ...]}}, or what `ttt-moshi generate` writes ({error})'
        ) from None
    without_start = len(timed) - len(words)
    without_end = sum(start is not None and end is None for _, start, end in timed)
    return Output(words, without_end, without_start)


@dataclass(frozen=True)
class Outputs:
    """What another model has said, in the order of the situations.

    Args:
        made_by: its name, in the words of whoever has its outputs.
    """

    made_by: str
    said: Sequence[Output]

    def facts(self) -> dict[str, Any]:
        """What an entry says of them."""
        return {
            "means": f"in this share of situations {self.made_by}, and not this checkpoint, takes the turn where it is "
            "free and leaves it where it is not",
            "made_by": self.made_by,
            "words_without_end": sum(one.without_end for one in self.said),
            "words_without_start": sum(one.without_start for one in self.said),
            "options": {},  # no model has run
        }


@dataclass(frozen=True)
class FullDuplex:
    """Share of situations that were handled right, and the benchmark's own measures of every subset.

    Args:
        outputs: what another model has said; None lets this one talk.
    """

    situations: Sequence[Situation]
    talker: Talker | None
    outputs: Outputs | None = None
    name: str = "full_duplex"

    def run(self, engine: Engine) -> Outcome:
        outputs = self.outputs
        said = self._talk(engine) if outputs is None else [one.words for one in outputs.said]
        samples = [_judge(situation, words) for situation, words in zip(self.situations, said, strict=True)]
        if outputs is None:
            for sample in samples:
                sample["conversation"] = f"conversations/{self.name}/{sample['id']}"
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
            **({} if outputs is None else outputs.facts()),
        }
        return Outcome(entry, samples, data_digest=_digest(self.situations, outputs))

    def _talk(self, engine: Engine) -> list[list[TimedWord]]:
        """The words of this model, which hears every recording."""
        items = [_item(situation) for situation in self.situations]
        held = needed(self.talker).converse(self.name, items, engine.ranks, engine.counting(f"{self.name}: frames"))
        return [conversation.words for conversation in held]


def _item(situation: Situation) -> Item:
    path = situation.folder / INPUT
    return Item(situation.id, lambda: torch.from_numpy(read_audio(path).mean(axis=0)))


def _judge(situation: Situation, words: Sequence[TimedWord]) -> dict[str, Any]:
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
            sample["jsd"] = apart_from_people(found, situation.seconds, situation.humans)
    return sample


def _digest(situations: Sequence[Situation], outputs: Outputs | None) -> str:
    """Of everything that a value follows from but this model: of another one's words too."""
    facts: list[Any] = [
        [one.id, one.digest, one.user_end, None if one.humans is None else one.humans.tolist()] for one in situations
    ]
    if outputs is not None:
        facts += [[[word.text, word.start, word.end] for word in one.words] for one in outputs.said]
    return blake3.blake3(json.dumps(facts).encode()).hexdigest()
