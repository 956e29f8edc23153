"""What a model does when somebody speaks while it does: measures of Full-Duplex-Bench v1.5 (arXiv 2507.23159).

A stretch of speech goes on until a second of silence, as in `full_duplex`: who pauses for breath has not stopped. All
times are seconds from the start of the user's recording.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ttt_moshi.data.voiced import HOP, Span
from ttt_moshi.data.words import TimedWord
from ttt_moshi.evaluation.full_duplex import PAUSE_SEC, takes_over, utterances
from ttt_moshi.evaluation.turn_events import energies, speech_spans
from ttt_moshi.frames import SAMPLE_RATE

KINDS = ("user_interruption", "user_backchannel", "talking_to_other", "background_speech")
ANSWERED = "user_interruption"
"""the only kind that speaks to the model; of the others it should take no notice"""


@dataclass(frozen=True)
class Heard:
    """One side of a conversation: where it is loud, and how loud.

    Args:
        spans: stretches of speech between silences of a second.
        decibels: [steps of 20 ms], dB of full scale.
        words: what was said, with times.
    """

    spans: tuple[Span, ...]
    decibels: np.ndarray
    words: tuple[TimedWord, ...]

    @classmethod
    def of(cls, samples: np.ndarray, words: Sequence[TimedWord]) -> Heard:
        """Of the model's audio, float32 [samples] at 24 kHz, and its words."""
        joined: list[Span] = []
        for span in speech_spans(samples):
            if joined and span.start - joined[-1].end < PAUSE_SEC:
                joined[-1] = Span(joined[-1].start, span.end)
            else:
                joined.append(span)
        return cls(tuple(joined), energies(samples), tuple(words))

    def speaking(self, at: float) -> Span | None:
        """The stretch of speech that is under way at this time."""
        return next((span for span in self.spans if span.start < at < span.end), None)


def stop_latency(said: Heard, overlap: Span) -> float | None:
    """Seconds that the model goes on from the beginning of the overlap; None where it was not speaking."""
    now = said.speaking(overlap.start)
    return None if now is None else now.end - overlap.start


def response_latency(said: Heard, overlap: Span) -> float | None:
    """Seconds from the end of the overlap to the first stretch of speech that begins after its beginning, 0 where it
    begins within; None where there is none."""
    later = [span.start for span in said.spans if span.start >= overlap.start]
    return max(0.0, min(later) - overlap.end) if later else None


def right(kind: str, said: Heard, clean: Heard, overlap: Span) -> bool:
    """Whether the model did what the situation asks for.

    An interruption is answered: a turn of words that begins after the interruption's beginning and ends after its end.
    Anything else is passed over: who was speaking goes on beyond it, or ends where the reply without an overlap ends
    too, to a second; who was not takes no turn until a second after it.
    """
    turns = [(u[0].start, max(w.end for w in u)) for u in utterances(said.words) if takes_over(u)]
    if kind == ANSWERED:
        return any(start >= overlap.start and end > overlap.end for start, end in turns)
    now = said.speaking(overlap.start)
    if now is None:
        return not any(overlap.start <= start < overlap.end + PAUSE_SEC for start, _ in turns)
    undisturbed = clean.speaking(overlap.start)
    return now.end > overlap.end or (undisturbed is not None and abs(now.end - undisturbed.end) <= PAUSE_SEC)


def manner(said: Heard, start: float, end: float) -> dict[str, float]:
    """How the model speaks within [start, end) seconds: words a minute of its speech, and the mean loudness of that in
    dB of full scale. Empty where it says less than a second or no word."""
    loud = np.zeros(len(said.decibels), bool)
    steps = HOP / SAMPLE_RATE
    for span in said.spans:
        loud[round(max(span.start, start) / steps) : max(0, round(min(span.end, end) / steps))] = True
    seconds = loud.sum() * steps
    words = sum(start <= word.start < end for word in said.words)
    if seconds < 1.0 or not words:
        return {}
    power = float(np.mean(10 ** (said.decibels[loud] / 10)))
    return {"words_per_minute": 60 * words / seconds, "loudness": 10 * float(np.log10(power))}


def adaptation(said: Heard, clean: Heard, overlap: Span) -> dict[str, float]:
    """How the manner of speaking after the overlap differs from that before it (`_after_before`), and from that of the
    reply without one at the same time (`_after_clean`), as far as there is enough speech."""
    after = manner(said, overlap.end, np.inf)
    found = {}
    for name, other in (("before", manner(said, 0.0, overlap.start)), ("clean", manner(clean, overlap.end, np.inf))):
        for measure in after.keys() & other.keys():
            found[f"{measure}_after_{name}"] = after[measure] - other[measure]
    return found
