"""An hour: what is still known of it, what distant context is worth, and what the model says when it talks that long.

The parts and their rules are in `ttt_moshi.evaluation.hour`. Recordings that are shorter than the hour are read end to
end, none of them twice. Talking needs the audio of the user; of pre-tokenized recordings only the rest is measured.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ttt_moshi.data import Codec
from ttt_moshi.evaluation.controls import Controls
from ttt_moshi.evaluation.conversations import Talker
from ttt_moshi.evaluation.hour.baselines import MEMORY, SINK, WINDOW
from ttt_moshi.evaluation.hour.planted import Told
from ttt_moshi.evaluation.hour.reading import Material, distant_context, planted_facts, remembrance
from ttt_moshi.evaluation.hour.talking import free_running
from ttt_moshi.evaluation.outcome import Outcome
from ttt_moshi.evaluation.recorded import Encode
from ttt_moshi.evaluation.scoring.clips import ClipTokens
from ttt_moshi.evaluation.scoring.engine import Engine
from ttt_moshi.evaluation.statistics import mean_and_interval
from ttt_moshi.frames import FRAME_RATE
from ttt_moshi.inference.driver import Item

CONVERSATIONS = 4
"""that are held where `--max_items` does not say otherwise"""


@dataclass(frozen=True)
class Talk:
    """What the free-running part needs: the model that talks, its codec, and users to play."""

    talker: Talker
    codec: Codec
    items: Sequence[Item]


@dataclass(frozen=True)
class Hour:
    """Log-odds of a planted passage over another, ceilings, remembrance and free-running curves.

    Args:
        tokens: every recording as one clip.
        encode: makes them quick to read; None where they are.
        minutes: how long the hour is.
        sink: frames that the baseline with a sink keeps.
        talk: None where nothing can be played, for the reason `silent`.
    """

    tokens: ClipTokens
    encode: Encode | None
    minutes: float
    sink: int = SINK
    talk: Talk | None = None
    silent: str = "no model that talks"
    name: str = "hour"

    def run(self, engine: Engine) -> Outcome:
        if self.talk is not None:
            self.talk.talker.check(self.name, self.talk.items, engine.ranks)
        if self.encode is not None:
            self.encode(engine.ranks, engine.encoding(self.name))
        examples = engine.ranks.together(self.tokens.examples)
        told = [Told(example.id, self.tokens.tokens(example)) for example in examples]
        material = Material.of(told, self.minutes, self.sink)
        facts, odds = planted_facts(engine, material, self.name)
        reader = MEMORY if MEMORY in odds else WINDOW
        values = odds[reader]
        controls = [name for name in (WINDOW, "no_writes") if name in odds]
        entry: dict[str, Any] = {
            "status": "ok",
            "metric": f"log-odds in nats of a passage heard {material.longest} frames ago over one never heard"
            + ("" if reader == MEMORY else " (the model has no memory)"),
            "better": "higher",
            "chance": 0.0,
            **mean_and_interval(values),
            "n": len(values),
            "unit_of_n": "streams",
            "minutes": self.minutes,
            "passage_frames": material.passage,
            "controls_largest": {name: _largest(facts, name) for name in controls},
            "facts": facts,
            "context": distant_context(engine, material, self.name),
            "remembrance": remembrance(engine, material, self.name),
        }
        samples: list[dict[str, Any]] = [
            {"id": f"stream {i}", "score": float(value), "log_odds": {n: float(o[i]) for n, o in odds.items()}}
            for i, value in enumerate(values)
        ]
        if self.talk is None:
            entry["free_running"] = {"status": "skipped", "reason": self.silent}
        else:
            frames = round(self.minutes * 60 * FRAME_RATE)
            talk = self.talk
            found, said = free_running(engine, talk.talker, talk.codec, talk.items, frames, self.name)
            entry["free_running"] = {"status": "ok", **found}
            samples += [{"score": None, **sample} for sample in said]
        return Outcome(entry, samples, data_digest=self.tokens.digest(examples))


def _largest(facts: list[dict[str, Any]], name: str) -> float:
    """The largest mean log-odds of a control, which must be exactly zero."""
    found = [point["baselines"][name] for point in facts]
    return max((float(np.abs(e["ci95"]).max()) for e in found if e["status"] == "ok"), default=0.0)


def cannot_apply(controls: Controls) -> str | None:
    """`hour` reads with and without memory by itself, and drawn texts are no history that can be planted in."""
    if controls.ttt != "on":
        return f"it measures the memory with its controls by itself, so `--ttt {controls.ttt}` has no meaning for it"
    if controls.text == "sampled":
        return "`--text sampled` cannot be applied: what is planted is text too"
    return None
