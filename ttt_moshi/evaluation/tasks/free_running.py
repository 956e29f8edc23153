"""Does a model that talks by itself keep talking sense? Statistics of conversations that were generated.

`ttt-moshi generate` writes a conversation as a recording with a transcript; a list of such recordings is evaluation
data. No model runs here. A minute is degenerate when one of these holds:

- repeats: at least half of its sequences of four text tokens have occurred in it before;
- silent: it has no text token but PAD and EPAD;
- stuck: the entropy of its semantic codes is below half of that of the recording's first minute, or so low that all but
  three of the minute's frames at most have one code.

So the first minute may be degenerate too. A conversation collapses at the first degenerate minute after which no minute
is any better, provided that there are at least two of them. An incomplete last minute below 30 s is left out.

Conversations that another checkpoint has made are refused, as their `made_by.json` tells; of those without one the
result says that nobody knows. How the others were held (dtype, sampling, ...) is in the result; where it differs, its
line says so too.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from ttt_moshi.evaluation.errors import EvaluationError
from ttt_moshi.evaluation.outcome import Outcome
from ttt_moshi.evaluation.recorded import Encode, Maker
from ttt_moshi.evaluation.scoring.clips import ClipTokens
from ttt_moshi.evaluation.scoring.engine import Engine
from ttt_moshi.evaluation.statistics import mean_and_interval
from ttt_moshi.evaluation.tasks.curves import by_minute
from ttt_moshi.frames import FRAME_RATE

MINUTE = round(60 * FRAME_RATE)  # frames
GRAM = 4  # text tokens
REPEATED, STUCK = 0.5, 0.5
ONE_CODE = 0.05  # bits: 3 frames of a minute with codes of their own have 0.044, 4 have 0.059
MEANS = "this share of conversations keeps its words and sounds to the end"
STATISTICS = ("pad_share", "tokens_per_minute", "repeated_grams", "entropy")


@dataclass(frozen=True)
class Minute:
    """What the agent did in one minute.

    Args:
        pad_share: frames whose text is PAD or EPAD; None where the text is absent.
        tokens_per_minute: other text tokens, as if the minute were whole; None where the text is absent.
        repeated_grams: share of sequences of four text tokens that occurred in the minute before; None without any.
        entropy: of the distribution of semantic codes, in bits.
        degenerate: why the minute is degenerate, None where it is not.
    """

    pad_share: float | None
    tokens_per_minute: float | None
    repeated_grams: float | None
    entropy: float
    degenerate: str | None = None


def minutes_of(codes: np.ndarray, padding: tuple[int, int]) -> list[Minute]:
    """The minutes of a conversation: int [channels, T], text first, then the agent's semantic codes.

    `padding`: ids of PAD and EPAD in the text.
    """
    T = codes.shape[1]
    starts = [start for start in range(0, T, MINUTE) if min(MINUTE, T - start) >= MINUTE // 2 or start == 0]
    found: list[Minute] = []
    for start in starts:
        plain = _minute(codes[:2, start : start + MINUTE], padding)
        first = found[0] if found else plain
        found.append(Minute(**{**asdict(plain), "degenerate": _why_degenerate(plain, first)}))
    return found


def collapse_minute(minutes: list[Minute]) -> int | None:
    """The minute, from 0, from which on all are degenerate, two of them at least; None where there is none."""
    last_good = max((i for i, minute in enumerate(minutes) if minute.degenerate is None), default=-1)
    return last_good + 1 if len(minutes) - (last_good + 1) >= 2 else None


def _minute(codes: np.ndarray, padding: tuple[int, int]) -> Minute:
    text, semantic = codes
    present = text[text >= 0]
    words = present[~np.isin(present, padding)]
    _, counts = np.unique(semantic[semantic >= 0], return_counts=True)
    shares = counts / counts.sum() if counts.sum() else np.ones(1)
    return Minute(
        pad_share=1 - len(words) / len(present) if len(present) else None,
        tokens_per_minute=len(words) * MINUTE / len(text) if len(present) else None,
        repeated_grams=repeated_grams(words),
        entropy=float(-(shares * np.log2(shares)).sum()) + 0.0,
    )


def repeated_grams(words: np.ndarray) -> float | None:
    """Share of the sequences of four of these text tokens [n] that occur in them before; None without any sequence."""
    grams = [tuple(words[i : i + GRAM].tolist()) for i in range(len(words) - GRAM + 1)]
    return 1 - len(set(grams)) / len(grams) if grams else None


def _why_degenerate(minute: Minute, first: Minute) -> str | None:
    if minute.repeated_grams is not None and minute.repeated_grams >= REPEATED:
        return "repeats"
    if minute.tokens_per_minute == 0.0:
        return "silent"
    if minute.entropy < max(ONE_CODE, STUCK * first.entropy):
        return "stuck"
    return None


@dataclass(frozen=True)
class FreeRunning:
    """Share of conversations that do not collapse, and what the agent does in each minute.

    Args:
        tokens: every conversation as one clip.
        encode: makes them quick to read; None where they are.
        makers: what made each, by its id; None where it is unknown.
        state_id: of the checkpoint that should have.
    """

    tokens: ClipTokens
    encode: Encode | None
    makers: Mapping[str, Maker | None]
    state_id: str
    name: str = "free_running"

    def run(self, engine: Engine) -> Outcome:
        self._refuse_others()
        if self.encode is not None:
            self.encode(engine.ranks, engine.encoding(self.name))
        examples = engine.ranks.together(self.tokens.examples)
        minutes = {e.id: minutes_of(self.tokens.tokens(e), engine.scorer.text_padding) for e in examples}
        if short := [name for name, own in minutes.items() if len(own) < 2]:
            raise EvaluationError(
                f"{len(short)} of {len(minutes)} conversations are shorter than one minute and a half ({short[0]}, "
                "...): too short to tell a collapse"
            )
        collapsed = {name: collapse_minute(own) for name, own in minutes.items()}
        known = [one for e in examples if (one := self.makers[e.id]) is not None]
        unknown, settings = len(examples) - len(known), _settings(known)
        steady = np.array([float(collapsed[e.id] is None) for e in examples])
        samples = [
            {
                "id": e.id,
                "score": float(collapsed[e.id] is None),
                "collapse_minute": collapsed[e.id],
                "minutes": [asdict(minute) for minute in minutes[e.id]],
            }
            for e in examples
        ]
        entry: dict[str, Any] = {
            "status": "ok",
            "metric": "share of conversations that do not collapse",
            "better": "higher",
            **mean_and_interval(steady),
            "n": len(steady),
            "unit_of_n": "conversations",
            "made_by": {"this_checkpoint": len(known), "unknown": unknown, "settings": settings},
            "collapse_minutes": [minute for minute in collapsed.values() if minute is not None],
            "minutes": by_minute([[asdict(m) for m in own] for own in minutes.values()], STATISTICS),
        }
        notes = [f"which model made {unknown} of {len(examples)} is unknown"] if unknown else []
        if len(settings) > 1:
            names = {name for one in settings for name in one if any(o.get(name) != one[name] for o in settings)}
            notes.append(f"they were not all held alike ({', '.join(sorted(names - {'conversations'}))})")
        if notes:
            entry["means"] = "; ".join([MEANS, *notes])
        return Outcome(entry, samples, data_digest=self.tokens.digest(examples))

    def _refuse_others(self) -> None:
        others = [one for one in self.makers.values() if one is not None and one.state_id != self.state_id]
        if others:
            raise EvaluationError(
                f"{len(others)} of {len(self.makers)} conversations are another model's ({others[0].path}: "
                f"{others[0].state_id}, and this is {self.state_id}): list those of this one, or evaluate that one"
            )


def _settings(makers: Sequence[Maker]) -> list[dict[str, Any]]:
    """In which ways conversations were held and how many in each, the most frequent first."""
    counted = Counter(json.dumps(one.settings, sort_keys=True) for one in makers)
    return [{"conversations": n, **json.loads(settings)} for settings, n in counted.most_common()]
