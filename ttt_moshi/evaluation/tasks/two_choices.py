"""Scoring a set of pairs: every reduction, every breakdown, and variants that look at the continuation alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ttt_moshi.evaluation.examples import Example, Piece
from ttt_moshi.evaluation.outcome import Outcome
from ttt_moshi.evaluation.pairs import Pair, accuracy, breakdown, pair_score
from ttt_moshi.evaluation.scoring.engine import Engine
from ttt_moshi.evaluation.scoring.reductions import AUDIO_REDUCTIONS, NORMS, ChannelSums, channel_sums
from ttt_moshi.frames import FRAME_RATE

MIN_CONTINUATION_FRAMES = 2  # the last frame has no acoustic tokens, so a continuation needs one more


@dataclass(frozen=True)
class TwoChoices:
    """A two-alternative task. `reduction` and `norm` give its headline value; all others are reported beside it."""

    name: str
    pairs: Sequence[Pair]
    reduction: str = "moshi100"
    norm: str = "mean"
    macro: str | None = None  # group over whose values an unweighted mean is reported too
    continuation: bool = False  # also score what follows the pair's common beginning
    localize_sec: float = 2.0  # length of the window after the common beginning, in the localised variant

    def run(self, engine: Engine) -> Outcome:
        examples = [e for pair in self.pairs for e in (pair.correct, pair.incorrect)]
        nll = engine.nll(examples, self.name)
        has_text = any(~np.isnan(nll[examples[0].id][0]))
        reductions = (*AUDIO_REDUCTIONS, "text", "text_audio") if has_text else AUDIO_REDUCTIONS
        whole = {e.id: channel_sums(nll[e.id]) for e in examples}
        table = {
            f"{reduction}.{norm}": self._judge(whole, reduction, norm) for reduction in reductions for norm in NORMS
        }
        headline = table[f"{self.reduction}.{self.norm}"]
        groups = breakdown(self.pairs, headline)
        entry: dict[str, Any] = {
            "status": "ok",
            "metric": f"accuracy by {self.reduction}, {self.norm}",
            "better": "higher",
            "chance": 0.5,
            **accuracy(self.pairs, headline),
            "unit_of_n": "items",
            "pairs": len(self.pairs),
            "voices": len({pair.voice for pair in self.pairs}),
            "reductions": {name: accuracy(self.pairs, scores) for name, scores in table.items()},
            "groups": groups,
        }
        if self.macro:
            entry["macro"] = float(np.mean([group["value"] for group in groups[self.macro].values()]))
        if self.continuation:
            entry["variants"] = self._variants(engine, nll)
        samples = [self._sample(i, pair, whole, table) for i, pair in enumerate(self.pairs)]
        scores = {e.id: -whole[e.id].reduce(self.reduction, self.norm) for e in examples}
        return Outcome(entry, samples, scores, engine.tokens.digest(examples))

    def _judge(self, sums: dict[str, ChannelSums], reduction: str, norm: str) -> list[float]:
        return [
            pair_score(sums[p.correct.id].reduce(reduction, norm), sums[p.incorrect.id].reduce(reduction, norm))
            for p in self.pairs
        ]

    def _variants(self, engine: Engine, nll: dict[str, np.ndarray]) -> dict[str, Any]:
        """Accuracy when only what follows the common beginning of a pair counts: all of it, its first seconds, and
        all of it minus what it would cost without the beginning."""
        starts = {
            p.id: common_beginning(engine.tokens.tokens(p.correct), engine.tokens.tokens(p.incorrect))
            for p in self.pairs
        }
        local = round(self.localize_sec * FRAME_RATE)
        alone = engine.nll([_tail(e, starts[p.id]) for p in self.pairs for e in (p.correct, p.incorrect)], self.name)

        def sums(part: Callable[[int, Example], ChannelSums]) -> dict[str, ChannelSums]:
            return {e.id: part(starts[p.id], e) for p in self.pairs for e in (p.correct, p.incorrect)}

        variants = {
            "continuation": sums(lambda start, e: channel_sums(nll[e.id], start)),
            "localized": sums(lambda start, e: channel_sums(nll[e.id], start, start + local)),
            "minus_unconditional": sums(
                lambda start, e: channel_sums(nll[e.id], start) - channel_sums(alone[_tail(e, start).id])
            ),
        }
        return {
            name: accuracy(self.pairs, self._judge(values, self.reduction, self.norm))
            for name, values in variants.items()
        }

    def _sample(
        self, i: int, pair: Pair, whole: dict[str, ChannelSums], table: dict[str, list[float]]
    ) -> dict[str, Any]:
        return {
            "id": pair.id,
            "item": pair.item,
            "score": table[f"{self.reduction}.{self.norm}"][i],
            "groups": dict(pair.groups),
            "scores": {name: scores[i] for name, scores in table.items()},
            "nll": {
                kind: [round(value, 6) for value in whole[example.id].nll.tolist()]
                for kind, example in (("correct", pair.correct), ("incorrect", pair.incorrect))
            },
            "tokens": {
                kind: whole[example.id].tokens.astype(int).tolist()
                for kind, example in (("correct", pair.correct), ("incorrect", pair.incorrect))
            },
        }


def common_beginning(a: np.ndarray, b: np.ndarray) -> int:
    """Frames at the start of tokens a, b [K, T] that are equal, leaving at least two frames of either."""
    shorter = min(a.shape[-1], b.shape[-1])
    different = (a[:, :shorter] != b[:, :shorter]).any(axis=0)
    equal = int(different.argmax()) if different.any() else shorter
    return max(0, min(equal, shorter - MIN_CONTINUATION_FRAMES))


def _tail(example: Example, start: int) -> Example:
    """The frames from `start` on as a sequence of their own."""
    (piece,) = example.pieces
    tail = Piece(piece.source, piece.start + start, piece.stop)
    return Example(f"{example.id}@{start}", (tail,), example.transcript, start)
