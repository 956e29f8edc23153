"""Conversations about many recordings, side by side and in files: what is there already is not made again.

NAME/input.wav            the user
NAME/output.wav           Moshi
NAME/tokens.safetensors   Moshi's tokens, int16 [1 + dep_q, frames], text first
NAME/made_by.json         model, draws and input: another conversation's files are never taken for this one's
NAME/output.json          Moshi's words with their times; written last
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import soundfile
import torch
from blake3 import blake3
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from ttt_moshi.data.sound_files import new_sound, write_sound
from ttt_moshi.data.words import TimedWord
from ttt_moshi.errors import UserError
from ttt_moshi.files import (
    delete_partial,
    naming,
    only_writer,
    partial_beside,
    read_bytes,
    read_text,
    replacing,
    write_atomically,
)
from ttt_moshi.frames import FRAME_RATE
from ttt_moshi.inference.answers import Answer, Audio, Question, answer, blocks_of, length_of
from ttt_moshi.inference.errors import InferenceError
from ttt_moshi.inference.prompt import go_on_beside
from ttt_moshi.inference.sampling import Sampling
from ttt_moshi.inference.slots import Slots, Snapshot
from ttt_moshi.inference.speaker import Speaker
from ttt_moshi.inference.transcript import words

MADE_BY, WORDS, TOKENS = "made_by.json", "output.json", "tokens.safetensors"
LOCK = ".lock"
OF_ONE_CONVERSATION = ("seed", "prompt", "input")
"""what differs in `MADE_BY` between conversations that are held alike"""


@dataclass(frozen=True)
class Given:
    """Frames that count as said and heard before a conversation.

    Args:
        codes: int64 [K, P], all streams.
        user: float32 [P * frame_size], what the user's codes were made of.
    """

    codes: Tensor
    user: Tensor


@dataclass(frozen=True)
class Item:
    """One recording of a user.

    Args:
        read: reads its samples, when they are due.
        given: what the conversation goes on from, in the place of the driver's prompt; None without any.
    """

    name: str
    read: Callable[[], Audio]
    given: Callable[[], Given] | None = None


@dataclass(frozen=True)
class Driver:
    """How conversations are made.

    Args:
        slots: so many at once; changes no conversation.
        seed: from which every conversation has its own, by its name.
        start: a prompt, None without one.
        greeting: whether Moshi may say a word before the user makes a sound.
        wait: see `Question.wait`.
        replace: whether conversations of another model, other options or another recording that are there are made
            again, instead of refused.
    """

    speaker: Speaker
    sampling: Sampling
    slots: int = 4
    seed: int = 0
    start: Snapshot | None = None
    greeting: bool = True
    wait: int | None = None
    replace: bool = False

    def converse(
        self,
        items: Iterable[Item],
        folder: Path,
        overwrite: bool = False,
        on_done: Callable[[str, str | None], None] = lambda name, failure: None,
        on_tick: Callable[[int], None] | None = None,
        on_unfinished: Callable[[str], None] = lambda name: None,
    ) -> None:
        """Makes the conversations that are not in `folder` yet, nor being made there by another process.

        Args:
            overwrite: make those too that are there.
            on_done: called for each that is made with its name, and why it failed; a failure leaves no files.
            on_tick: called with the number of frames heard, again and again.
            on_unfinished: called with the name of each that had not finished when `wait` was over.

        Raises:
            InferenceError: a conversation in `folder` is of another model, other options or another recording.
        """
        left = list(items) if overwrite else self.lacking(items, folder)
        if not left:
            return

        made_by: dict[str, dict[str, Any]] = {}
        said: dict[str, _Growing] = {}
        under_way: dict[str, ExitStack] = {}

        def questions(slots: Slots) -> Iterator[Question]:
            for item in left:
                try:
                    question, given = self._question(item), item.given() if item.given else None
                    made_by[item.name] = self.identity(question, given)
                    with ExitStack() as stack:
                        stack.enter_context(_alone(folder / item.name))
                        if not overwrite and self._is_there(folder / item.name, made_by[item.name]):
                            on_done(item.name, None)  # another process was quicker
                            continue
                        if given is not None:
                            start = go_on_beside(slots, given.codes, given.user, question.seed)
                            question = replace(question, start=start)
                        delete_partial(folder / item.name)
                        said[item.name] = _Growing(folder / item.name / "output.wav", slots.sample_rate)
                        stack.callback(said[item.name].drop)
                        under_way[item.name] = stack.pop_all()
                    yield replace(question, said=said[item.name].add)
                except UserError as error:
                    on_done(item.name, str(error))

        with Slots(self.speaker, min(self.slots, len(left)), self.sampling) as slots, ExitStack() as at_end:
            at_end.callback(_close_all, under_way)
            for found in answer(slots, questions(slots), on_tick=on_tick):
                name = found.question.name
                if found.failure is None:
                    self._write(folder / name, found, said[name], slots.sample_rate, made_by[name])
                under_way.pop(name).close()
                if found.unfinished and found.failure is None:
                    on_unfinished(name)
                on_done(name, found.failure)

    def lacking(self, items: Iterable[Item], folder: Path) -> list[Item]:
        """The items whose conversations are not in `folder` yet.

        Raises:
            InferenceError: as `converse`.
        """
        left = []
        for item in items:
            if (folder / item.name / WORDS).exists():
                try:
                    identity = self.identity(self._question(item), item.given() if item.given else None)
                except UserError:  # unreadable: its turn will come, and tell it
                    left.append(item)
                    continue
                if self._is_there(folder / item.name, identity):
                    continue
            left.append(item)
        return left

    def _question(self, item: Item) -> Question:
        seed = seed_of(self.seed, item.name)
        return Question(item.name, item.read(), seed, self.start, self.greeting, wait=self.wait)

    def identity(self, question: Question, given: Given | None = None) -> dict[str, Any]:
        """Everything that decides what is said."""
        prompt = self._prompt if given is None else _digest({"codes": given.codes, "user": given.user})
        return {
            "state_id": self.speaker.state_id,
            "dtype": self.speaker.dtype,
            "sink": self.speaker.sink,
            **({"conditions": dict(self.speaker.conditions)} if self.speaker.conditions else {}),
            **({"cfg": self.speaker.cfg} if self.speaker.cfg != 1.0 else {}),
            "sampling": asdict(self.sampling),
            "seed": question.seed,
            "prompt": prompt,
            "greeting": self.greeting,
            **({"wait": self.wait} if self.wait is not None else {}),
            "input": _audio_digest(question.samples),
        }

    @cached_property
    def _prompt(self) -> str | None:
        return None if self.start is None else _digest(self.start.tensors)

    def _is_there(self, folder: Path, wanted: dict[str, Any]) -> bool:
        """Whether the conversation in `folder` is the wanted one; one that may be replaced is not.

        Raises:
            InferenceError: it is another one, which stays.
        """
        if not (folder / WORDS).exists():
            return False
        try:
            made_by = json.loads(read_text(folder / MADE_BY))
        except (OSError, ValueError):
            made_by = None
        if made_by != wanted and not self.replace:
            what = difference(made_by, wanted)
            raise InferenceError(
                f"{folder} holds another conversation ({what}): choose another folder, or replace it with --overwrite"
            )
        return bool(made_by == wanted)

    def _write(self, folder: Path, found: Answer, said: _Growing, sample_rate: int, identity: dict[str, Any]) -> None:
        (folder / WORDS).unlink(missing_ok=True)
        heard = _Growing(folder / "input.wav", sample_rate)
        try:
            for block in blocks_of(found.question.samples):
                heard.add(block)
            heard.finish()
        finally:
            heard.drop()
        said.finish()
        write_atomically(folder / TOKENS, save({"tokens": found.tokens.to(torch.int16)}), durable=False)
        made_by = json.dumps(identity, indent=1) + "\n"
        write_atomically(folder / MADE_BY, made_by.encode(), durable=False)
        write_words(folder / WORDS, words(found.pieces, FRAME_RATE, self.speaker.delay))


class _Growing:
    """An audio file that is written while a conversation lasts, and has its name only when it is whole."""

    def __init__(self, path: Path, sample_rate: int):
        self._path, self._temporary, self._open = path, partial_beside(path), ExitStack()
        with naming(path):
            self._file = self._open.enter_context(new_sound(self._temporary, sample_rate, 1, kind="WAV"))

    def add(self, samples: Tensor) -> None:
        """Raises `OSError` when it cannot be written."""
        with naming(self._path):
            try:
                self._file.write(samples.clip(-1.0, 1.0).numpy())
            except soundfile.SoundFileError:
                with self._open:  # what the disk has said is known there
                    raise

    def finish(self) -> None:
        """Gives it its name."""
        with naming(self._path):
            self._open.close()
            self._temporary.replace(self._path)

    def drop(self) -> None:
        """Leaves nothing of one that was not finished."""
        with suppress(OSError, soundfile.SoundFileError):
            self._open.close()
        with suppress(OSError):
            self._temporary.unlink(missing_ok=True)


def _close_all(stacks: Mapping[str, ExitStack]) -> None:
    for one in stacks.values():
        one.close()


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Makes a conversation's folder, which goes again if nothing is left in it, and keeps other processes from it.

    Raises:
        InferenceError: another process is in it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with only_writer(folder / LOCK) as mine:
            if not mine:
                raise InferenceError(f"another process is making {folder}: wait for it, or choose another folder")
            yield
    finally:
        with suppress(OSError):  # nothing was made
            folder.rmdir()


@dataclass(frozen=True)
class Conversation:
    """What lies in a folder. Its audio stays there: an hour would be 345 MB a side.

    Args:
        tokens: int64 [1 + dep_q, frames] of Moshi, -1 where the model's delays held them back.
        seconds: of its audio.
        words: Moshi's.
    """

    folder: Path
    tokens: np.ndarray
    seconds: float
    words: list[TimedWord]

    @property
    def agent(self) -> np.ndarray:
        """float32 samples, read anew. Raises `InferenceError` where they cannot be."""
        return np.concatenate(list(self.blocks("output")))

    @property
    def user(self) -> np.ndarray:
        """As `agent`."""
        return np.concatenate(list(self.blocks("input")))

    def blocks(self, side: Literal["output", "input"]) -> Iterator[np.ndarray]:
        """A side's samples, float32, ten seconds at a time. Raises as `agent`."""
        path = self.folder / f"{side}.wav"
        try:
            with soundfile.SoundFile(path) as file:
                yield from file.blocks(10 * file.samplerate, dtype="float32")
        except (OSError, soundfile.SoundFileError) as error:
            raise InferenceError(f"{path} cannot be read: {error}") from None


def read_conversation(folder: Path) -> Conversation:
    """What `Driver` wrote. Raises `InferenceError` for files that are missing or not what it writes."""
    try:
        tokens = load(read_bytes(folder / TOKENS))["tokens"].long().numpy()
        seconds = min(soundfile.info(folder / f"{side}.wav").duration for side in ("output", "input"))
        said = read_words(folder / WORDS)
    except (OSError, SafetensorError, soundfile.SoundFileError, ValueError, KeyError, TypeError) as error:
        raise InferenceError(f"{folder} is no conversation that was written here ({error!r})") from None
    return Conversation(folder, tokens, seconds, said)


def difference(made_by: Any, wanted: Mapping[str, Any]) -> str:
    """In words, how what made a conversation that is there is not what is wanted."""
    if not isinstance(made_by, dict):
        return "does not say what made it"
    keys = [key for key in {**wanted, **made_by} if made_by.get(key) != wanted.get(key)]
    unsaid = "; of an earlier version, which did not write down its dtype" if "dtype" not in made_by else ""
    return f"differs in {', '.join(keys)}{unsaid}"


def seed_of(seed: int, name: str) -> int:
    """Of the conversation of that name: its own, whatever else is in the batch."""
    digest = hashlib.blake2b(f"{seed} {name}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def write_audio(path: Path, samples: Tensor, sample_rate: int) -> None:
    """Samples [n] or [n, channels] as a .wav or .flac file. Raises `OSError` when it cannot be written."""
    with replacing(path, durable=False) as temporary:
        kind = path.suffix.lstrip(".").upper()
        write_sound(temporary, samples.clip(-1.0, 1.0).numpy(), sample_rate, kind=kind)


def write_words(path: Path, said: Iterable[TimedWord]) -> None:
    """Words with their times, as transcripts of training data have them."""
    alignments = [[w.text, [round(w.start, 3), round(w.end, 3)], "SPEAKER_MAIN"] for w in said]
    text = json.dumps({"alignments": alignments}, ensure_ascii=False, indent=1) + "\n"
    write_atomically(path, text.encode(), durable=False)


def read_words(path: Path) -> list[TimedWord]:
    """What `write_words` wrote. Raises OSError, ValueError, KeyError or TypeError where it is not that."""
    return [TimedWord(text, *times) for text, times, _ in json.loads(read_text(path))["alignments"]]


def _audio_digest(samples: Audio) -> str:
    """`_digest` of the samples as one tensor."""
    digest = blake3(f"samples {torch.float32} {(length_of(samples),)} ".encode())
    for block in blocks_of(samples):
        digest.update(block.contiguous().numpy().tobytes())
    return digest.hexdigest()[:32]


def _digest(tensors: Mapping[str, Tensor]) -> str:
    digest = blake3()
    for name in sorted(tensors):
        tensor = tensors[name].contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)} ".encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:32]
