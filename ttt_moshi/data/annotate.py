"""Transcripts with word times for recordings that have none, written beside them."""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ttt_moshi.data.audio import AUDIO_SUFFIXES, files_below, read_blocks, read_info
from ttt_moshi.data.errors import DataError
from ttt_moshi.data.parts import part_of
from ttt_moshi.data.recognisers import Recogniser
from ttt_moshi.data.transcripts import find_transcript, require_short_name, transcript_path
from ttt_moshi.data.voiced import HOP, EnergyMeter, voiced_spans
from ttt_moshi.data.words import TimedWord
from ttt_moshi.files import read_bytes, write_atomically
from ttt_moshi.frames import SAMPLE_RATE

OnFile = Callable[[str, int, int], None]
"""called while a recording is heard, with its name and how far it is, how many are done and how many there are"""

PIECE_SECONDS = 600.0
"""a recogniser hears at most so much at once, which bounds its memory"""
_PAUSE_HOPS = 25
"""pieces end in the middle of the quietest half second"""

_SPEAKERS = ("A", "B")
_LEXEME = re.compile(rb"^LEXEME\s", re.MULTILINE)
"""a word in an RTTM, once the zeros of UTF-16 are gone"""


@dataclass
class Annotated:
    """What became of one recording."""

    source: str
    """relative to the folder"""
    seconds: float = 0.0
    words: dict[str, int] = field(default_factory=dict)
    """by speaker: A is the first channel"""
    languages: dict[str, str] = field(default_factory=dict)
    """by speaker"""
    there: str | None = None
    """the transcript that was there before, so that nothing was done"""
    left_out: str | None = None
    """why there is none"""


def annotate(
    folder: Path,
    recogniser: Recogniser,
    *,
    language: str | None = None,
    channels: tuple[int, ...] | None = None,
    shard: tuple[int, int] = (1, 1),
    overwrite: bool = False,
    on_file: OnFile | None = None,
) -> Iterator[Annotated]:
    """Writes `NAME.json` beside every recording below `folder` that has no transcript, one recording after the other.

    Each channel is heard by itself. A file is written in one piece when its recording is done, so that an interrupted
    call goes on where it was. What cannot be read is told and costs no other.

    Args:
        language: code of the language spoken, such as `en`; None finds one for each channel.
        channels: numbers from 1 of the channels that are heard; None takes those of mono and stereo recordings.
        shard: which part of how many, from 1: parts share no recording and are about equally large.
        overwrite: whether transcripts that are there are made again; those in other formats stay beside the new ones.

    Raises:
        DataError: no recordings.
        OSError: a transcript cannot be written.
    """
    files = recordings_below(folder)
    mine = [files[i] for i in part_of([file.stat().st_size for file in files], shard[0] - 1, shard[1])]
    for done, file in enumerate(mine):

        def on_seconds(seconds: float, name: str = file.relative_to(folder).as_posix(), done: int = done) -> None:
            if on_file:
                on_file(f"{name} {seconds:.0f} s", done, len(mine))

        yield annotate_one(folder, file, recogniser, language, channels, overwrite, on_seconds)


def recordings_below(folder: Path) -> list[Path]:
    """Every file below a folder that is named like a recording.

    Raises:
        DataError: there is none.
    """
    if not folder.is_dir():
        raise DataError(f"no folder of recordings at {folder}")
    files = [file for file in files_below(folder) if file.suffix.lower() in AUDIO_SUFFIXES and file.is_file()]
    if not files:
        raise DataError(f"{folder} holds no recordings ({', '.join(AUDIO_SUFFIXES)})")
    return files


def annotate_one(
    folder: Path,
    file: Path,
    recogniser: Recogniser,
    language: str | None,
    channels: tuple[int, ...] | None,
    overwrite: bool,
    on_seconds: Callable[[float], None],
) -> Annotated:
    """`annotate` for one of the recordings below `folder`; `on_seconds` is called with how far it is.

    Raises:
        OSError: the transcript cannot be written.
    """
    outcome = Annotated(file.relative_to(folder).as_posix())
    try:
        there = _words_beside(file)
        if there is not None and not overwrite:
            outcome.there = there.name
            return outcome
        require_short_name(file)
        info = read_info(file)
        outcome.seconds = info.seconds
        chosen = _channels(info.channels, channels)
        segments = [_hear(file, channel, recogniser, language, on_seconds) for channel in chosen]
    except DataError as error:
        outcome.left_out = str(error).removeprefix(str(file)).lstrip(": ").replace(f"{file.parent}{os.sep}", "")
        return outcome
    except Exception as error:  # noqa: BLE001 - one file that nobody thought of must not cost all the others
        outcome.left_out = f"unexpected {type(error).__name__}: {' '.join(str(error).split())}"
        return outcome
    for speaker, (found, spoken) in zip(_SPEAKERS, segments, strict=False):
        outcome.words[speaker] = len(found)
        if spoken is not None:
            outcome.languages[speaker] = spoken
    write_atomically(transcript_path(file), _transcript(outcome, [found for found, _ in segments], recogniser.facts))
    return outcome


def _words_beside(file: Path) -> Path | None:
    """The transcript beside a recording. A diarizer's RTTM, which says who speaks when and has no words, is none."""
    found = find_transcript(file)
    if found is None or found.suffix != ".rttm" or _LEXEME.search(read_bytes(found).replace(b"\0", b"")):
        return found
    return find_transcript(file, but=found)


def _channels(there: int, channels: tuple[int, ...] | None) -> tuple[int, ...]:
    """Which of them are heard, from 0; the one that comes first in the file is A, as `data prepare` has it."""
    if channels is None:
        if there > 2:
            raise DataError(f"{there} channels: `--channels 1,2` says which are heard")
        return tuple(range(there))
    if max(channels) > there:
        raise DataError(f"there is no channel {max(channels)}, it has {there}")
    return tuple(number - 1 for number in sorted(channels))


def _hear(
    file: Path, channel: int, recogniser: Recogniser, language: str | None, on_seconds: Callable[[float], None]
) -> tuple[list[TimedWord], str | None]:
    """The words of one channel and its language: that of its first piece with words."""
    words: list[TimedWord] = []
    for start, samples in pieces(block[channel] for block in read_blocks(file)):
        on_seconds(start)
        if not _is_voiced(samples):
            continue
        heard = recogniser.hear(samples, language)
        language = heard.language if heard.words else language
        words += [
            TimedWord(word.text, round(start + word.start, 3), round(start + word.end, 3)) for word in heard.words
        ]
    return words, language if words else None


def pieces(blocks: Iterable[np.ndarray], seconds: float = PIECE_SECONDS) -> Iterator[tuple[float, np.ndarray]]:
    """One channel in pieces of at most so many seconds, each with its start; they end in pauses.

    Args:
        blocks: consecutive float32 `[any length]` at 24 kHz.
    """
    longest, start = round(seconds * SAMPLE_RATE), 0
    waiting: np.ndarray = np.zeros(0, np.float32)
    for block in blocks:
        waiting = np.concatenate([waiting, block])
        while len(waiting) > longest:
            cut = _quietest(waiting[:longest])
            yield start / SAMPLE_RATE, waiting[:cut]
            start, waiting = start + cut, waiting[cut:]
    if len(waiting):
        yield start / SAMPLE_RATE, waiting


def _quietest(samples: np.ndarray) -> int:
    """The sample in the middle of the quietest half second of the last quarter."""
    tail = samples[len(samples) * 3 // 4 :]
    hops = tail[: len(tail) // HOP * HOP].reshape(-1, HOP)
    energies = np.convolve(np.square(hops, dtype=np.float64).mean(axis=1), np.ones(_PAUSE_HOPS), "valid")
    return len(samples) - len(tail) + (int(energies.argmin()) + _PAUSE_HOPS // 2) * HOP


def _is_voiced(samples: np.ndarray) -> bool:
    meter = EnergyMeter(1)
    meter.add(samples[None])
    return bool(voiced_spans(meter.decibels()[0]))


def _transcript(outcome: Annotated, channels: Sequence[list[TimedWord]], facts: dict[str, str]) -> bytes:
    """In Whisper's layout, a segment a channel; speakers have names where there are two."""
    segments: list[dict[str, object]] = []
    for speaker, words in zip(_SPEAKERS, channels, strict=False):
        segment: dict[str, object] = {"speaker": speaker} if len(channels) == 2 else {}
        if speaker in outcome.languages:
            segment["language"] = outcome.languages[speaker]
        segment["words"] = [{"word": word.text, "start": word.start, "end": word.end} for word in words]
        segments.append(segment)
    heard = Counter({who: outcome.words[who] for who in outcome.languages}).most_common(1)
    document = {"language": outcome.languages[heard[0][0]] if heard else None, "annotated_by": facts}
    return json.dumps({**document, "segments": segments}, ensure_ascii=False, indent=1).encode() + b"\n"
