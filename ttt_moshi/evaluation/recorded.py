"""The user's own recordings, as `data.eval_data` names them, for the tasks that measure on them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch

from ttt_moshi.data import Alphabet, Codec, Corpus, EvalSet
from ttt_moshi.data.audio import read_audio, read_blocks
from ttt_moshi.data.corpus import Tokenizer
from ttt_moshi.data.digests import Digests, cache_folder
from ttt_moshi.data.encoded import EncodedInfo
from ttt_moshi.data.interleaver import MOSHI_STYLE, TextStyle
from ttt_moshi.data.listen import moshi_first
from ttt_moshi.data.remote import is_there, local
from ttt_moshi.data.sources import Recording, open_sources
from ttt_moshi.data.transcripts import read_transcript
from ttt_moshi.evaluation.controls import Controls
from ttt_moshi.evaluation.documents import read_json
from ttt_moshi.evaluation.errors import EvaluationError, well_formed
from ttt_moshi.evaluation.pairs import some_of
from ttt_moshi.evaluation.scoring.clips import ClipTokens
from ttt_moshi.evaluation.scoring.ranks import Ranks
from ttt_moshi.evaluation.speaker_turns import SpeakerTurn, speaker_turns
from ttt_moshi.frames import FRAME_SIZE, SAMPLE_RATE, frames_to_seconds
from ttt_moshi.inference.answers import LongAudio
from ttt_moshi.inference.driver import MADE_BY, OF_ONE_CONVERSATION, Item

Encode = Callable[[Ranks, Callable[[int, int], None]], None]


@dataclass(frozen=True)
class TwoSides:
    """A recorded dialogue with audio of agent and user.

    Args:
        id: names it by its content.
        name: names it for people, once in its list.
    """

    id: str
    name: str
    recording: Recording

    def read(self) -> np.ndarray:
        """float32 [2, samples], the agent's first, as far as the recording is used."""
        audio = read_audio(self.recording.audio)[list(moshi_first(2, self.recording.moshi_speaker))]
        return audio[:, : self.recording.frames * FRAME_SIZE]


@dataclass(frozen=True)
class Maker:
    """The model that made a conversation and how it talked (dtype, sampling, ...); `path` is the file that says so."""

    state_id: str
    path: Path
    settings: Mapping[str, Any] = field(default_factory=dict)


def maker(audio: Path) -> Maker | None:
    """What made a recording, where `ttt-moshi generate` has written that beside it.

    Raises:
        EvaluationError: a file of that name which holds something else.
    """
    path = audio.parent / MADE_BY
    if not is_there(path):
        return None
    with well_formed(path):
        made_by = read_json(local(path))
        own = {"state_id", *OF_ONE_CONVERSATION}
        return Maker(str(made_by["state_id"]), path, {key: made_by[key] for key in made_by if key not in own})


@dataclass(frozen=True)
class EvaluationData:
    """Recordings with transcripts, and what turns them into tokens.

    Args:
        spec: comma-separated jsonl files or folders of them.
        duration_sec: length of a clip.
        codec, tokenizer, alphabet: those of the model; `check` needs none.
        cache_dir: folder for codes; None takes one beside each jsonl file.
        style: how the model's text stream is written.
        max_items: so many clips or recordings at most, a sample by `seed`.
    """

    spec: str
    duration_sec: float
    codec: Codec | None = None
    tokenizer: Tokenizer | None = None
    alphabet: Alphabet | None = None
    cache_dir: Path | None = None
    max_items: int | None = None
    seed: int = 0
    controls: Controls = field(default_factory=Controls)
    style: TextStyle = MOSHI_STYLE

    def check(self) -> list[int]:
        """Frames of every recording, from its header alone: without a model and without reading it whole.

        Raises:
            DataError: one that cannot be used.
        """
        return [recording.frames for recording in _by_their_names(self.spec)]

    def lengths(self) -> list[int]:
        """Frames of the recordings that `whole` takes, as `check`. Which of them `max_items` leaves is told by their
        contents, so that these are read then, and remembered.

        Raises:
            DataError: one that cannot be used.
        """
        found = _by_their_names(self.spec)
        if self.max_items is not None and self.max_items < len(found):
            sources = open_sources(self.spec, lambda folder: Digests(cache_folder(folder, self.cache_dir)))
            found = [recording for source in sources for recording in source.recordings]
            found = some_of(found, lambda one: whole_clip(one.id), self.max_items, self.seed)
        return [recording.frames for recording in found]

    def clips(self) -> tuple[ClipTokens, Encode]:
        """The recordings cut into clips of `duration_sec`, and what encodes them."""
        return self._tokens(self._corpus)

    def whole(self) -> tuple[ClipTokens, Encode]:
        """Every recording as one clip, `ID@0`, and what encodes them."""
        longest = max(recording.frames for recording in self._corpus.recordings)
        return self._tokens(self._corpus.cut(frames_to_seconds(longest)))

    def makers(self) -> dict[str, Maker | None]:
        """What made every recording, by the id of its clip in `whole`; None where nothing beside it says so.

        Raises:
            EvaluationError: a `made_by.json` that says nothing of a model.
        """
        return {whole_clip(one.id): maker(one.audio) for one in self._corpus.recordings}

    def turns(self) -> dict[str, list[SpeakerTurn]]:
        """Who speaks when in every recording that has a transcript, by the id of its clip in `whole`."""
        return {
            whole_clip(recording.id): speaker_turns(
                read_transcript(recording.transcript, recording.moshi_speaker).words
            )
            for recording in self._corpus.recordings
            if recording.transcript is not None
        }

    def users(self, minutes: float, count: int) -> list[Item]:
        """Users to be played for so many minutes, at most `count`: each begins with another recording's user, and where
        that ends the next one's goes on.

        Raises:
            EvaluationError: pre-tokenized recordings, or mono ones, in which no user can be heard.
        """
        found = [one.recording for one in _both_sides(self._corpus.recordings)]
        samples = round(minutes * 60 * SAMPLE_RATE)

        def reader(first: int) -> Callable[[], LongAudio]:
            return lambda: LongAudio(samples, lambda: _played([*found[first:], *found[:first]], samples))

        return [Item(f"user{number}", reader(number)) for number in range(min(count, len(found)))]

    def dialogues(self) -> list[TwoSides]:
        """The recordings with both of their sides, at most `max_items`.

        Raises:
            EvaluationError: pre-tokenized or mono recordings.
        """
        found = _both_sides(self._corpus.recordings)
        return some_of(found, lambda one: one.id, self.max_items, self.seed)

    @cached_property
    def _corpus(self) -> Corpus:
        """Opened once for all tasks."""
        return Corpus(
            self.spec,
            self.codec,
            self.tokenizer,
            self.duration_sec,
            self.cache_dir,
            alphabet=self.alphabet,
            style=self.style,
        )

    def _tokens(self, corpus: Corpus) -> tuple[ClipTokens, Encode]:
        clips = EvalSet(corpus)
        if self.max_items is not None:
            chosen = some_of(clips.clips, lambda clip: clip.id, self.max_items, self.seed)
            clips = EvalSet(corpus, {clip.id for clip in chosen})
        needed = {clip.recording.id: clip.recording for clip in clips.clips}

        def encode(ranks: Ranks, progress: Callable[[int, int], None]) -> None:
            def report(name: str, done: int, total: int) -> None:
                progress(done, total)

            ranks.together(lambda: corpus.encode_all(ranks.rank, ranks.size, report, list(needed.values())))

        controls = self.controls
        silence = None if self.codec is None else self.codec.silence
        tokens = ClipTokens(
            clips,
            controls.text or "given",
            controls.user or "natural",
            silence,
            self.style.pad,
        )
        return tokens, encode


def two_sided(spec: str) -> list[TwoSides]:
    """The recorded dialogues of a list, told by their names and not by their contents.

    Raises:
        EvaluationError: pre-tokenized or mono recordings.
        DataError: a list or recording that cannot be used.
    """
    return _both_sides(_by_their_names(spec))


def whole_clip(recording: str) -> str:
    """Id of the clip that a whole recording of this id is."""
    return f"{recording}@0"


def _by_their_names(spec: str) -> list[Recording]:
    """The recordings of a list, whose ids are paths then: nothing but headers is read.

    Raises:
        DataError: a list or recording that cannot be used.
    """
    sources = open_sources(spec, lambda folder: cast(Digests, _Names()))
    return [recording for source in sources for recording in source.recordings]


def _both_sides(recordings: Sequence[Recording]) -> list[TwoSides]:
    for recording in recordings:
        if isinstance(recording.info, EncodedInfo) or recording.info.channels < 2:
            raise EvaluationError(f"no user can be played: {recording.audio.name} has no audio of one")
    return [
        TwoSides(recording.id, f"{number:04d}-{recording.audio.stem}", recording)
        for number, recording in enumerate(recordings)
    ]


def _played(recordings: Sequence[Recording], samples: int) -> Iterator[torch.Tensor]:
    """float32, `samples` in all, of the users of recordings, one after another and then from the first one again.

    Raises:
        EvaluationError: none of them holds any audio.
    """
    left = samples
    while True:
        before = left
        for recording in recordings:
            channel = moshi_first(2, recording.moshi_speaker)[1]
            for block in read_blocks(recording.audio):
                user = torch.from_numpy(np.ascontiguousarray(block[channel, :left]))
                left -= len(user)
                yield user
                if not left:
                    return
        if left == before:
            raise EvaluationError(f"no user can be played: {recordings[0].audio.name} holds no audio")


class _Names:
    """Stands where digests stand, for a check that need not know the contents."""

    def of(self, path: Path) -> str:
        return str(path)

    def remember(self, path: Path, what: str, find: Callable[[Path], str]) -> str:
        return find(path)
