"""Parts of a data set to listen to, with everything that is drawn of them."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import soundfile

from ttt_moshi.data.audio import read_blocks, read_info
from ttt_moshi.data.interleaver import ABSENT, TextStyle, absent_row, text_row
from ttt_moshi.data.listen import moshi_first
from ttt_moshi.data.report.measure import Measured
from ttt_moshi.data.sources import Line
from ttt_moshi.data.transcripts import MAIN_SPEAKER, Word, read_transcript, transcript_path
from ttt_moshi.data.unspaced import WORD_START, Tokenizer
from ttt_moshi.frames import FRAME_SIZE, SAMPLE_RATE, frames_to_seconds, seconds_to_frames

CLIP_SECONDS = 12.0
PIXELS_A_SECOND = 200
_COLUMN = SAMPLE_RATE // 50
"""samples a column of a waveform"""


@dataclass(frozen=True)
class Said:
    """A word and where it stands, in pixels."""

    text: str
    left: int
    width: int


@dataclass(frozen=True)
class Token:
    """What the model gets in one frame."""

    kind: str
    """word, pad, epad or absent"""
    text: str
    id: int


@dataclass(frozen=True)
class Clip:
    """A part of a recording as it is shown."""

    name: str
    start: float
    """seconds"""
    seconds: float
    audio: str
    """base64 of an mp3 file, Moshi left"""
    waves: tuple[str, ...]
    """outlines of Moshi's and the user's channel: points of a polygon between -1 and 1, 50 a second"""
    words: tuple[tuple[Said, ...], ...]
    tokens: tuple[Token, ...]
    """empty without a tokenizer"""
    has_transcript: bool
    """whether there is one that can be read"""


def choose(recordings: Sequence[Measured], count: int) -> list[tuple[Measured, float, float]]:
    """`count` parts `(recording, start, seconds)` that lie evenly over all the audio, fewer where they would overlap or
    where there is no audio.
    """
    total = sum(recording.seconds for recording in recordings)
    if not total:
        return []
    count = max(1, min(count, int(total / CLIP_SECONDS)))
    ends = np.cumsum([recording.seconds for recording in recordings])
    chosen: dict[tuple[int, float], tuple[Measured, float, float]] = {}
    for middle in (np.arange(count) + 0.5) * total / count:
        index = int(np.searchsorted(ends, middle, side="right"))
        recording = recordings[index]
        inside = middle - (ends[index] - recording.seconds)
        start = max(0.0, min(float(inside) - CLIP_SECONDS / 2, recording.seconds - CLIP_SECONDS))
        start = frames_to_seconds(int(start * SAMPLE_RATE) // FRAME_SIZE)
        chosen[index, start] = (recording, start, min(CLIP_SECONDS, recording.seconds - start))
    return list(chosen.values())


def cut(recording: Measured, start: float, seconds: float, tokenizer: Tokenizer | None, style: TextStyle) -> Clip:
    """A part of a recording.

    Raises:
        DataError: a recording or transcript that could be measured and cannot be read any more.
    """
    line, told = recording.line, recording.has_transcript
    info = read_info(line.audio)
    samples = _samples(line, moshi_first(info.channels, line.moshi_speaker), start, seconds)  # [channels, n]
    words = read_transcript(transcript_path(line.audio), line.moshi_speaker).words if told else ()
    tokens: tuple[Token, ...] = ()
    if tokenizer is not None:
        row = text_row(words, tokenizer, info.frames, style) if told else absent_row(info.frames)
        first = seconds_to_frames(start)
        tokens = tuple(_token(id, tokenizer, style) for id in row[first : first + seconds_to_frames(seconds)].tolist())
    return Clip(
        line.path,
        start,
        samples.shape[1] / SAMPLE_RATE,
        _mp3(samples),
        tuple(_outline(channel) for channel in samples),
        tuple(tuple(_said(words, moshi, start, seconds)) for moshi in (True, False)),
        tokens,
        told,
    )


def _samples(line: Line, order: Sequence[int], start: float, seconds: float) -> np.ndarray:
    """Float32 `[channels, n]`, Moshi's channel first."""
    begin, end = round(start * SAMPLE_RATE), round((start + seconds) * SAMPLE_RATE)
    found: list[np.ndarray] = []
    at = 0
    for block in read_blocks(line.audio):
        found.append(block[list(order), max(0, begin - at) : max(0, end - at)])
        at += block.shape[1]
        if at >= end:
            break
    return np.concatenate(found, axis=1)


def _mp3(samples: np.ndarray) -> str:
    both = np.stack([samples[0], samples[1] if len(samples) == 2 else np.zeros_like(samples[0])], axis=1)
    file = io.BytesIO()
    soundfile.write(
        file, np.clip(both, -1, 1), SAMPLE_RATE, format="MP3", subtype="MPEG_LAYER_III", compression_level=0.9
    )
    return base64.b64encode(file.getvalue()).decode()


def _outline(channel: np.ndarray) -> str:
    """Largest samples above, smallest below, as loud as the clip's loudest."""
    columns = np.pad(channel, (0, -len(channel) % _COLUMN)).reshape(-1, _COLUMN) / max(1e-3, np.abs(channel).max())
    above = [f"{x},{-y:.2f}" for x, y in enumerate(columns.max(axis=1).tolist())]
    below = [f"{x},{-y:.2f}" for x, y in enumerate(columns.min(axis=1).tolist())]
    return " ".join(above + below[::-1])


def _said(words: Sequence[Word], moshi: bool, start: float, seconds: float) -> Iterator[Said]:
    for word in words:
        if (word.speaker == MAIN_SPEAKER) == moshi and start <= word.start < start + seconds:
            left = round((word.start - start) * PIXELS_A_SECOND)
            yield Said(word.text, left, max(2, round((word.end - word.start) * PIXELS_A_SECOND)))


def _token(id: int, tokenizer: Tokenizer, style: TextStyle) -> Token:
    if id == ABSENT:
        return Token("absent", "", id)
    if id in (style.pad, style.epad):
        return Token("pad" if id == style.pad else "epad", "", id)
    return Token("word", tokenizer.id_to_piece(id).replace(WORD_START, " "), id)
