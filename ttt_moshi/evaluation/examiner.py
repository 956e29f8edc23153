"""An examiner who talks with a model through a server, in turns that are given, and decides by rule when each begins.

As in Full-Duplex-Bench v2 (arXiv 2510.07838) there is a patient examiner and a quick one; as nothing here understands
what is said, turns are recordings. A turn begins, since the one before has ended, when the model

- has spoken and then been silent for a while (`silence`);
- or has said nothing for longer than that (`patience`; one second before the first turn);
- or, to the quick examiner, has spoken for a while (`breaks_in`);
- or has not been silent for half a minute;

or at a given time, whatever the model does. The conversation ends as if one more turn were to begin.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ttt_moshi.data.voiced import Span
from ttt_moshi.data.words import TimedWord
from ttt_moshi.evaluation.full_duplex import latency, takes_over, utterances
from ttt_moshi.evaluation.overlaps import Heard, stop_latency
from ttt_moshi.evaluation.spoken_answers import contains
from ttt_moshi.frames import FRAME_RATE, FRAME_SIZE, SAMPLE_RATE
from ttt_moshi.inference.client import Call
from ttt_moshi.inference.transcript import words

FIRST_SEC, LONGEST_SEC = 1.0, 30.0
EARLY_SEC = 0.5
"""before the end of a turn, from which on who begins to speak does not interrupt it"""
_FRAME_SEC = 1 / FRAME_RATE
_LOUD_DB, _BELOW_LOUDEST_DB = -50.0, 25.0
_SILENCE: np.ndarray = np.zeros(FRAME_SIZE, np.float32)


@dataclass(frozen=True)
class Pace:
    """How an examiner waits, in seconds of the model's silence, of its saying nothing, and of its speaking."""

    silence: float
    patience: float
    breaks_in: float | None

    def due(self, spoken: float, quiet: float, waited: float, first: bool, last: bool) -> bool:
        """Whether the next turn begins, after so many seconds of which the model has spoken `spoken`, the last `quiet`
        of them without a sound of it."""
        if waited >= LONGEST_SEC:
            return True
        if not spoken:
            return waited >= (FIRST_SEC if first else self.patience)
        return quiet >= self.silence or (self.breaks_in is not None and not last and spoken >= self.breaks_in)


PACES = {"slow": Pace(1.0, 8.0, None), "fast": Pace(0.5, 3.0, 2.0)}


@dataclass(frozen=True)
class Turn:
    """What an examiner says: float32 [samples] at 24 kHz; `at`: when, in seconds, None by the rule."""

    samples: np.ndarray
    at: float | None = None


@dataclass(frozen=True)
class Exchange:
    """A conversation as the examiner heard it.

    Args:
        said, heard: float32 [samples], the examiner and the model, at the same times.
        words: the model's.
        turns: when the examiner spoke.
    """

    said: np.ndarray
    heard: np.ndarray
    words: Sequence[TimedWord]
    turns: Sequence[Span]


async def examine(call: Call, turns: Sequence[Turn], pace: Pace) -> Exchange:
    """Holds a conversation. Raises `InferenceError` where the server ends it."""
    # The silence that found out when the server begins to answer.
    said, heard = [_SILENCE] * call.lead, [_SILENCE] * call.lead
    spans: list[Span] = []
    loudest = -np.inf

    async def exchange(frame: np.ndarray) -> bool:
        """Whether the model was loud meanwhile."""
        nonlocal loudest
        answer = await call.exchange(frame)
        said.append(frame)
        heard.append(answer)
        decibels = 10 * np.log10(float(np.square(answer, dtype=np.float64).mean()) + 1e-12)
        loudest = max(loudest, decibels)
        return decibels >= max(_LOUD_DB, loudest - _BELOW_LOUDEST_DB)

    for number, turn in enumerate([*turns, None]):
        spoken = quiet = waited = 0
        while not (
            len(said) >= turn.at * FRAME_RATE
            if turn is not None and turn.at is not None
            else pace.due(spoken * _FRAME_SEC, quiet * _FRAME_SEC, waited * _FRAME_SEC, number == 0, turn is None)
        ):
            loud = await exchange(_SILENCE)
            waited, spoken, quiet = waited + 1, spoken + loud, 0 if loud else quiet + 1
        if turn is None:
            break
        start = len(said) / FRAME_RATE
        spans.append(Span(start, start + len(turn.samples) / SAMPLE_RATE))
        padded = np.pad(turn.samples, (0, -len(turn.samples) % FRAME_SIZE))
        for frame in padded.reshape(-1, FRAME_SIZE):
            await exchange(frame)
    frames = len(said)
    await call.exchange(_SILENCE)  # text comes after its sound, so that of the last frame is there with the next one
    pieces = [call.pieces.get(frame, "") for frame in range(frames)]
    return Exchange(np.concatenate(said), np.concatenate(heard), words(pieces, FRAME_RATE), spans)


def score_turns(exchange: Exchange, expected: Sequence[Sequence[str]]) -> list[dict[str, float]]:
    """What the model made of each of the examiner's turns.

    `taken`: whether it takes the turn (more than a backchannel) with words that end after the examiner's turn and begin
    before the next one; `latency`: then, from the end of the examiner's turn to its first word, 0 where that came
    before. `interrupted`: whether it takes a turn that begins within the examiner's, half a second before its end or
    earlier. `answered`: taken and not interrupted. `stop_latency`: how long the model goes on that the examiner breaks
    in on. `known`: where words are expected, whether some of them are in the answer.
    """
    model = Heard.of(exchange.heard, exchange.words)
    own = utterances(exchange.words)
    ends = [*(turn.start for turn in exchange.turns[1:]), np.inf]
    found = []
    for turn, end, wanted in zip(exchange.turns, ends, expected, strict=True):
        after = [word for word in exchange.words if turn.start <= word.start < end and word.end > turn.end]
        taken = takes_over(after)
        interrupted = any(takes_over(u) and turn.start <= u[0].start < turn.end - EARLY_SEC for u in own)
        measures = {"answered": float(taken and not interrupted), "taken": float(taken)}
        measures["interrupted"] = float(interrupted)
        if taken:
            measures["latency"] = latency(after, turn.end)
        if (stopped := stop_latency(model, turn)) is not None:
            measures["stop_latency"] = stopped
        if wanted:
            measures["known"] = float(contains(" ".join(word.text for word in after), wanted))
        found.append(measures)
    return found
