"""Spoken questions that the model answers by talking: open ones, multiple choice, and answers for a judge.

<name>/<name>.csv with audios/                    Llama Questions, Web Questions and TriviaQA as OpenAudioBench has them
<name>/questions.jsonl                            the same in our own form: {"audio", "answers": [...], "question"?}
spoken_choices/<name>.jsonl                       {"audio", "choices": {"A": "...", ...} or [...], "answer": "B"}
judged_answers/<name>.jsonl                       {"audio", "question", "reference"?}

The last two also read what `published_questions` finds. Each question is played to the model with silence after it;
what it says from the end of the question on is its answer.
"""

from __future__ import annotations

import json
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import blake3
import numpy as np
import torch

from ttt_moshi.data.audio import read_audio
from ttt_moshi.evaluation.controls import Controls
from ttt_moshi.evaluation.conversations import Talker, needed
from ttt_moshi.evaluation.documents import json_lines, table_rows
from ttt_moshi.evaluation.errors import EvaluationError, line_of, writing
from ttt_moshi.evaluation.fields import within
from ttt_moshi.evaluation.judge import Judged, as_lines, digest_of, judge_answers
from ttt_moshi.evaluation.listing import files_in
from ttt_moshi.evaluation.outcome import Outcome
from ttt_moshi.evaluation.pairs import some_of
from ttt_moshi.evaluation.parquet import Embedded
from ttt_moshi.evaluation.scoring.engine import Engine
from ttt_moshi.evaluation.spoken_answers import answers_of, can_be_said, chosen, contains, equals
from ttt_moshi.evaluation.statistics import mean_and_interval
from ttt_moshi.files import read_bytes, write_atomically
from ttt_moshi.frames import SAMPLE_RATE
from ttt_moshi.inference.driver import Conversation, Item

LAYOUTS: dict[str, tuple[str, str, str | None, str]] = {
    "llama_questions": ("Questions", "Answer", None, ""),
    "web_questions": ("question", "answers", None, ";"),
    "trivia_qa": ("question", "answer_normalized_value", "answer_normalized_aliases", ","),
}
"""OpenAudioBench's columns: the question, its answer, other answers, and what stands between several"""
LETTERS = "ABCDEFGHIJ"
"""of choices in a list"""
_NAME = re.compile(r"\w[\w.\- ]*")


@dataclass(frozen=True)
class SpokenQuestion:
    """A recording, what was asked in it, and what is right.

    Args:
        group: the file that lists it.
        choices: by letter; empty for open questions.
    """

    id: str
    audio: Path | Embedded
    text: str
    answers: tuple[str, ...]
    group: str
    choices: Mapping[str, str] = field(default_factory=dict)


def open_questions(data_root: Path, name: str) -> list[SpokenQuestion]:
    """Of one data set in either layout. Raises `EvaluationError` where there is none, or one that cannot be used."""
    folder = next((f for f in (data_root / name, data_root / "eval_datas" / name) if f.is_dir()), data_root / name)
    own, table = folder / "questions.jsonl", folder / f"{name}.csv"
    if own.is_file():
        return from_lines(own, lambda line: (answers_of(line["answers"], "answers"), {}))
    if not table.is_file():
        raise EvaluationError(f"no spoken questions: expected {table} with audios/ beside it, or {own}")
    asked, answer, others, between = LAYOUTS[name]
    found = []
    for number, row in table_rows(table):
        with line_of(table, number):
            texts = [row[answer], *([row[others]] if others else [])]
            answers = [a.strip() for text in texts for a in (text.split(between) if between else [text])]
            if not any(map(can_be_said, answers)):
                raise ValueError(f"no answer in {answers} that could be said")
            audio = within(folder / "audios", row["audio_filename"])
            found.append(SpokenQuestion(str(number), audio, row[asked], tuple(a for a in answers if a), name))
    return usable(found, table)


@dataclass(frozen=True)
class Lists:
    """Questions of several lists, and the lists of a benchmark that cannot be asked here, with the reason."""

    questions: list[SpokenQuestion]
    left_out: Mapping[str, str] = field(default_factory=dict)


def choice_questions(data_root: Path) -> list[SpokenQuestion]:
    """Multiple choice questions of our own lists. Raises `EvaluationError` for one that cannot be used."""

    def read(line: Mapping[str, Any]) -> tuple[tuple[str, ...], dict[str, str]]:
        choices = _lettered(line["choices"])
        answer = next((letter for letter in choices if letter.upper() == str(line["answer"]).upper()), None)
        if answer is None or len(choices) < 2:
            raise ValueError(f"the answer {line['answer']!r} is not one of the letters of two or more choices")
        return (answer,), choices

    return [q for path in files_in(data_root / "spoken_choices", ".jsonl") for q in from_lines(path, read)]


def _lettered(given: Any) -> dict[str, str]:
    """Choices by letter, of a list from A on. Raises `ValueError` for what is none, or cannot be told apart."""
    if isinstance(given, list):
        if len(given) > len(LETTERS):
            raise ValueError(f"{len(given)} choices are more than {LETTERS} can name")
        given = dict(zip(LETTERS, given, strict=False))
    if not isinstance(given, dict) or not all(len(letter.upper()) == 1 and letter.isalnum() for letter in given):
        raise ValueError(f'`choices` is {given!r}, and no list of texts or {{"A": "...", "B": "..."}}')
    if len({letter.upper() for letter in given}) < len(given):
        raise ValueError(f"`choices` has one letter twice ({', '.join(given)}): capital and small ones are the same")
    for text in given.values():
        if not isinstance(text, str | int):
            raise ValueError(f"`choices` holds {text!r}, and no text")
    return {letter: str(text) for letter, text in given.items()}


def judged_questions(data_root: Path) -> list[SpokenQuestion]:
    """Questions of our own lists whose answers a judge rates. Raises `EvaluationError` as `choice_questions`."""

    def read(line: Mapping[str, Any]) -> tuple[tuple[str, ...], dict[str, str]]:
        reference = line.get("reference")
        if not isinstance(reference, str | int | None):
            raise ValueError(f"`reference` is {reference!r}, and no text")
        return () if reference in (None, "") else (str(reference),), {}

    return [q for path in files_in(data_root / "judged_answers", ".jsonl") for q in from_lines(path, read)]


def from_lines(
    path: Path, read: Callable[[Mapping[str, Any]], tuple[tuple[str, ...], dict[str, str]]]
) -> list[SpokenQuestion]:
    """The questions of a file {"audio", "question"?, ...} a line; `read` has the answers and choices of one.

    Raises:
        EvaluationError: a line that is not so, a recording that is not there, and a file without any.
    """
    found = []
    group = path.parent.name if path.stem == "questions" else path.stem
    for number, values in json_lines(path):
        with line_of(path, number):
            answers, choices = read(values)
            audio = path.parent / values["audio"]
            found.append(SpokenQuestion(str(number), audio, str(values.get("question", "")), answers, group, choices))
    return usable(found, path)


def usable(questions: list[SpokenQuestion], path: Path) -> list[SpokenQuestion]:
    """The questions of a file, if there are any and each has its recording; else raises `EvaluationError`."""
    if not questions:
        raise EvaluationError(f"{path} lists no questions")
    if lost := [q.audio for q in questions if isinstance(q.audio, Path) and not q.audio.is_file()]:
        raise EvaluationError(f"{path} lists {len(lost)} recordings that are not there ({lost[0]})")
    return questions


@dataclass(frozen=True)
class Asking:
    """How questions are asked.

    Args:
        seconds: of silence after a question, for the answer.
        draws: answers to each question.
        judge: command that rates answers, see `judge_answers`; None without one.
    """

    seconds: float = 20.0
    draws: int = 1
    judge: str | None = None


@dataclass(frozen=True)
class SpokenQuestions:
    """Share of questions that are answered right, or how a judge rates the answers."""

    name: str
    questions: Sequence[SpokenQuestion]
    talker: Talker | None
    asking: Asking
    left_out: Mapping[str, str] = field(default_factory=dict)

    def run(self, engine: Engine) -> Outcome:
        items = [self._item(question, draw) for question in self.questions for draw in range(self.asking.draws)]
        held = needed(self.talker).converse(self.name, items, engine.ranks, engine.counting(f"{self.name}: frames"))
        said = [_answer(conversation, self.asking.seconds) for conversation in held]
        if self.name == "judged_answers":
            cases = [
                Judged(item.name, question.text, question.answers[0] if question.answers else "", text)
                for item, (question, text) in zip(items, self._with_questions(said), strict=True)
            ]
            scores = engine.ranks.on_main(lambda: self._rated(cases))
        else:
            scores = [float(_right(question, text)) for question, text in self._with_questions(said)]
        return self._outcome(items, said, np.array(scores).reshape(len(self.questions), -1))

    def _rated(self, cases: Sequence[Judged]) -> list[float]:
        if self.asking.judge is not None:
            return judge_answers(self.asking.judge, cases)
        path = needed(self.talker).folder / self.name / "to_judge.jsonl"
        with writing(path):
            write_atomically(path, as_lines(cases).encode())
        raise EvaluationError(
            f"answers are rated by a judge: name its command with --judge, or a .jsonl of "
            f'{{"id", "score"}} lines for those in {path}'
        )

    def _item(self, question: SpokenQuestion, draw: int) -> Item:
        silence = round(self.asking.seconds * SAMPLE_RATE)

        def read() -> torch.Tensor:
            audio = question.audio
            both = read_audio(audio) if isinstance(audio, Path) else audio.samples()
            samples = torch.from_numpy(both.mean(axis=0))
            return torch.nn.functional.pad(samples, (0, silence))

        return Item(f"{question.group}-{question.id}-{draw}", read)

    def _with_questions(self, said: Sequence[str]) -> list[tuple[SpokenQuestion, str]]:
        return [(self.questions[i // self.asking.draws], text) for i, text in enumerate(said)]

    def _outcome(self, items: Sequence[Item], said: Sequence[str], scores: np.ndarray) -> Outcome:
        """Scores are [questions, draws]."""
        mean, draws = scores.mean(axis=1), self.asking.draws
        groups: dict[str, list[int]] = defaultdict(list)
        for i, question in enumerate(self.questions):
            groups[question.group].append(i)
        entry: dict[str, Any] = {
            "status": "ok",
            "metric": self._metric(),
            "better": "higher",
            **mean_and_interval(mean),
            "n": len(mean),
            "unit_of_n": "questions",
            "draws": draws,
            "answer_seconds": self.asking.seconds,
            "best_of": {str(k): float(scores[:, :k].max(axis=1).mean()) for k in range(1, draws + 1)},
            "silent": float(np.mean([not text for text in said])),
            **({"left_out": dict(self.left_out)} if self.left_out else {}),
            "lists": {group: {**mean_and_interval(mean[rows]), "n": len(rows)} for group, rows in groups.items()},
        }
        if self.name == "spoken_choices":
            entry["chance"] = float(np.mean([1 / len(question.choices) for question in self.questions]))
            told = [chosen(text, question.choices) is not None for question, text in self._with_questions(said)]
            entry["told"] = float(np.mean(told))
        elif self.name == "judged_answers":
            entry["ratings"] = digest_of(scores.ravel().tolist())
        else:
            exact = [equals(text, question.answers) for question, text in self._with_questions(said)]
            entry["nothing_else"] = float(np.mean(exact))
        samples = []
        for i, question in enumerate(self.questions):
            own = range(i * draws, (i + 1) * draws)
            samples.append(
                {
                    "id": f"{question.group}-{question.id}",
                    "score": float(mean[i]),
                    "question": question.text,
                    "right": list(question.answers),
                    "said": [said[j] for j in own],
                    "scores": scores[i].tolist(),
                    "conversations": [f"conversations/{self.name}/{items[j].name}" for j in own],
                }
            )
        return Outcome(entry, samples, data_digest=_digest(self.questions))

    def _metric(self) -> str:
        if self.name == "judged_answers":
            return "mean rating of the spoken answers by the judge"
        if self.name == "spoken_choices":
            return "share of multiple choice questions whose right choice is said"
        return "share of spoken questions whose answer is in what the model says"


def _right(question: SpokenQuestion, text: str) -> bool:
    if question.choices:
        return chosen(text, question.choices) == question.answers[0]
    return contains(text, question.answers)


def _answer(conversation: Conversation, seconds: float) -> str:
    """What was said from the end of the question on; a second before it counts too, for a model that is quick."""
    end = conversation.seconds - seconds
    return " ".join(word.text for word in conversation.words if word.start >= end - 1.0)


def _digest(questions: Sequence[SpokenQuestion]) -> str:
    digest = blake3.blake3()
    for q in questions:
        digest.update(json.dumps([q.id, q.group, q.text, q.answers, dict(q.choices)]).encode())
        digest.update(read_bytes(q.audio) if isinstance(q.audio, Path) else q.audio.content())
    return digest.hexdigest()


def some(questions: list[SpokenQuestion], max_items: int | None, seed: int) -> list[SpokenQuestion]:
    """At most so many, from every list in proportion.

    Raises:
        EvaluationError: two questions of one name, or one that cannot be the name of a folder.
    """
    called = Counter(f"{question.group}-{question.id}" for question in questions)
    for name, count in called.items():
        if count > 1:
            raise EvaluationError(f"{count} questions are called {name}: each id once")
        if not _NAME.fullmatch(name):
            raise EvaluationError(f"{name!r} cannot name a question: letters, digits, `_`, `.` and `-`")
    return some_of(questions, lambda one: f"{one.group} {one.id}", max_items, seed, lambda one: one.group)


def cannot_apply(controls: Controls) -> str | None:
    """Options about a model that reads have no meaning where it talks."""
    for name in ("ttt", "text", "user"):
        if getattr(controls, name) != getattr(Controls(), name):
            return f"`--{name} {getattr(controls, name)}` is about a model that reads, and here it talks"
    return None
