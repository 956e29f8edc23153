"""Does the model take turns as people do? Turn statistics of dGSLM (arXiv 2203.16502), beside the recorded dialogue's.

The user of each recorded dialogue is played to the model, which talks as long as the recording lasts. Both dialogues,
the model's and the recorded one, have the same user, so they differ in what the agent does. Events are those of
`ttt_moshi.evaluation.turn_events`: units of speech (IPU), pauses, gaps and overlaps of either side.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import blake3
import numpy as np
import torch

from ttt_moshi.evaluation.conversations import Talker, needed
from ttt_moshi.evaluation.outcome import Outcome
from ttt_moshi.evaluation.recorded import TwoSides
from ttt_moshi.evaluation.scoring.engine import Engine
from ttt_moshi.evaluation.statistics import correlation, mean_and_interval
from ttt_moshi.evaluation.turn_events import KINDS, speech_spans, totals, turn_events
from ttt_moshi.frames import SAMPLE_RATE
from ttt_moshi.inference.driver import Item

FEWEST = 3
"""dialogues whose statistics are correlated"""
MEASURES = ("per_minute", "seconds_per_minute", "median")
Statistics = dict[str, dict[str, float]]
"""by kind of event and measure, as `totals` gives them"""


@dataclass(frozen=True)
class Turns:
    """How far the turn events of the model's dialogues are from the recorded ones', and the events of both."""

    dialogues: Sequence[TwoSides]
    talker: Talker | None
    name: str = "turns"

    def run(self, engine: Engine) -> Outcome:
        items = [_item(dialogue) for dialogue in self.dialogues]
        held = needed(self.talker).converse(self.name, items, engine.ranks, engine.counting(f"{self.name}: frames"))
        pairs = []
        for dialogue, conversation in zip(self.dialogues, held, strict=True):
            agent, user = dialogue.read()
            pairs.append((turn_statistics(conversation.agent, user), turn_statistics(agent, user)))
        entry: dict[str, Any] = {
            "status": "ok",
            "metric": "seconds a minute by which units, pauses, gaps and overlaps differ from the recorded dialogue's",
            "better": "lower",
            **beside_recorded(pairs),
            "unit_of_n": "dialogues",
        }
        samples = [
            {
                "id": dialogue.id,
                "score": -distance(said, recorded),
                "said": said,
                "recorded": recorded,
                "conversation": f"conversations/{self.name}/{dialogue.name}",
            }
            for dialogue, (said, recorded) in zip(self.dialogues, pairs, strict=True)
        ]
        facts = "".join(
            f"{d.id} {d.recording.digest} {d.recording.frames} {d.recording.moshi_speaker}\n" for d in self.dialogues
        )
        return Outcome(entry, samples, data_digest=blake3.blake3(facts.encode()).hexdigest())


def turn_statistics(agent: np.ndarray, user: np.ndarray) -> Statistics:
    """The events of a dialogue from its two channels, float32 [samples] each."""
    seconds = max(len(agent), len(user)) / SAMPLE_RATE
    return totals(turn_events(speech_spans(agent), speech_spans(user)), seconds)


def beside_recorded(pairs: Sequence[tuple[Statistics, Statistics]]) -> dict[str, Any]:
    """{"value", "ci95", "n"} of the distance of dialogues, said and recorded, and "kinds" with all statistics."""
    apart = np.array([distance(said, recorded) for said, recorded in pairs])
    kinds = {kind: _summary([(said[kind], recorded[kind]) for said, recorded in pairs]) for kind in KINDS}
    return {**mean_and_interval(apart), "n": len(apart), "kinds": kinds}


def distance(said: Statistics, recorded: Statistics) -> float:
    """By how many seconds a minute the kinds of events differ, added up."""
    return sum(abs(said[kind]["seconds_per_minute"] - recorded[kind]["seconds_per_minute"]) for kind in KINDS)


def _item(dialogue: TwoSides) -> Item:
    return Item(dialogue.name, lambda: torch.from_numpy(dialogue.read()[1].copy()))


def _summary(pairs: Sequence[tuple[dict[str, float], dict[str, float]]]) -> dict[str, Any]:
    """{measure: {"said", "recorded": {"value", "ci95"}, "correlation": the same, where it is defined}}."""
    found: dict[str, Any] = {}
    for measure in MEASURES:
        said, recorded = (np.array([pair[side][measure] for pair in pairs]) for side in (0, 1))
        found[measure] = {name: mean_and_interval(values) for name, values in (("said", said), ("recorded", recorded))}
        if len(pairs) >= FEWEST:
            value, interval = correlation(said, recorded)
            if np.isfinite([value, *interval]).all():
                found[measure]["correlation"] = {"value": value, "ci95": list(interval)}
    return found
