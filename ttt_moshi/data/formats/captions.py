"""Subtitles: SRT and WebVTT."""

from __future__ import annotations

import re

from ttt_moshi.data.formats.plain import split_labels
from ttt_moshi.data.formats.raw import Piece, RawTranscript, clock_seconds

_CLOCK = r"(?:\d+:)?\d{1,2}:\d{2}[.,]\d{1,3}"
_ARROW = re.compile(rf"^\s*({_CLOCK})\s*-->\s*({_CLOCK})(?:\s.*)?$")
_VOICE = re.compile(r"<v(?:\.[^ >]*)?\s+([^>]+)>")
_TAG = re.compile(r"</?[A-Za-z][^>]*>|<[\d:.]+>|\{\\[^}]*\}")


def read_captions(text: str) -> RawTranscript | None:
    """Cues with their times; a voice tag or a label at the beginning of a line is the speaker."""
    lines = text.split("\n")
    vtt = lines[0].startswith("WEBVTT")
    starts = [number for number, line in enumerate(lines) if _ARROW.match(line)]
    if not vtt and (not starts or starts[0] > 3):
        return None
    cues: list[tuple[float, float, str]] = []
    for number in starts:
        match = _ARROW.match(lines[number])
        assert match is not None
        body = []
        for line in lines[number + 1 :]:
            if not line.strip():
                break
            body.append(line)
        cues.append((clock_seconds(match[1]), clock_seconds(match[2]), "\n".join(body)))
    pieces = []
    voices = [(start, end, [(voice, _plain(part)) for voice, part in _voices(body)]) for start, end, body in cues]
    labelled = split_labels([part for _, _, parts in voices for _, part in parts])
    said = iter(labelled)
    for start, end, parts in voices:
        turns = [(voice or label, line) for voice, _ in parts for label, line in next(said)]
        length = sum(len(line) + 1 for _, line in turns) or 1
        at = start
        for speaker, line in turns:
            until = at + (end - start) * (len(line) + 1) / length
            pieces.append(Piece(line, at, until, speaker))
            at = until
    return RawTranscript("WebVTT" if vtt else "SRT", pieces)


def _voices(body: str) -> list[tuple[str | None, str]]:
    """The parts of a cue by `<v Name>`."""
    parts = _VOICE.split(body)
    found: list[tuple[str | None, str]] = [(None, parts[0])] if parts[0].strip() else []
    return found + [(name.strip(), part) for name, part in zip(parts[1::2], parts[2::2], strict=True)]


def _plain(text: str) -> str:
    return _TAG.sub("", text)
