"""Recordings cut into clips, and clips turned into codes."""

from __future__ import annotations

import copy
import json
import logging
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import blake3
import torch

from ttt_moshi.data.batch import Batch, collate
from ttt_moshi.data.cache import CodeCache
from ttt_moshi.data.codec import Codec
from ttt_moshi.data.digests import Digests, cache_folder
from ttt_moshi.data.encoded import Alphabet, EncodedInfo, read_encoded
from ttt_moshi.data.errors import DataError
from ttt_moshi.data.interleaver import ABSENT, MOSHI_STYLE, TextStyle, absent_row, text_row
from ttt_moshi.data.judge import CERTAIN, judge_recording
from ttt_moshi.data.parts import part_of
from ttt_moshi.data.rules import Finding
from ttt_moshi.data.sources import Recording, open_sources
from ttt_moshi.data.tokenizer import Tokenizer, check_tokenizer, coverage
from ttt_moshi.data.transcripts import MAIN_SPEAKER, read_transcript
from ttt_moshi.data.unspaced import is_unspaced_text
from ttt_moshi.frames import seconds_to_frames

OnRecording = Callable[[str, int, int], None]
"""called with a recording's name and the frames done and in all, of those whose codes were not there"""

_RECORDINGS_IN_MEMORY = 32

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Clip:
    """`Corpus.clip_frames` frames of a recording from frame `start`, fewer at its end."""

    recording: Recording
    start: int

    @property
    def id(self) -> str:
        return f"{self.recording.id}@{self.start}"


class Corpus:
    """The recordings that `train_data` or `eval_data` names, cut into consecutive clips.

    Opening it looks at every recording's header, so that a missing or useless file is noticed before work begins, and
    knows every file by its content (digests are remembered beside the cached codes). Codes are made, or read from the
    cache, when a clip is asked for.

    Args:
        spec: comma-separated jsonl files or folders of them, each with an optional `:weight`.
        codec: the codec of the language model; None where all recordings are pre-tokenized.
        tokenizer: its text tokenizer; None where all recordings are pre-tokenized.
        duration_sec: length of a clip; rounded up to whole frames.
        cache_dir: folder for cached codes; None takes `.mimi_codes` beside each jsonl file.
        alphabet: what the language model reads, checked in pre-tokenized recordings; None checks nothing.
        style: how its text stream is written.
        shard: which of how many parts of the recordings, from 0, is opened; nothing else is read. See `open_sources`.

    Raises:
        DataError: see `open_sources`; recordings of different streams, or audio without a codec.
    """

    def __init__(
        self,
        spec: str,
        codec: Codec | None,
        tokenizer: Tokenizer | None,
        duration_sec: float,
        cache_dir: str | Path | None = None,
        *,
        alphabet: Alphabet | None = None,
        style: TextStyle = MOSHI_STYLE,
        shard: tuple[int, int] = (0, 1),
    ):
        self.clip_frames = _clip_frames(duration_sec)
        self._cache_dir = None if cache_dir is None else Path(cache_dir)
        self._digests: dict[Path, Digests] = {}
        self.shard = shard
        """which of how many parts of the recordings these are, from 0"""
        self.sources = open_sources(spec, self._digests_for, shard)
        self._codec = codec
        self._tokenizer = tokenizer
        self._alphabet = alphabet
        self.style = style
        """how its text stream is written"""
        if alphabet is not None and tokenizer is not None and not all(r.encoded for r in self.recordings):
            check_tokenizer(tokenizer, alphabet.text_card, style)
        self.streams: int = self._count_streams()
        """text, Moshi's codebooks, the user's codebooks"""
        self._caches: dict[Path, CodeCache] = {}
        self._loaded: OrderedDict[str, torch.Tensor] = OrderedDict()
        self._lock = threading.Lock()
        self.identity: dict[str, object] = self._identity()
        """what decides which clips there are and what is in them, by content and independent of paths"""
        self.fingerprint: str = _digest_of(self.identity)
        """64 hex digits: equal where `identity` is"""
        self._warn_of_missing_transcripts()

    def cut(self, duration_sec: float) -> Corpus:
        """The same recordings, which are not opened again, in clips of another length."""
        other = copy.copy(self)
        other.clip_frames = _clip_frames(duration_sec)
        other.identity = other._identity()
        other.fingerprint = _digest_of(other.identity)
        return other

    @property
    def recordings(self) -> list[Recording]:
        return [recording for source in self.sources for recording in source.recordings]

    def clips(self, source: int) -> list[Clip]:
        """The clips of one source, in the order of its recordings."""
        return [
            Clip(recording, start)
            for recording in self.sources[source].recordings
            for start in range(0, recording.frames, self.clip_frames)
        ]

    def read(self, clips: Sequence[Clip]) -> Batch:
        """The codes of some clips.

        Raises:
            DataError: a recording or transcript that cannot be used.
        """
        return collate([self._read_clip(clip) for clip in clips])

    def whole(self, recording: Recording) -> torch.Tensor:
        """The codes of a whole recording, int64 `[1 + 2K, T]`.

        Raises:
            DataError: a recording or transcript that cannot be used.
        """
        return self._load(recording)[:, : recording.frames].long()

    def part(self, rank: int, world_size: int, of: Sequence[Recording] | None = None) -> list[Recording]:
        """One rank's part of the recordings, all or those of `of`; parts are about equally long, with about as much to
        encode."""
        mine = []
        for encoded in (False, True):
            recordings = [one for one in (self.recordings if of is None else of) if one.encoded == encoded]
            mine += [recordings[i] for i in part_of([r.info.frames for r in recordings], rank, world_size)]
        return mine

    def content_of(self, recording: Recording) -> str:
        """64 hex digits: equal where `whole` gives the same codes."""
        made_with = () if recording.encoded else (self.identity["codec"], self.identity["tokenizer"])
        return _digest_of(
            [recording.digest, recording.transcript_digest, recording.frames, recording.moshi_speaker, *made_with]
        )

    def encode_all(
        self,
        rank: int = 0,
        world_size: int = 1,
        on_recording: OnRecording | None = None,
        of: Sequence[Recording] | None = None,
    ) -> None:
        """Judges every recording and transcript by the rules of `data check`, and fills the cache, so that training
        neither meets what it cannot use nor waits for the codec. Each rank does its part of the recordings, all or
        those of `of`. Problems that are not certain to ruin a recording are warnings; judgements are remembered like
        digests.

        Raises:
            DataError: a recording or transcript that cannot be used.
        """
        mine = [recording for recording in self.part(rank, world_size, of) if not recording.encoded]
        self._judge(mine)
        missing = {r.digest: r.info.frames for r in mine if not self._cache(r).has(r.audio)}
        done, total = 0, sum(missing.values())
        for recording in mine:
            frames, report = missing.pop(recording.digest, 0), None
            if on_recording and frames:
                name, base = recording.audio.name, done

                def report(within: int, _frames: int, name: str = name, base: int = base) -> None:
                    on_recording(name, base + within, total)

            # What is there is read too: a corrupt file is made again now, not in the middle of training.
            self._cache(recording).codes(recording.audio, report)
            done += frames
            if on_recording:
                on_recording(recording.audio.name, done, total)

    def frames_in_cache(self) -> int:
        """Of the audio that `encode_all` of one process finds encoded."""
        audio = [recording for recording in self.recordings if not recording.encoded]
        return sum(recording.info.frames for recording in audio if self._cache(recording).has(recording.audio))

    def _judge(self, recordings: Sequence[Recording]) -> None:
        problems: dict[str, list[Finding]] = {}
        for recording in recordings:
            for finding in judge_recording(recording, self._digests_for(recording.folder)):
                if finding.level == "problem":
                    problems.setdefault(finding.kind, []).append(finding)
        for kind, found in problems.items():
            many = f", and {len(found) - 1} more" if len(found) > 1 else ""
            told = f"{kind}: {found[0].where}: {found[0].message}{many} (`ttt-moshi data check` lists all)"
            if kind in CERTAIN:
                raise DataError(told)
            _log.warning("%s", told)
        self._judge_words(recordings)

    def _judge_words(self, recordings: Sequence[Recording]) -> None:
        """Counts the words that the tokenizer does not know.

        Raises:
            DataError: too many of them.
        """
        if self._tokenizer is None:
            return
        words = [
            word.text
            for recording in recordings
            if recording.transcript is not None
            for word in read_transcript(recording.transcript, recording.moshi_speaker).words
            if word.speaker == MAIN_SPEAKER
        ]
        found = coverage(self._tokenizer, words, self.style)
        if found.foreign:
            raise DataError(f"{found.told}: it is a tokenizer of another language or spelling")
        if found.unknown or found.in_bytes:
            _log.warning("%s", found.told)
        unspaced = sum(map(is_unspaced_text, words))
        if 2 * unspaced > len(words) and not self.style.no_whitespace_before_word:
            _log.warning(
                "%d of %d words of the agent are in a script without spaces, and the model would learn a space before "
                "each: `data.no_whitespace_before_word: true` writes them without",
                unspaced,
                len(words),
            )

    def _read_clip(self, clip: Clip) -> Batch:
        recorded = self._load(clip.recording)
        end = min(clip.start + self.clip_frames, clip.recording.frames, recorded.shape[-1])
        valid = max(0, end - clip.start)
        codes = torch.full((1, self.streams, self.clip_frames), ABSENT)
        codes[0, :, :valid] = recorded[:, clip.start : end]
        given = min(max(0, clip.recording.prefix_frames - clip.start), valid)
        return Batch(codes, [clip.id], torch.tensor([given]), torch.tensor([valid]))

    def _load(self, recording: Recording) -> torch.Tensor:
        """Text, Moshi's codes and the user's `[1 + 2K, T]` of a whole recording."""
        with self._lock:
            if recording.id not in self._loaded:
                self._refuse_a_change(recording)
                if recording.encoded:
                    self._loaded[recording.id] = read_encoded(recording.audio, self._alphabet)
                else:
                    audio = self._sides(recording, self._cache(recording).codes(recording.audio))
                    text = self._text(recording, audio.shape[-1])
                    self._loaded[recording.id] = torch.cat([text[None], audio])
            self._loaded.move_to_end(recording.id)
            if len(self._loaded) > _RECORDINGS_IN_MEMORY:
                self._loaded.popitem(last=False)
            return self._loaded[recording.id]

    def _refuse_a_change(self, recording: Recording) -> None:
        digests = self._digests_for(recording.folder)
        for path, digest in [(recording.audio, recording.digest), (recording.transcript, recording.transcript_digest)]:
            if path is not None and digests.of(path) != digest:
                raise DataError(f"{path} is not what it was when this run began; start again to use the new content")

    def _sides(self, recording: Recording, codes: torch.Tensor) -> torch.Tensor:
        """What the model reads: Moshi's codes and the user's, or those of the voice alone that is written down."""
        if self._alphabet is not None and self._alphabet.sides == 1:
            return codes[len(codes) - 1 if recording.moshi_speaker == "B" else 0]
        if len(codes) == 1:
            # A mono recording is Moshi's voice. Its user is silent, and silence has codes of its own.
            assert self._codec is not None
            return torch.cat([codes[0], self._codec.silence(0, codes.shape[-1])])
        moshi, user = (1, 0) if recording.moshi_speaker == "B" else (0, 1)
        return torch.cat([codes[moshi], codes[user]])

    def _text(self, recording: Recording, frames: int) -> torch.Tensor:
        if recording.transcript is None:
            return torch.from_numpy(absent_row(frames))
        assert self._tokenizer is not None
        transcript = read_transcript(recording.transcript, recording.moshi_speaker)
        return torch.from_numpy(text_row(transcript.words, self._tokenizer, frames, self.style))

    def _cache(self, recording: Recording) -> CodeCache:
        assert self._codec is not None
        folder = self._cache_folder(recording.folder)
        if folder not in self._caches:
            self._caches[folder] = CodeCache(folder, self._codec, self._digests_for(recording.folder))
        return self._caches[folder]

    def _digests_for(self, folder: Path) -> Digests:
        """Where the digests of files named in a jsonl file of this folder are remembered."""
        cache = self._cache_folder(folder)
        return self._digests.setdefault(cache, Digests(cache))

    def _cache_folder(self, folder: Path) -> Path:
        return cache_folder(folder, self._cache_dir)

    def _count_streams(self) -> int:
        """Streams of every recording.

        Raises:
            DataError: a recording has others, or needs the codec or the tokenizer that is not there.
        """
        encoded = [recording.info for recording in self.recordings if isinstance(recording.info, EncodedInfo)]
        if self._alphabet is not None:
            streams = self._alphabet.streams
        elif self._codec is not None:
            streams = 1 + 2 * self._codec.num_codebooks
        else:
            streams = encoded[0].streams if encoded else 0
        for recording in self.recordings:
            if isinstance(recording.info, EncodedInfo):
                if recording.info.streams != streams:
                    raise DataError(
                        f"{recording.audio} has {recording.info.streams} streams, {streams} are needed: "
                        "text, the codebooks of Moshi, the codebooks of the user (speech to text: those that are heard)"
                    )
            elif self._codec is None or self._tokenizer is None:
                raise DataError(f"{recording.audio} is audio: it needs a codec and a tokenizer")
        return streams

    def _identity(self) -> dict[str, object]:
        # Where nothing is encoded here, it does not matter what with.
        codec, tokenizer = self._codec, self._tokenizer
        if all(recording.encoded for recording in self.recordings):
            codec = tokenizer = None
        text = tokenizer and blake3.blake3(tokenizer.serialized_model_proto()).hexdigest()
        if text and self.style != MOSHI_STYLE:
            text += f" {self.style}"
        return {
            "recordings": _digest_of([[_content(r) for r in source.recordings] for source in self.sources]),
            "count": len(self.recordings),
            "weights": [str(source.weight) for source in self.sources],
            "clip_frames": self.clip_frames,
            "codec": codec and codec.fingerprint,
            "tokenizer": text,
        }

    def _warn_of_missing_transcripts(self) -> None:
        missing = [recording for recording in self.recordings if recording.transcript is None and not recording.encoded]
        if missing:
            _warn_once(
                f"{len(missing)} of {len(self.recordings)} recordings have no transcript "
                f"({missing[0].audio.with_suffix('.json')}, ...): their text stream is absent"
            )


def _clip_frames(duration_sec: float) -> int:
    frames = seconds_to_frames(duration_sec)
    if frames < 1:
        raise DataError(f"clips of {duration_sec} s are shorter than one frame (0.08 s)")
    return frames


@cache
def _warn_once(message: str) -> None:
    """In a process: an evaluation opens the same recordings several times."""
    _log.warning(message)


def _content(recording: Recording) -> list[object]:
    return [
        recording.digest,
        recording.transcript_digest,
        recording.frames,
        recording.prefix_frames,
        recording.moshi_speaker,
    ]


def _digest_of(facts: object) -> str:
    return blake3.blake3(json.dumps(facts, sort_keys=True).encode()).hexdigest()
