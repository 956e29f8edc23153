"""Subtitles: SRT and WebVTT."""

from __future__ import annotations

import html
import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby, pairwise

from ttt_moshi.data.formats.plain import split_labels
from ttt_moshi.data.formats.raw import Piece, RawTranscript, clock_seconds

_CLOCK = r"(?:\d+:)?\d{1,2}:\d{2}[.,]\d{1,3}"
_ARROW = re.compile(rf"^\s*({_CLOCK})\s*-->\s*({_CLOCK})(?:\s+[\w-]+:\S+)*\s*$")
_NO_CAPTION = re.compile(r"(?:NOTE|STYLE|REGION)\b")
"""begins a block of WebVTT that says nothing"""
_VOICE = re.compile(r"<v(?:\.[^ >]*)?\s+([^>]+)>")
_INNER = re.compile(rf"<({_CLOCK})>")
_TAG = re.compile(r"</?[A-Za-z][^>]*>|<[\d:.]+>|\{\\[^}]*\}")
_DASH = re.compile(r"\s*[-\u2013\u2014]\s*\w")
_AT_ONCE = 0.1
"""seconds between a caption and the next one that shows its line again"""


@dataclass
class _Cue:
    start: float
    end: float
    lines: list[str]
    goes_on: bool
    """whether some of its lines stand behind an empty one"""

    def shown(self) -> list[str]:
        return [_plain(line) for line in self.lines]


def read_captions(text: str) -> RawTranscript | None:
    """Cues with their times; a voice tag or a label at the beginning of a line is the speaker.

    Times inside of a line are those of the words behind them. Captions that roll, each with the line of the one
    before, say every line once.
    """
    lines = text.split("\n")
    vtt = lines[0].startswith("WEBVTT")
    starts = [number for number, line in enumerate(lines) if _ARROW.match(line)]
    if not vtt and (not starts or starts[0] > 3):
        return None
    cues = [_cue(lines, number, following, vtt) for number, following in pairwise([*starts, len(lines)])]
    dashed = next((cue for cue in cues if sum(bool(_DASH.match(line)) for line in cue.shown()) > 1), None)
    if dashed is not None:
        raise ValueError(
            f"the caption at {dashed.start:.2f} s has a dash for each of several speakers; write their names instead"
        )
    going_on = sum(cue.goes_on for cue in cues)
    remarks = [f"captions that go on after an empty line: {going_on}"] if going_on else []
    remarks += _unroll(cues)
    parts = [part for cue in cues for part in _timed(cue)]
    # Labels are told from words by all lines together.
    labelled = split_labels([_plain(part.body) for part in parts])
    pieces = []
    for part, turns in zip(parts, labelled, strict=True):
        length = sum(len(line) + 1 for _, line in turns) or 1
        at = part.start
        for label, line in turns:
            until = at + (part.end - part.start) * (len(line) + 1) / length
            pieces.append(Piece(line, at, until, part.voice or label))
            at = until
    return RawTranscript("WebVTT" if vtt else "SRT", pieces, remarks=remarks)


def _cue(lines: list[str], number: int, following: int, vtt: bool) -> _Cue:
    """The cue whose times stand in a line, up to those of the following cue.

    Empty lines end a cue, but people and programs write them into its text too; nothing of that is dropped.
    """
    match = _ARROW.match(lines[number])
    assert match is not None
    body = lines[number + 1 : following]
    if following < len(lines):
        body = _without_name(body, numbered=number > 0 and lines[number - 1].strip().isdigit(), vtt=vtt)
    blocks = [list(block) for empty, block in groupby(body, lambda line: line == "") if not empty]
    own, behind = (blocks[:1], blocks[1:]) if body[:1] != [""] else ([], blocks)
    if vtt:
        behind = [block for block in behind if not _NO_CAPTION.match(block[0])]
    shown = [line for block in (*own, *behind) for line in block if line.strip()]
    odd = next((line for line in shown if "-->" in line), None)
    if odd is not None:
        raise ValueError(
            f"the times in `{odd.strip()[:60]}` cannot be read; a line for them is `0:01.000 --> 0:05.000`"
        )
    return _Cue(clock_seconds(match[1]), clock_seconds(match[2]), shown, goes_on=bool(behind))


def _without_name(body: list[str], numbered: bool, vtt: bool) -> list[str]:
    """The lines between the times of two cues without the number, or in WebVTT the name, of the second one."""
    filled = [index for index, line in enumerate(body) if line.strip()]
    if not filled:
        return []
    last = filled[-1]
    alone = last > 0 and not body[last - 1].strip()
    number = body[last].strip().isdigit() and (alone or numbered)
    name = vtt and alone and last == len(body) - 1
    return body[: last if number or name else last + 1]


def _unroll(cues: list[_Cue]) -> list[str]:
    """Takes lines out that the caption before has shown, if more than half of the captions begin with one."""
    repeats = [0] * len(cues)
    for number, (before, cue) in enumerate(pairwise(cues), 1):
        shown, lines = before.shown(), cue.shown()
        if cue.start - before.end <= _AT_ONCE:
            lengths = range(min(len(shown), len(lines)), 0, -1)
            repeats[number] = next((n for n in lengths if lines[:n] == shown[-n:]), 0)
    if 2 * sum(map(bool, repeats)) <= max(1, len(cues) - 1):
        return []
    for cue, count in zip(cues, repeats, strict=True):
        cue.lines = cue.lines[count:]
    return [f"{sum(repeats)} lines that are shown again by the next caption, left out"]


@dataclass
class _Part:
    """What of a caption has a voice and times of its own."""

    voice: str | None
    start: float
    end: float
    body: str


def _timed(cue: _Cue) -> Iterator[_Part]:
    body = "\n".join(cue.lines)
    voices = _VOICE.split(body)
    parts: list[tuple[str | None, str]] = [(None, voices[0])] if voices[0].strip() else []
    parts += [(name.strip(), part) for name, part in zip(voices[1::2], voices[2::2], strict=True)]
    if not _INNER.search(body):
        length = sum(len(part) + 1 for _, part in parts) or 1
        at = cue.start
        for voice, part in parts:
            until = at + (cue.end - cue.start) * (len(part) + 1) / length
            yield _Part(voice, at, until, part)
            at = until
        return
    found: list[_Part] = []
    at = cue.start
    for voice, part in parts:
        for number, text in enumerate(_INNER.split(part)):
            if number % 2:
                at = clock_seconds(text)
            elif _plain(text).strip():
                found.append(_Part(voice, at, cue.end, text))
    for part_before, part_after in pairwise(found):
        part_before.end = part_after.start
    yield from found


def _plain(text: str) -> str:
    """The words of a line without markup."""
    return html.unescape(_TAG.sub("", text)).strip()
