"""Full-Duplex-Bench v1.5: somebody speaks while the model does (arXiv 2507.23159).

v1_5/<subset>/<id>/input.wav          the user, with an overlap
v1_5/<subset>/<id>/clean_input.wav    the same without it
v1_5/<subset>/<id>/metadata.json      {"timestamps": [START, END], "context_text", "current_turn_text"}: the overlap

Subsets are *user_interruption*, *user_backchannel*, *talking_to_other* and *background_speech*. Both recordings are
played to the model. What it does is measured on the audio of its channel and its own words; a judge may rate what it
says from the overlap on.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import blake3
import numpy as np
import torch

from ttt_moshi.data.audio import read_audio, read_info
from ttt_moshi.data.voiced import Span
from ttt_moshi.evaluation.conversations import Talker, needed
from ttt_moshi.evaluation.documents import read_json
from ttt_moshi.evaluation.errors import EvaluationError, well_formed
from ttt_moshi.evaluation.fields import span
from ttt_moshi.evaluation.judge import Judged, digest_of, judge_answers
from ttt_moshi.evaluation.listing import folders_in
from ttt_moshi.evaluation.outcome import Outcome
from ttt_moshi.evaluation.overlaps import KINDS, Heard, adaptation, response_latency, right, stop_latency
from ttt_moshi.evaluation.pairs import some_of
from ttt_moshi.evaluation.scoring.engine import Engine
from ttt_moshi.evaluation.statistics import mean_and_interval, means_by_name
from ttt_moshi.files import read_bytes
from ttt_moshi.inference.driver import Conversation, Item

MEASURES = (
    "right",
    "speaking",
    "stop_latency",
    "response_latency",
    "words_per_minute_after_before",
    "words_per_minute_after_clean",
    "loudness_after_before",
    "loudness_after_clean",
    "rating",
)
INPUT, CLEAN = "input.wav", "clean_input.wav"


@dataclass(frozen=True)
class Overlap:
    """One situation: a user with and without an overlap, which lasts for `span` seconds."""

    id: str
    kind: str
    folder: Path
    span: Span
    text: str


def find_overlaps(data_root: Path) -> list[Overlap]:
    """Every situation below `data_root/v1_5`. Raises `EvaluationError` where one lacks something, or is not of it."""
    root = data_root / "v1_5"
    found = []
    for kind in KINDS:
        folders = sorted(folders_in(root / kind), key=lambda p: (len(p.name), p.name))
        found += [_overlap(kind, folder) for folder in folders]
    if not found:
        raise EvaluationError(
            f"no overlaps: expected {root}/{{{','.join(KINDS)}}}/<id>/{INPUT}, {CLEAN}, metadata.json"
        )
    return found


def _overlap(kind: str, folder: Path) -> Overlap:
    for name in (INPUT, CLEAN):
        if not (folder / name).is_file():
            raise EvaluationError(f"{folder} has no {name}")
    path = folder / "metadata.json"
    if not path.is_file():
        raise EvaluationError(f"there is no {path}")
    seconds = read_info(folder / INPUT).seconds
    with well_formed(path):
        facts = read_json(path)
        began, ended = facts["timestamps"]
        start, end = span(began, ended, seconds=seconds)
        text = " ".join(str(facts.get(key, "")) for key in ("context_text", "current_turn_text")).strip()
    if not (start < end and start < seconds):
        raise EvaluationError(
            f"{path}: the overlap lasts from {start:g} to {end:g} s of a recording of {seconds:.3f} s"
        )
    return Overlap(f"{kind}/{folder.name}", kind, folder, Span(start, end), text)


def some(overlaps: list[Overlap], max_items: int | None, seed: int) -> list[Overlap]:
    """At most so many, from every subset in proportion."""
    return some_of(overlaps, lambda overlap: overlap.id, max_items, seed, lambda overlap: overlap.kind)


@dataclass(frozen=True)
class Overlaps:
    """Share of overlaps that were handled right; latencies, and how the manner of speaking changes, by subset."""

    overlaps: Sequence[Overlap]
    talker: Talker | None
    judge: str | None = None
    name: str = "overlap"

    def run(self, engine: Engine) -> Outcome:
        items = [_item(overlap, name) for overlap in self.overlaps for name in (INPUT, CLEAN)]
        held = needed(self.talker).converse(self.name, items, engine.ranks, engine.counting(f"{self.name}: frames"))
        pairs = list(zip(held[::2], held[1::2], strict=True))
        samples = [_sample(overlap, *pair) for overlap, pair in zip(self.overlaps, pairs, strict=True)]
        rated = {}
        if self.judge is not None:
            command = self.judge
            cases = [
                Judged(overlap.id, overlap.text, _text(clean, 0.0), _text(said, overlap.span.start))
                for overlap, (said, clean) in zip(self.overlaps, pairs, strict=True)
            ]
            ratings = engine.ranks.on_main(lambda: judge_answers(command, cases))
            for one, rating in zip(samples, ratings, strict=True):
                one["rating"] = rating
            rated = {"ratings": digest_of(ratings)}
        by_kind = {kind: [one for one in samples if one["kind"] == kind] for kind in KINDS}
        entry: dict[str, Any] = {
            "status": "ok",
            "metric": "share of overlaps in which an interruption is answered and anything else passed over",
            "better": "higher",
            **mean_and_interval(np.array([one["score"] for one in samples])),
            "n": len(samples),
            "unit_of_n": "overlaps",
            **rated,
            "overlaps": {kind: means_by_name(own, MEASURES) for kind, own in by_kind.items() if own},
        }
        return Outcome(entry, samples, data_digest=_digest(self.overlaps))


def _item(overlap: Overlap, name: str) -> Item:
    path = overlap.folder / name
    return Item(
        f"{overlap.kind}-{overlap.folder.name}-{path.stem}",
        lambda: torch.from_numpy(read_audio(path).mean(axis=0)),
    )


def _heard(conversation: Conversation) -> Heard:
    return Heard.of(conversation.agent, conversation.words)


def _text(conversation: Conversation, start: float) -> str:
    return " ".join(word.text for word in conversation.words if word.start >= start)


def _sample(overlap: Overlap, noisy: Conversation, undisturbed: Conversation) -> dict[str, Any]:
    said, clean = _heard(noisy), _heard(undisturbed)
    latencies = {
        "stop_latency": stop_latency(said, overlap.span),
        "response_latency": response_latency(said, overlap.span),
    }
    score = float(right(overlap.kind, said, clean, overlap.span))
    return {
        "id": overlap.id,
        "kind": overlap.kind,
        "score": score,
        "right": score,
        "speaking": float(said.speaking(overlap.span.start) is not None),
        **{name: value for name, value in latencies.items() if value is not None},
        **adaptation(said, clean, overlap.span),
        "conversations": [f"conversations/overlap/{c.folder.name}" for c in (noisy, undisturbed)],
    }


def _digest(overlaps: Sequence[Overlap]) -> str:
    digest = blake3.blake3()
    for overlap in overlaps:
        digest.update(json.dumps([overlap.id, overlap.span.start, overlap.span.end]).encode())
        for name in (INPUT, CLEAN):
            digest.update(read_bytes(overlap.folder / name))
    return digest.hexdigest()
