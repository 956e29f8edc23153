"""What a person asks of every task alike: how the model is run, and what its text and user streams are."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from ttt_moshi.evaluation.errors import EvaluationError
from ttt_moshi.evaluation.scoring.scorer import ScoringOptions
from ttt_moshi.evaluation.streams import TextMode, UserMode

MOST_DIGITS = 12
"""of a number of frames; a thousand years have fewer"""


@dataclass(frozen=True)
class Controls:
    """One set of options for all tasks of an evaluation. A task that cannot apply one of them says so beforehand.

    Args:
        ttt: `on`, `off` (gates closed), `no_writes` (memory stays W0), `reset:N` (emptied every N frames) or
            `swapped:N` (every N frames the memory becomes that of another recording).
        text, user: see `Recordings`; None takes what is usual for the task.
        chunk_frames: longer recordings are read in such chunks; bounds memory and changes no number.
        sampled_texts: texts drawn per recording where `text` is `sampled`.
        seed: of the drawn texts.
        sink: so many first positions of a recording stay in the attention window (StreamingLLM); 0 keeps none.

    Raises:
        EvaluationError: a value that means nothing, or two that exclude one another.
    """

    ttt: str = "on"
    text: TextMode | None = None
    user: UserMode | None = None
    chunk_frames: int = 1500
    sampled_texts: int = 8
    seed: int = 0
    sink: int = 0

    def __post_init__(self) -> None:
        if not re.fullmatch(r"on|off|no_writes|(reset|swapped):0*[1-9]\d*", self.ttt):
            raise EvaluationError(
                f"`--ttt {self.ttt}`: it is on, off, no_writes, reset:FRAMES or swapped:FRAMES (as in reset:3000)"
            )
        if len(frames := self.ttt.partition(":")[2]) > MOST_DIGITS:
            raise EvaluationError(f"`--ttt {self.ttt}`: {frames} frames are more than any recording has")
        if self.text == "sampled" and self.ttt.partition(":")[0] in ("reset", "swapped"):
            raise EvaluationError(
                f"`--text sampled` reads one frame at a time, which `--ttt {self.ttt}` cannot do: choose another text"
            )

        if self.sink and (self.text == "sampled" or self.ttt.startswith("swapped")):
            other = "--text sampled" if self.text == "sampled" else f"--ttt {self.ttt}"
            raise EvaluationError(f"`--sink` cannot be applied together with `{other}`: choose one of them")

    @property
    def scoring(self) -> ScoringOptions:
        """The part that the scorer applies."""
        kind, _, frames = self.ttt.partition(":")
        return ScoringOptions(
            chunk_frames=self.chunk_frames,
            inner_lr=0.0 if kind == "no_writes" else None,
            gate=0.0 if kind == "off" else None,
            reset_every=int(frames) if kind == "reset" else None,
            swap_every=int(frames) if kind == "swapped" else None,
            sampled_texts=self.sampled_texts if self.text == "sampled" else 0,
            seed=self.seed,
            sink=self.sink,
        )

    def applied(self, text: TextMode, user: UserMode) -> dict[str, Any]:
        """What a task whose usual streams are these has applied, as `results.json` records it."""
        return {
            "ttt": self.ttt,
            "text": self.text or text,
            "user": self.user or user,
            "chunk_frames": self.chunk_frames,
            "sink": self.sink,
        }


def runs_no_model(controls: Controls) -> str | None:
    """The reason why a task that looks at what a model has written cannot apply an option about one that reads."""
    usual = Controls()
    for name in ("ttt", "sink", "text", "user"):
        if getattr(controls, name) != getattr(usual, name):
            return f"`--{name} {getattr(controls, name)}` is about a model that reads, and this looks at what one wrote"
    return None


def check_minutes(minutes: float) -> None:
    """Raises `EvaluationError` unless that is a length that an hour can have."""
    if not 0.05 <= minutes <= 24 * 60:
        raise EvaluationError(f"`--minutes` must be between 0.05 and 1440, not {minutes:g}")
