"""Answers rated by a program of the user's choice, such as one that asks a language model, or by hand.

A command reads one JSON object a line, {"id", "question", "reference", "answer"}, and writes one a line for each,
{"id", "score"}, in any order. A file of such ratings (.jsonl) is a judge too, of what an earlier
evaluation without a judge has left to be rated.
"""

from __future__ import annotations

import json
import math
import shlex
import subprocess
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import blake3

from ttt_moshi.evaluation.errors import MALFORMED, EvaluationError, complaint, well_formed
from ttt_moshi.files import read_text

RATINGS = "a file of ratings"


@dataclass(frozen=True)
class Judged:
    """A spoken answer to be rated; `reference` is empty where there is none."""

    id: str
    question: str
    reference: str
    answer: str


def is_file_of_ratings(judge: str) -> bool:
    """Whether a judge is a file and no command: its name ends so."""
    return Path(judge).suffix == ".jsonl"


def judged_by(judge: str) -> str:
    """What tells one judge from another: the command; of files, who rated in them is not known."""
    return RATINGS if is_file_of_ratings(judge) else judge


def digest_of(ratings: Sequence[float]) -> str:
    """Tells ratings from others of the same answers: a judge may rate otherwise the next time."""
    return blake3.blake3(json.dumps(list(ratings)).encode()).hexdigest()


def as_lines(cases: Sequence[Judged]) -> str:
    """What a judge reads."""
    return "".join(json.dumps(asdict(case), ensure_ascii=False) + "\n" for case in cases)


def judge_answers(judge: str, cases: Sequence[Judged]) -> list[float]:
    """The score of every case, in their order.

    Raises:
        EvaluationError: a command that cannot be run or fails, a file that cannot be read, and ratings that are not one
            finite number for every case.
    """
    written = _read(judge) if is_file_of_ratings(judge) else _run(judge, cases)
    scores: dict[str, float] = {}
    twice = []
    try:
        for line in written.split("\n"):  # texts may hold other ends of lines
            if line.strip():
                rated = json.loads(line)
                twice += [rated["id"]] if rated["id"] in scores else []
                scores[rated["id"]] = float(rated["score"])
    except MALFORMED as error:
        raise EvaluationError(
            f'the judge `{judge}` must write {{"id", "score"}} a line, and one of its lines {complaint(error)}'
        ) from None
    if twice:
        raise EvaluationError(f"the judge `{judge}` has rated {twice[0]} more than once")
    lacking = [case.id for case in cases if not math.isfinite(scores.get(case.id, math.nan))]
    if lacking:
        raise EvaluationError(f"the judge `{judge}` has not rated {len(lacking)} answers ({lacking[0]})")
    return [scores[case.id] for case in cases]


def _read(path: str) -> str:
    with well_formed(Path(path)):
        return read_text(Path(path), encoding="utf-8-sig")


def _run(command: str, cases: Sequence[Judged]) -> str:
    lines = as_lines(cases)
    try:
        done = subprocess.run(shlex.split(command), input=lines, capture_output=True, text=True, check=False)
    except (OSError, ValueError) as error:
        raise EvaluationError(f"the judge `{command}` cannot be run: {error}") from error
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["it says nothing"])[-1]
        raise EvaluationError(f"the judge `{command}` ended with status {done.returncode}: {last}")
    return done.stdout
