"""Whole recordings of your own, read as one conversation: how well does the model follow, minute by minute?

Attention and memory are carried from the first frame to the last, and the text is given, as in a call that the model
has listened to and spoken in. Run it again with `--ttt off` or `reset:N` and compare the two: samples are recordings,
so the difference that memory makes is paired by recording.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from ttt_moshi.evaluation.errors import EvaluationError
from ttt_moshi.evaluation.outcome import Outcome
from ttt_moshi.evaluation.recorded import Encode
from ttt_moshi.evaluation.scoring.clips import ClipTokens
from ttt_moshi.evaluation.scoring.engine import Engine
from ttt_moshi.evaluation.scoring.reductions import channel_sums, channel_weights
from ttt_moshi.evaluation.speaker_turns import SpeakerTurn
from ttt_moshi.evaluation.statistics import bootstrap_ratio
from ttt_moshi.evaluation.tasks.curves import GROUPS, group_sums, mean_nll, point
from ttt_moshi.evaluation.tasks.long_context import beyond_window
from ttt_moshi.frames import FRAME_RATE

MINUTE = round(60 * FRAME_RATE)  # frames
SPEAKERS = ("agent", "user", "nobody")


@dataclass(frozen=True)
class Dialogue:
    """NLL of the agent's tokens in whole recordings: by minute, by who speaks, and by the number of the agent's turn.

    Args:
        tokens: every recording as one clip.
        encode: makes them quick to read; None where they are.
        turns: of each recording that has a transcript, by the clip's id.
    """

    tokens: ClipTokens
    encode: Encode | None
    turns: Mapping[str, Sequence[SpeakerTurn]]
    name: str = "dialogue"

    def run(self, engine: Engine) -> Outcome:
        if self.encode is not None:
            self.encode(engine.ranks, engine.encoding(self.name))
        examples = engine.ranks.together(self.tokens.examples)
        found = engine.reading(self.tokens).nll(examples, self.name)
        nll = [found[example.id] for example in examples]
        turns = [self.turns.get(example.id, ()) for example in examples]
        sums = [_weighted(values) for values in nll]
        if not all(weight for _, weight in sums):
            silent = next(example.id for example, (_, weight) in zip(examples, sums, strict=True) if not weight)
            raise EvaluationError(f"recording {silent} holds no token of the agent, so nothing is predicted in it")
        values, weights = (np.array(column) for column in zip(*sums, strict=True))
        longest = max(one.shape[1] for one in nll)
        minutes = range(0, longest, MINUTE)
        entry: dict[str, Any] = {
            "status": "ok",
            "metric": "mean NLL in nats of the agent's tokens (text and semantic 100, acoustic 1) in whole recordings",
            "better": "lower",
            "value": float(values.sum() / weights.sum()),
            "ci95": list(bootstrap_ratio(values, weights)),
            "n": len(nll),
            "unit_of_n": "recordings",
            "window": engine.scorer.window,
            "bins": [{"start": m, "stop": m + MINUTE, **point(nll, [(m, m + MINUTE)] * len(nll))} for m in minutes],
            "speakers": _by_speaker(nll, turns),
            "turns": _by_turn(nll, turns),
            "beyond_window": beyond_window(nll, engine.scorer.window),
        }
        samples = [
            {
                "id": example.id,
                "score": -total / weight,
                "frames": int(one.shape[1]),
                "nll": {group: s / c for group in GROUPS for s, c in [group_sums(one, group)] if c},
                "minutes": [_mean(one, m, m + MINUTE) for m in range(0, one.shape[1], MINUTE)],
            }
            for example, one, (total, weight) in zip(examples, nll, sums, strict=True)
        ]
        return Outcome(entry, samples, data_digest=self.tokens.digest(examples))


def _weighted(nll: np.ndarray, start: int = 0, stop: int | None = None) -> tuple[float, float]:
    """Weighted sum of NLL and sum of weights in frames [start, stop)."""
    sums, weights = channel_sums(nll, start, stop), channel_weights("text_audio", len(nll))
    return float((sums.nll * weights).sum()), float((sums.tokens * weights).sum())


def _mean(nll: np.ndarray, start: int, stop: int) -> float | None:
    total, weight = _weighted(nll, start, stop)
    return total / weight if weight else None


def _by_speaker(nll: Sequence[np.ndarray], turns: Sequence[Sequence[SpeakerTurn]]) -> dict[str, Any]:
    """Every group of channels while the agent speaks, while only the user does, and while nobody does.

    Recordings without a transcript have no part in it.
    """
    sums: dict[str, dict[str, list[tuple[float, int]]]] = {s: {g: [] for g in GROUPS} for s in SPEAKERS}
    for values, own in zip(nll, turns, strict=True):
        if not own:
            continue
        who = np.full(values.shape[1], 2)
        for turn in sorted(own, key=lambda turn: turn.agent):  # the agent's last: where both speak, it is his
            who[turn.start : turn.stop] = 0 if turn.agent else 1
        for i, speaker in enumerate(SPEAKERS):
            for group in GROUPS:
                sums[speaker][group].append(group_sums(values[:, who == i], group))
    return {
        speaker: {group: mean_nll(s) for group, s in groups.items() if any(count for _, count in s)}
        for speaker, groups in sums.items()
        if any(count for s in groups.values() for _, count in s)
    }


def _by_turn(nll: Sequence[np.ndarray], turns: Sequence[Sequence[SpeakerTurn]]) -> list[dict[str, Any]]:
    """Every group of channels in the agent's turns number 1, 2, 3 - 4, 5 - 8, ...; numbers [start, stop) from 1."""
    own = [[turn for turn in all_ if turn.agent] for all_ in turns]
    most = max((len(agent) for agent in own), default=0)
    edges = [1]
    while edges[-1] <= most:
        edges.append(2 if edges[-1] == 1 else 2 * edges[-1] - 1)
    bins = []
    for start, stop in pairwise(edges):
        found: dict[str, Any] = {}
        for group in GROUPS:
            sums = [
                _in_turns(values, agent[start - 1 : stop - 1], group) for values, agent in zip(nll, own, strict=True)
            ]
            if any(count for _, count in sums):
                found[group] = mean_nll(sums)
        if found:
            bins.append({"start": start, "stop": stop, **found})
    return bins


def _in_turns(nll: np.ndarray, turns: Sequence[SpeakerTurn], group: str) -> tuple[float, int]:
    parts = [group_sums(nll, group, turn.start, turn.stop) for turn in turns]
    return sum(total for total, _ in parts), sum(count for _, count in parts)
