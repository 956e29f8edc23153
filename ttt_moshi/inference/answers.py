"""Recordings of users answered side by side: as many conversations at once as there are slots."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from itertools import chain, repeat

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
        said: given what Moshi says frame by frame, float32, as many samples in all as the answer would have; then the
            answer does not hold them.
        wait: frames of silence after the recording at most, in which a model that is told that it has ended says the
            rest, and that it has finished; None where nothing is told.
    """

    name: str
    samples: Audio
    seed: int
    start: Snapshot | None = None
    greeting: bool = True
    said: Callable[[Tensor], None] | None = None
    wait: int | None = None


@dataclass
class Answer:
    """What Moshi said to a recording.

    Args:
        question: the recording.
        samples: float32, as many as the question has; none where `Question.said` had them. Where the model is told that
            the recording has ended, they are whole frames, of that moment and of the wait too.
        pieces: of each frame, "" where there is none.
        tokens: int64 [1 + dep_q, frames], text first, -1 where the model's delays hold a frame back.
        end: where the conversation could go on; None unless asked for.
        failure: why the conversation ended early, if it did.
        unfinished: whether the model was told that the recording has ended, and had not finished after the wait.
    """

    question: Question
    samples: Tensor
    pieces: list[str]
    tokens: Tensor
    end: Snapshot | None = None
    failure: str | None = None
    unfinished: bool = False


@dataclass
class _Going:
    question: Question
    frames: Iterator[Tensor | None]  # None where the recording has ended
    left: int  # samples that are still to be answered
    ended: bool = False  # and the model knows it
    finished: bool = False  # and said so
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
        return Answer(self.question, samples, self.pieces, tokens, end, failure, self.ended and not self.finished)


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
    silence = torch.zeros(slots.frame_size)
    end_of_text = slots.speaker.tokenizer.eos_id()
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
        heard = {slot: next(one.frames) for slot, one in going.items()}
        ended = [slot for slot, frame in heard.items() if frame is None]
        replies = slots.tick({slot: silence if frame is None else frame for slot, frame in heard.items()}, ended)
        if on_tick:
            on_tick(len(going))
        for slot, one in list(going.items()):
            reply = replies.get(slot)
            one.say(torch.zeros(slots.frame_size) if reply is None else reply.samples)
            one.pieces.append("" if reply is None else reply.piece)
            one.tokens.append(nothing if reply is None else reply.tokens)
            one.ended |= slot in ended
            # Said too early it means nothing, as in moshi's own generator.
            one.finished = one.ended and reply is not None and int(reply.tokens[0]) == end_of_text
            failed = slot in slots.broken
            if failed or one.finished or not one.left:
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
    frames: Iterator[Tensor | None] = _frames(question.samples, slots.frame_size)
    length = length_of(question.samples)
    if question.wait is not None:
        frames = chain(frames, [None], repeat(torch.zeros(slots.frame_size), question.wait))
        length = (-(-length // slots.frame_size) + 1 + question.wait) * slots.frame_size
    return _Going(question, frames, length)


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
