"""Does a dialogue make the answer to a question about it likelier? ContextDialog (arXiv 2502.19759) as contrastive NLL.

context_dialog/<name>.jsonl    {"turns": ["0.wav", "1.wav", ...], "question": "q.wav", "answer": "a.wav",
                                "dialogue"?: "...", "recalls"?: number of the turn that is asked for}

Two sides take turns: the last turn before the user's question is the agent's, the one before it the user's, and so on.
The question is asked after its own dialogue and after another one. The answer is frame for frame the same tokens both
times, so only what is known of the dialogue can tell the two apart. Questions about one dialogue are averaged first:
the dialogue is the item of the statistics.
"""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import blake3
import numpy as np

from ttt_moshi.data.audio import read_audio
from ttt_moshi.data.sound_files import write_sound
from ttt_moshi.evaluation.controls import Controls
from ttt_moshi.evaluation.documents import json_lines
from ttt_moshi.evaluation.errors import EvaluationError, line_of, writing
from ttt_moshi.evaluation.examples import Example, Piece, Source
from ttt_moshi.evaluation.fields import texts
from ttt_moshi.evaluation.listing import files_in
from ttt_moshi.evaluation.outcome import Outcome
from ttt_moshi.evaluation.pairs import some_of
from ttt_moshi.evaluation.scoring.engine import Engine
from ttt_moshi.evaluation.statistics import item_means, mean_and_interval, means_by_name
from ttt_moshi.evaluation.tasks.curves import GROUPS, group_sums, mean_difference
from ttt_moshi.files import read_bytes
from ttt_moshi.frames import FRAME_SIZE, SAMPLE_RATE

AGENT, USER = 0, 1
SIDES = ("agent", "user")


@dataclass(frozen=True)
class Recall:
    """A dialogue, a question of its user about it, and the agent's answer.

    Args:
        dialogue: questions about one dialogue have this in common.
        recalls: number of the turn that is asked for, None where it is not known.
    """

    id: str
    dialogue: str
    turns: tuple[Path, ...]
    question: Path
    answer: Path
    recalls: int | None

    def side(self, turn: int) -> int:
        """Who speaks a turn."""
        return AGENT if (len(self.turns) - turn) % 2 else USER


def find_recalls(data_root: Path) -> list[Recall]:
    """Every question below `data_root/context_dialog`. Raises `EvaluationError` where there is none, one that lacks
    something, and where all are about one dialogue."""
    root = data_root / "context_dialog"
    found = [recall for path in files_in(root, ".jsonl") for recall in _read(path)]
    if not found:
        raise EvaluationError(f"no questions about dialogues: expected {root}/<name>.jsonl")
    if len({recall.dialogue for recall in found}) < 2:
        raise EvaluationError(
            f"{root}: all questions are about one dialogue, and another one is needed to compare with"
        )
    return found


def _read(path: Path) -> list[Recall]:
    found = []
    for number, values in json_lines(path):
        with line_of(path, number):
            turns = tuple(path.parent / turn for turn in texts(values["turns"], "turns"))
            recalls = values.get("recalls")
            if recalls is not None and not (isinstance(recalls, int) and 0 <= recalls < len(turns)):
                raise ValueError(f"`recalls` is {recalls!r}, and there are {len(turns)} turns")
            own = Recall(
                f"{path.stem}/{number}",
                f"{path.stem}/{values.get('dialogue', number)}",
                turns,
                path.parent / str(values["question"]),
                path.parent / str(values["answer"]),
                recalls,
            )
        if lost := next((file for file in (*turns, own.question, own.answer) if not file.is_file()), None):
            raise EvaluationError(f"{path}, line {number}: there is no {lost}")
        found.append(own)
    return found


def some(recalls: list[Recall], max_items: int | None, seed: int) -> list[Recall]:
    """At most so many questions."""
    return some_of(recalls, lambda recall: recall.id, max_items, seed)


@dataclass(frozen=True)
class ContextDialog:
    """NLL of the answer after another dialogue minus that after its own.

    Args:
        recalls: the questions that are asked.
        others: questions whose dialogues may stand for another's.
    """

    recalls: Sequence[Recall]
    others: Sequence[Recall]
    name: str = "context_dialog"

    def run(self, engine: Engine) -> Outcome:
        with tempfile.TemporaryDirectory() as folder:
            written = _Written(Path(folder))
            starts = {}
            examples: list[tuple[Example, Example]] = []
            for recall in self.recalls:
                own, (asked, answered) = written.dialogue(recall), written.question(recall)
                other = written.dialogue(self._other(recall))
                examples.append(
                    (
                        Example(recall.id, (own, asked)),
                        Example(f"{recall.id}:another", (other, asked)),
                    )
                )
                starts[recall.id] = answered
            every = [example for pair in examples for example in pair]
            nll = engine.nll(every, self.name)
        spans = [(nll[own.id][:, -starts[own.id] :], nll[other.id][:, -starts[own.id] :]) for own, other in examples]
        after = [{group: (group_sums(a, group), group_sums(b, group)) for group in GROUPS} for a, b in spans]
        gains = np.array([s2 / n2 - s1 / n1 for (s1, n1), (s2, n2) in (sums["semantic"] for sums in after)])
        dialogues = [recall.dialogue for recall in self.recalls]
        by_dialogue = item_means(dialogues, gains)
        entry: dict[str, Any] = {
            "status": "ok",
            "metric": "nats by which a semantic token of the answer is likelier after its own dialogue than another",
            "better": "higher",
            "chance": 0.0,
            **mean_and_interval(by_dialogue),
            "n": len(by_dialogue),
            "unit_of_n": "dialogues",
            "questions": len(gains),
            "window": engine.scorer.window,
            "likelier": mean_and_interval(item_means(dialogues, np.where(gains == 0, 0.5, gains > 0))),
            "gains": {
                group: mean_difference(
                    [sums[group][0] for sums in after], [sums[group][1] for sums in after], dialogues
                )
                for group in GROUPS
                if all(count for sums in after for _, count in sums[group])
            },
            "recalled": self._by_side(gains),
        }
        samples = [
            {
                "id": recall.id,
                "item": recall.dialogue,
                "score": float(gain),
                "groups": {"recalled": SIDES[recall.side(recall.recalls)]} if recall.recalls is not None else {},
                "nll": {group: [own[0], other[0]] for group, (own, other) in sums.items()},
            }
            for recall, gain, sums in zip(self.recalls, gains.tolist(), after, strict=True)
        ]
        return Outcome(entry, samples, data_digest=_digest(self.recalls, self.others))

    def _other(self, recall: Recall) -> Recall:
        """The next question about another dialogue."""
        at = self.others.index(recall)
        following = (*self.others[at + 1 :], *self.others[:at])
        return next(other for other in following if other.dialogue != recall.dialogue)

    def _by_side(self, gains: np.ndarray) -> dict[str, Any]:
        """The gain by who had said what is asked for."""
        samples = [
            {"item": recall.dialogue, SIDES[recall.side(recall.recalls)]: gain}
            for recall, gain in zip(self.recalls, gains.tolist(), strict=True)
            if recall.recalls is not None
        ]
        return means_by_name(samples, SIDES)


class _Written:
    """Dialogues as stereo files, the agent's side first; every turn begins with a frame."""

    def __init__(self, folder: Path):
        self._folder = folder
        self._known: dict[tuple[Path, ...], Piece] = {}

    def dialogue(self, recall: Recall) -> Piece:
        return self._write([(path, recall.side(turn)) for turn, path in enumerate(recall.turns)])

    def question(self, recall: Recall) -> tuple[Piece, int]:
        """Question and answer, and how many frames the answer has."""
        frames = -(-read_audio(recall.answer).shape[1] // FRAME_SIZE)
        if not frames:
            raise EvaluationError(f"{recall.answer} holds no audio")
        return self._write([(recall.question, USER), (recall.answer, AGENT)]), frames

    def _write(self, turns: Sequence[tuple[Path, int]]) -> Piece:
        key = tuple(path for path, _ in turns)
        if key not in self._known:
            parts = []
            for path, side in turns:
                mono = read_audio(path).mean(axis=0)
                part = np.zeros((math.ceil(len(mono) / FRAME_SIZE) * FRAME_SIZE, 2), np.float32)
                part[: len(mono), side] = mono
                parts.append(part)
            path = self._folder / f"{len(self._known)}.wav"
            with writing(path):
                write_sound(path, np.concatenate(parts), SAMPLE_RATE)
            self._known[key] = Piece(Source.file(path))
        return self._known[key]


def _digest(recalls: Sequence[Recall], others: Sequence[Recall]) -> str:
    """Of what is asked, after which dialogues."""
    facts = []
    files: Mapping[Path, str] = _Digests()
    for recall in others:
        turns = [files[path] for path in recall.turns]
        facts.append([recall.id, recall.dialogue, turns, files[recall.question], files[recall.answer], recall.recalls])
    return blake3.blake3(json.dumps([[recall.id for recall in recalls], facts]).encode()).hexdigest()


class _Digests(dict[Path, str]):
    """Of files, each read once."""

    def __missing__(self, path: Path) -> str:
        self[path] = blake3.blake3(read_bytes(path)).hexdigest()
        return self[path]


def cannot_apply(controls: Controls) -> str | None:
    """The dialogue has two sides and no transcript."""
    if controls.user not in (None, "natural"):
        return f"`--user {controls.user}` would leave out the user, who asks"
    if controls.text == "given":
        return "`--text given` needs word times, which its dialogues do not have"
    return None
