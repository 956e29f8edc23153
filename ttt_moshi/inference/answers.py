"""Recordings of users answered side by side: as many conversations at once as there are slots."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from ttt_moshi.inference.slots import Slots, Snapshot, why_broken


@dataclass(frozen=True)
class LongAudio:
    """Audio that is read while it is heard and never held whole: an hour of samples is 345 MB.

    Args:
        length: in samples.
        blocks: float32 [any length] each, `length` of them in all; from the beginning with every call.
    """

    length: int
    blocks: Callable[[], Iterator[Tensor]]


Audio = Tensor | LongAudio
"""float32 [any length], at the model's sample rate"""


def length_of(samples: Audio) -> int:
    """In samples."""
    return samples.length if isinstance(samples, LongAudio) else len(samples)


def blocks_of(samples: Audio) -> Iterator[Tensor]:
    """The samples in order, in one block or several."""
    return samples.blocks() if isinstance(samples, LongAudio) else iter([samples])


@dataclass(frozen=True)
class Question:
    """A recording that wants an answer.

    Args:
        name: of the recording.
        samples: of the user; the last frame is filled up with silence.
        seed: of the conversation's draws.
        start: a conversation to go on with, or a prompt; None begins with nothing.
        greeting: whether Moshi may say a word before the user makes a sound.
        said: given what Moshi says frame by frame, float32, as many samples in all as the question has; then the answer
            does not hold them.
    """

    name: str
    samples: Audio
    seed: int
    start: Snapshot | None = None
    greeting: bool = True
    said: Callable[[Tensor], None] | None = None


@dataclass
class Answer:
    """What Moshi said to a recording.

    Args:
        question: the recording.
        samples: float32, as many as the question has; none where `Question.said` had them.
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
    frames: Iterator[Tensor]
    left: int  # samples that are still to be answered
    sound: list[Tensor] = field(default_factory=list)
    pieces: list[str] = field(default_factory=list)
    tokens: list[Tensor] = field(default_factory=list)

    def say(self, samples: Tensor) -> None:
        samples = samples[: self.left]
        self.left -= len(samples)
        if self.question.said is None:
            self.sound.append(samples)
        else:
            self.question.said(samples)

    def finish(self, end: Snapshot | None, failure: str | None = None) -> Answer:
        samples = torch.cat([torch.zeros(0), *self.sound])
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
            elif length_of(question.samples):
                slot = free.pop()
                going[slot] = _begin(slots, slot, question)
            else:
                yield _Going(question, iter(()), 0).finish(None, "the recording holds no audio")
        if not going:
            return
        replies = slots.tick({slot: next(one.frames) for slot, one in going.items()})
        if on_tick:
            on_tick(len(going))
        for slot, one in list(going.items()):
            reply = replies.get(slot)
            one.say(torch.zeros(slots.frame_size) if reply is None else reply.samples)
            one.pieces.append("" if reply is None else reply.piece)
            one.tokens.append(nothing if reply is None else reply.tokens)
            failed = slot in slots.broken
            if failed or not one.left:
                del going[slot]
                free.append(slot)
                if failed:
                    yield one.finish(None, why_broken(slots.frames[slot]))
                else:
                    yield one.finish(slots.snapshot(slot) if keep_end else None)


def _begin(slots: Slots, slot: int, question: Question) -> _Going:
    if question.start is None:
        slots.join(slot, question.seed, question.greeting)
    else:
        slots.restore(slot, replace(question.start, seed=question.seed), question.greeting)
    return _Going(question, _frames(question.samples, slots.frame_size), length_of(question.samples))


def _frames(samples: Audio, size: int) -> Iterator[Tensor]:
    """Frame by frame, the last one filled up with silence."""
    rest = torch.zeros(0)
    for block in blocks_of(samples):
        rest = torch.cat([rest, block]) if len(rest) else block
        whole = len(rest) // size * size
        yield from rest[:whole].split(size) if whole else ()
        rest = rest[whole:]
    if len(rest):
        yield torch.nn.functional.pad(rest, (0, size - len(rest)))
