"""Recordings of users answered side by side: as many conversations at once as there are slots."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from ttt_moshi.inference.slots import Slots, Snapshot, why_broken

SILENCE = 1e-3
"""amplitude below which a recording is silent: -60 dB of full scale"""


@dataclass(frozen=True)
class Question:
    """A recording that wants an answer.

    Args:
        name: of the recording.
        samples: float32 [any length] of the user, at the model's sample rate; the last frame is filled up with silence.
        seed: of the conversation's draws.
        start: a conversation to go on with, or a prompt; None begins with nothing.
        greeting: whether Moshi may say a word before the user makes a sound.
    """

    name: str
    samples: Tensor
    seed: int
    start: Snapshot | None = None
    greeting: bool = True


@dataclass
class Answer:
    """What Moshi said to a recording.

    Args:
        question: the recording.
        samples: float32, as many as the question has.
        pieces: of each frame, "" where there is none.
        tokens: int64 [1 + dep_q, frames], text first, -1 where the model's delays hold a frame back.
        end: where the conversation could go on; None unless asked for.
        failure: why the conversation ended early, if it did.
    """

    question: Question
    samples: Tensor
    pieces: list[str]
    tokens: Tensor
    end: Snapshot | None = None
    failure: str | None = None


@dataclass
class _Going:
    question: Question
    frames: list[Tensor]
    sound: list[Tensor] = field(default_factory=list)
    pieces: list[str] = field(default_factory=list)
    tokens: list[Tensor] = field(default_factory=list)

    def finish(self, end: Snapshot | None, failure: str | None = None) -> Answer:
        samples = torch.cat([torch.zeros(0), *self.sound])[: len(self.question.samples)]
        tokens = torch.stack(self.tokens, dim=1) if self.tokens else torch.zeros(0, 0, dtype=torch.int64)
        return Answer(self.question, samples, self.pieces, tokens, end, failure)


def answer(
    slots: Slots, questions: Iterable[Question], keep_end: bool = False, on_tick: Callable[[int], None] | None = None
) -> Iterator[Answer]:
    """Every question's answer, in the order in which they are done; an answer does not depend on the others.

    Args:
        slots: entered already.
        questions: taken one by one, when a slot is free.
        keep_end: whether answers carry where their conversations could go on.
        on_tick: called after every tick with the number of frames heard in it.
    """
    waiting = iter(questions)
    going: dict[int, _Going] = {}
    free = list(range(slots.count))
    exhausted = False
    nothing = torch.full((1 + slots.speaker.model.dep_q,), -1)
    while True:
        while free and not exhausted:
            question = next(waiting, None)
            if question is None:
                exhausted = True
            elif len(question.samples):
                slot = free.pop()
                going[slot] = _begin(slots, slot, question)
            else:
                yield _Going(question, []).finish(None, "the recording holds no audio")
        if not going:
            return
        replies = slots.tick({slot: one.frames[len(one.pieces)] for slot, one in going.items()})
        if on_tick:
            on_tick(len(going))
        for slot, one in list(going.items()):
            reply = replies.get(slot)
            one.sound.append(torch.zeros(slots.frame_size) if reply is None else reply.samples)
            one.pieces.append("" if reply is None else reply.piece)
            one.tokens.append(nothing if reply is None else reply.tokens)
            failed = slot in slots.broken
            if failed or len(one.pieces) == len(one.frames):
                del going[slot]
                free.append(slot)
                if failed:
                    yield one.finish(None, why_broken(slots.frames[slot]))
                else:
                    yield one.finish(slots.snapshot(slot) if keep_end else None)


def _begin(slots: Slots, slot: int, question: Question) -> _Going:
    frames = list(question.samples.split(slots.frame_size))  # views: an hour is 345 MB
    frames[-1] = torch.nn.functional.pad(frames[-1], (0, slots.frame_size - len(frames[-1])))
    silent = 0
    if not question.greeting:
        silent = next((number for number, frame in enumerate(frames) if frame.abs().max() >= SILENCE), len(frames))
    if question.start is None:
        slots.join(slot, question.seed, silent)
    else:
        slots.restore(slot, replace(question.start, seed=question.seed), question.start.frames + silent)
    return _Going(question, frames)
