"""Planting what only a memory can predict: passages that return in a recording long after they were heard.

Ordinary speech hardly pays for remembering beyond an attention window. A repeat says a passage of the recording once
more, later. A fact comes from another recording and is said twice, so nothing around it tells what it will be. Both
sides of the conversation are planted with all their codebooks and the agent's words, and nothing is cut within a word.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from ttt_moshi.data.corpus import Corpus
from ttt_moshi.data.encoded import write_encoded
from ttt_moshi.data.errors import DataError
from ttt_moshi.data.interleaver import ABSENT
from ttt_moshi.data.pretokenize import LIST
from ttt_moshi.data.sources import Recording
from ttt_moshi.files import write_atomically
from ttt_moshi.frames import frames_to_seconds

TRIES = 50
"""places that are drawn for a passage before the recording counts as too full for it"""

_LIST = f"{LIST}.jsonl"
_MADE = re.compile(r"\d{6}\.safetensors|planted\.json|\.[0-9a-f]{32}\.partial")
"""what is written before the list"""

Kind = Literal["repeat", "fact"]


@dataclass(frozen=True)
class Plan:
    """What is planted in every recording. Lengths are in frames, from the least to the greatest."""

    repeats: int
    facts: int
    passage: tuple[int, int]
    distance: tuple[int, int]
    """from the end of a passage to its return, before anything else is planted between them"""


@dataclass(frozen=True)
class Planted:
    """A passage and its return, in frames of the new recording."""

    kind: Kind
    first: int
    again: int
    frames: int


@dataclass(frozen=True)
class Outcome:
    """What was made, over all recordings."""

    planted: list[Planted]
    recordings: int
    frames_before: int
    frames: int


@dataclass(frozen=True, eq=False)
class _Insert:
    at: int
    """frame of the old recording before which it comes"""
    codes: Tensor


@dataclass(frozen=True)
class _Passage:
    """One that has found its place: `first` is None for a fact's place in `inserts[0]`, else where it was said."""

    kind: Kind
    first: int | None
    inserts: list[_Insert]

    def leaves_whole(self, other: _Passage) -> bool:
        """Whether it is not planted within the other, where that was said."""
        if other.first is None:
            return True
        end = other.first + other.inserts[0].codes.shape[1]
        return not any(other.first < insert.at < end for insert in self.inserts)


def plant(
    corpus: Corpus, out: Path, plan: Plan, seed: int, on_recording: Callable[[str, int, int], None] | None = None
) -> Outcome:
    """Writes every recording of `corpus`, pre-tokenized and with its planted passages, into the new folder `out`:
    files of codes, their `data.jsonl`, and `planted.json`, which says what returns when.

    Raises:
        DataError: `out` is no new folder, there is no other recording to take facts from, or none is long enough.
    """
    recordings = corpus.recordings
    _require_new(out)
    if plan.facts and len(recordings) < 2:
        raise DataError("facts come from another recording, and there is only one: plant repeats alone")
    least = plan.passage[0] + plan.distance[0]
    if max(recording.frames for recording in recordings) < least:
        raise DataError(
            f"no recording is {frames_to_seconds(least):g} s long, as a passage and its shortest distance together are"
        )
    out.mkdir(parents=True, exist_ok=True)
    lines, found, planted, before, after = [], [], [], 0, 0
    for number, recording in enumerate(recordings):
        rng = random.Random(f"{seed} {recording.id}")
        codes = corpus.whole(recording)
        other = partial(_another, corpus, number, rng)
        new, own = plant_one(codes, recording.prefix_frames, other, plan, rng, corpus.style.pad)
        name = f"{number:06}.safetensors"
        write_encoded(out / name, new)
        line = {"path": name, "duration": frames_to_seconds(new.shape[1]), **_given(recording)}
        lines.append(json.dumps(line))
        found += [{"path": name, **_seconds(one)} for one in own]
        planted += own
        before, after = before + codes.shape[1], after + new.shape[1]
        if on_recording is not None:
            on_recording(recording.audio.name, number + 1, len(recordings))
    write_atomically(out / "planted.json", json.dumps(found, indent=1).encode())
    # Last, so that a folder with a list is whole.
    write_atomically(out / _LIST, "".join(f"{line}\n" for line in lines).encode())
    return Outcome(planted, len(recordings), before, after)


def _require_new(out: Path) -> None:
    """Raises DataError unless the folder is a new one, or empty."""
    if out.exists() and not out.is_dir():
        raise DataError(f"{out} is a file: name a new folder")
    names = [path.name for path in out.iterdir()] if out.exists() else []
    if names and _LIST not in names and all(map(_MADE.fullmatch, names)):
        raise DataError(f"{out} holds what a call that was interrupted has left: delete it, or name a new folder")
    if names:
        raise DataError(f"{out} is not empty: name a new folder")


def plant_one(
    codes: Tensor, given: int, other: Callable[[], Tensor], plan: Plan, rng: random.Random, pad: int
) -> tuple[Tensor, list[Planted]]:
    """One recording `[1 + 2K, T]` with as many passages as fit after its first `given` frames.

    Args:
        other: the codes of another recording, drawn anew at every call.
        pad: the text token between words.
    """
    passages: list[_Passage] = []
    kinds: list[Kind] = [*["repeat"] * plan.repeats, *["fact"] * plan.facts]  # type: ignore[list-item]
    for kind in kinds:
        for _ in range(TRIES):
            drawn = _draw(kind, codes, given, other, plan, rng, pad)
            if drawn and all(drawn.leaves_whole(one) and one.leaves_whole(drawn) for one in passages):
                passages.append(drawn)
                break
    inserts = sorted((insert for passage in passages for insert in passage.inserts), key=lambda insert: insert.at)
    pieces, done = [], 0
    for insert in inserts:
        pieces += [codes[:, done : insert.at], insert.codes]
        done = insert.at

    def place(where: int, before: list[_Insert]) -> int:
        return where + sum(insert.codes.shape[1] for insert in before)

    planted = []
    for passage in passages:
        places = [place(insert.at, inserts[: inserts.index(insert)]) for insert in passage.inserts]
        if passage.first is not None:
            places.insert(0, place(passage.first, [insert for insert in inserts if insert.at <= passage.first]))
        first, again = places
        planted.append(Planted(passage.kind, first, again, passage.inserts[0].codes.shape[1]))
    return torch.cat([*pieces, codes[:, done:]], dim=1), planted


def _draw(
    kind: Kind, codes: Tensor, given: int, other: Callable[[], Tensor], plan: Plan, rng: random.Random, pad: int
) -> _Passage | None:
    """A passage of random length, place and distance; None where it would begin, end or come within a word, or does
    not fit.
    """
    frames, distance = rng.randint(*plan.passage), rng.randint(*plan.distance)
    source = codes if kind == "repeat" else other()
    start = rng.randint(0, max(0, source.shape[1] - frames))
    if not (_between_words(source, start, pad) and _between_words(source, start + frames, pad)):
        return None
    taken = source[:, start : start + frames]
    if kind == "repeat":
        first, cuts = start, [start + frames + distance]
    else:
        at = rng.randint(given, max(given, codes.shape[1] - distance))
        first, cuts = None, [at, at + distance]
    fits = all(given <= cut and _between_words(codes, cut, pad) for cut in cuts)
    return _Passage(kind, first, [_Insert(cut, taken) for cut in cuts]) if fits else None


def _between_words(codes: Tensor, cut: int, pad: int) -> bool:
    """Whether a recording may be cut before this frame: the agent is not in the middle of a word's tokens."""
    if cut >= codes.shape[1]:
        return cut == codes.shape[1]
    return int(codes[0, cut]) in (pad, ABSENT)


def _another(corpus: Corpus, number: int, rng: random.Random) -> Tensor:
    """The codes of a recording that is not this one."""
    chosen = rng.randrange(len(corpus.recordings) - 1)
    return corpus.whole(corpus.recordings[chosen + (chosen >= number)])


def _given(recording: Recording) -> dict[str, float]:
    return {"prefix_sec": frames_to_seconds(recording.prefix_frames)} if recording.prefix_frames else {}


def _seconds(one: Planted) -> dict[str, object]:
    values = asdict(one)
    times = {f"{name}_sec": frames_to_seconds(values[name]) for name in ("first", "again")}
    return {"kind": one.kind, **times, "duration": frames_to_seconds(one.frames)}
