"""Answers rated by a program of the user's choice, such as one that asks a language model.

The command reads one JSON object a line, {"id", "question", "reference", "answer"}, and writes one a line for each,
{"id", "score"}, in any order.
"""

from __future__ import annotations

import json
import math
import shlex
import subprocess
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from ttt_moshi.evaluation.errors import EvaluationError


@dataclass(frozen=True)
class Judged:
    """A spoken answer to be rated; `reference` is empty where there is none."""

    id: str
    question: str
    reference: str
    answer: str


def judge_answers(command: str, cases: Sequence[Judged]) -> list[float]:
    """The score of every case, in their order.

    Raises:
        EvaluationError: a command that cannot be run, fails, or does not rate every case with a finite number.
    """
    lines = "".join(json.dumps(asdict(case), ensure_ascii=False) + "\n" for case in cases)
    try:
        done = subprocess.run(shlex.split(command), input=lines, capture_output=True, text=True, check=False)
    except (OSError, ValueError) as error:
        raise EvaluationError(f"the judge `{command}` cannot be run: {error}") from error
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["it says nothing"])[-1]
        raise EvaluationError(f"the judge `{command}` ended with status {done.returncode}: {last}")
    scores: dict[str, float] = {}
    try:
        for line in done.stdout.splitlines():
            if line.strip():
                rated = json.loads(line)
                scores[rated["id"]] = float(rated["score"])
    except (ValueError, KeyError, TypeError) as error:
        raise EvaluationError(f'the judge `{command}` must write {{"id", "score"}} a line ({error!r})') from None
    lacking = [case.id for case in cases if not math.isfinite(scores.get(case.id, math.nan))]
    if lacking:
        raise EvaluationError(f"the judge `{command}` has not rated {len(lacking)} answers ({lacking[0]})")
    return [scores[case.id] for case in cases]
