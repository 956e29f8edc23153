"""Transcripts of every format as words with times, of which some are Moshi's.

Whatever a file lacks is mended word by word and counted; which speaker is the agent is never guessed.
"""

from __future__ import annotations

import os
import re
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import islice, pairwise, takewhile
from pathlib import Path
from typing import Any, Literal

from ttt_moshi.data.errors import DataError
from ttt_moshi.data.formats import SUFFIXES, Piece, RawTranscript, read_raw
from ttt_moshi.data.remote import is_there
from ttt_moshi.data.unspaced import is_unspaced_text, split_words

MAIN_SPEAKER = "SPEAKER_MAIN"
OTHER_SPEAKER = "SPEAKER_OTHER"

MoshiSpeaker = Literal["A", "B"]

_SOUNDS = (
    r"(?:laugh(?:s|ter|ing)?|chuckl(?:es?|ing)|cough(?:s|ing)?|sigh(?:s|ing)?|sniff(?:s|ing)?|breath(?:s|es|ing)?|inhales?|exhales?|"
    r"crying|cries|applause|music|noise|silence|pause|beep|crosstalk|inaudible|unintelligible|unclear|indistinct)"
)
# Brackets, tags and braces hold no speech; round ones and stars do, unless they name a sound.
_MARK = re.compile(
    rf"\[[^\]]*\]|<[^>]*>|\{{[^}}]*\}}|♪|\(+\s*{_SOUNDS}\s*\)+|\*{_SOUNDS}\*|(?<!\S)%[a-z]+\b", re.IGNORECASE
)
_SECONDS_A_LETTER = 0.07
_SLIGHTLY_NEGATIVE = -1.0
_LONGEST_UNSPACED_WORD = 8
_LONGEST_NAME = 255
"""bytes, on the file systems that people have"""


@dataclass(frozen=True, slots=True)
class Word:
    """One spoken word; times in seconds from the start of the recording."""

    text: str
    start: float
    end: float
    speaker: str


@dataclass(frozen=True)
class Transcript:
    """The words of a recording, ordered by start time. Moshi's carry `MAIN_SPEAKER`."""

    words: tuple[Word, ...]
    format: str
    approximate: bool = False
    """whether the times were guessed from the audio, or from longer stretches, rather than measured"""
    repairs: dict[str, int] = field(default_factory=dict)
    """what was mended, with the number of words"""
    remarks: tuple[str, ...] = ()
    """what else had to be decided, for people"""
    language: str | None = None
    """where the file names it"""

    @property
    def repaired_share(self) -> float:
        """Share of the words whose time was missing or impossible."""
        count = sum(number for what, number in self.repairs.items() if what in _TIME_REPAIRS)
        dropped = self.repairs.get(DROPPED, 0)
        return count / max(1, len(self.words) + dropped)


@dataclass(frozen=True)
class Untimed:
    """`(speaker, word)` in the order of a transcript without any times."""

    pairs: list[tuple[str, str]]
    remarks: tuple[str, ...] = ()


_FILLED = "without times, placed between their neighbours"
_MOVED = "with negative times, moved to the beginning"
DROPPED = "with impossible times, left out"
_TEXTUAL = "with times written as text"
_BACKWARDS = "ending before their beginning, given a length"
ENDLESS = "ending far after the recording, given a length"
_MARKS = "taken for marks such as [laughter], left out"
_UNASSIGNED = "without a speaker, given to the one before"
_TIME_REPAIRS = (_FILLED, _MOVED, DROPPED, _BACKWARDS, ENDLESS)


def transcript_path(audio: Path) -> Path:
    """Where training looks for the transcript of a recording: beside it, ending in `.json`."""
    return audio.with_suffix(".json")


def find_transcript(audio: Path, but: Path | None = None) -> Path | None:
    """The transcript beside a recording of somebody's own: the most exact of those that are there, `but` one."""
    candidates = [audio.with_suffix(suffix) for suffix in SUFFIXES]
    candidates += [audio.with_name(audio.name + suffix) for suffix in SUFFIXES]
    candidates = [path for path in candidates if path != but and len(os.fsencode(path.name)) <= _LONGEST_NAME]
    return next(filter(is_there, candidates), None)


def require_short_name(audio: Path) -> None:
    """Raises DataError for a recording whose name leaves no room for that of its transcript."""
    if len(os.fsencode(transcript_path(audio).name)) > _LONGEST_NAME:
        raise DataError("its name is too long for a transcript beside it: give it a shorter one")


def read_transcript(path: Path, moshi_speaker: MoshiSpeaker = "A", moshi_label: str | None = None) -> Transcript:
    """Reads any format in which words, or stretches of them, have times.

    Words are put in the order of their start times (ties keep the file's order).

    Args:
        moshi_speaker: which speaker is the agent where the speakers are A (left) and B (right).
        moshi_label: the name of the agent, which goes before everything else where the file has it.

    Raises:
        DataError: a missing or corrupt file, one without times, or speakers of whom none is known to be Moshi.
    """
    found = read_any(path, moshi_speaker, moshi_label)
    if isinstance(found, Untimed):
        raise DataError(f"{path} has words without times; `ttt-moshi data prepare` places them by the audio")
    return found


def read_any(
    path: Path, moshi_speaker: MoshiSpeaker | None = "A", moshi_label: str | None = None
) -> Transcript | Untimed:
    """`read_transcript` for formats without times too. With `moshi_speaker` None, A and B are names like any others.

    Raises:
        DataError: see `read_transcript`.
    """
    raw = read_raw(path)
    repairs: Counter[str] = Counter()
    speakers = _speakers(path, raw, moshi_speaker, moshi_label, repairs)
    texts = [_clean(piece.text, repairs) for piece in raw.pieces]
    spoken = [(piece, text, who) for piece, text, who in zip(raw.pieces, texts, speakers, strict=True) if text]
    if not raw.timed:
        pairs = [(who, word) for _, text, who in spoken for word in split_words(text)]
        if not pairs:
            raise DataError(f"{path} holds no words")
        return Untimed(pairs, (*raw.remarks, *_told(repairs)))
    words, spread = [], False
    for text, who, start, end in _with_times(spoken, repairs, measured=raw.format != "plain text"):
        parts = [text] if raw.format == "alignments" else _words_of(text)
        spread |= len(parts) > 3
        words += _spread(parts, start, end, who)
    approximate = raw.approximate or spread or raw.format == "plain text"
    return Transcript(_by_start(words), raw.format, approximate, dict(repairs), tuple(raw.remarks), raw.language)


def _words_of(text: str) -> list[str]:
    """The words that share a time. A script without spaces has words too, which some formats give one by one."""
    if is_unspaced_text(text) and len(text) <= _LONGEST_UNSPACED_WORD:
        return [text]
    return split_words(text)


def alignments(words: tuple[Word, ...]) -> list[list[Any]]:
    """The words as moshi-finetune's `alignments`."""
    return [[word.text, [word.start, word.end], word.speaker] for word in words]


def told_repairs(repairs: dict[str, int]) -> list[str]:
    """Repairs for people."""
    return _told(repairs)


def speakers_of(path: Path) -> list[str]:
    """The speakers that a transcript names, each once.

    Raises:
        DataError: see `read_transcript`.
    """
    return sorted(_labels(read_raw(path)).values())


def _told(repairs: dict[str, int]) -> list[str]:
    return [f"{count} {'word' if count == 1 else 'words'} {what}" for what, count in repairs.items()]


def _clean(text: str, repairs: Counter[str]) -> str:
    """One space between words, and no marks of what is not speech."""
    text, marks = _MARK.subn(" ", text)
    if marks:
        repairs[_MARKS] += marks
    return " ".join(text.split())


def _labels(raw: RawTranscript) -> dict[str, str]:
    """The speakers of a file by their names in small letters."""
    return {piece.speaker.casefold(): piece.speaker for piece in raw.pieces if piece.speaker is not None}


def _speakers(
    path: Path, raw: RawTranscript, moshi_speaker: MoshiSpeaker | None, moshi_label: str | None, repairs: Counter[str]
) -> list[str]:
    """Of every piece `MAIN_SPEAKER` or another name."""
    labels = _labels(raw)
    if not labels:
        return [MAIN_SPEAKER] * len(raw.pieces)
    if moshi_label is not None and moshi_label.casefold() in labels:
        moshi = moshi_label.casefold()
    elif labels.keys() <= {MAIN_SPEAKER.casefold(), OTHER_SPEAKER.casefold()} or MAIN_SPEAKER in labels.values():
        moshi = MAIN_SPEAKER.casefold()
    elif moshi_speaker is not None and labels.keys() <= {"a", "b"}:
        moshi = moshi_speaker.casefold()
    else:
        names = ", ".join(sorted(labels.values()))
        told = f", none of them is {moshi_label}" if moshi_label is not None else ""
        raise DataError(
            f"{path} has the speakers {names}{told}: `ttt-moshi data prepare --moshi_label NAME` says who is Moshi"
        )
    speakers: list[str] = []
    for index, piece in enumerate(raw.pieces):
        if piece.speaker is not None:
            main = piece.speaker.casefold() == moshi
            named = raw.format == "alignments" and piece.speaker.casefold() != MAIN_SPEAKER.casefold()
            speakers.append(MAIN_SPEAKER if main else piece.speaker if named else OTHER_SPEAKER)
        elif raw.format == "plain text" and not speakers:
            speakers.append(MAIN_SPEAKER)  # a text that begins without a label begins with Moshi
        else:
            repairs[_UNASSIGNED] += 1
            following = next(p.speaker for p in [*raw.pieces[index:], *raw.pieces] if p.speaker is not None)
            ahead = MAIN_SPEAKER if following.casefold() == moshi else OTHER_SPEAKER
            speakers.append(speakers[-1] if speakers else ahead)
    return speakers


def _with_times(
    spoken: Sequence[tuple[Piece, str, str]], repairs: Counter[str], measured: bool
) -> list[tuple[str, str, float, float]]:
    """`(text, speaker, start, end)` of what has a time or can be given one."""
    entries: list[list[Any]] = []
    for piece, text, who in spoken:
        start, end = _time(piece.start), _time(piece.end)
        if isinstance(piece.start, str) and start is not None:
            repairs[_TEXTUAL] += 1
        if start is not None and start < 0:
            if start < _SLIGHTLY_NEGATIVE or (end is not None and end <= 0):
                repairs[DROPPED] += 1
                continue
            start = 0.0
            repairs[_MOVED] += 1
        if start is not None and end is not None and end < start:
            end = None
            repairs[_BACKWARDS] += 1
        elif end is not None and start is None:
            start = max(0.0, end - seconds_to_say(text)) if end > 0 else None
            end = None if start is None else end
            if start is not None:
                repairs[_FILLED] += 1
        elif start is None or (end is None and measured):
            repairs[_FILLED] += 1
        entries.append([text, who, start, end])
    _fill(entries)
    return [(text, who, start, end) for text, who, start, end in entries]


def _fill(entries: list[list[Any]]) -> None:
    """Gives `[text, speaker, start, end]` what times are missing: the gap between the neighbours, shared by letters."""
    known_after, nearest = [None] * len(entries), None  # the next start that is known, of each entry
    for place in reversed(range(len(entries))):
        known_after[place] = nearest
        nearest = nearest if entries[place][2] is None else entries[place][2]
    index = 0
    while index < len(entries):
        text, _, start, end = entries[index]
        following = known_after[index]
        if start is not None:
            if end is None:
                guess = start + seconds_to_say(text)
                entries[index][3] = guess if following is None or following <= start else min(guess, following)
            index += 1
            continue
        run = list(takewhile(lambda entry: entry[2] is None, islice(entries, index, None)))
        before = entries[index - 1][3] if index else None
        wanted = sum(seconds_to_say(entry[0]) for entry in run)
        if before is None:
            before = max(0.0, (following if following is not None else wanted) - wanted)
        after = before + wanted if following is None or following <= before else following
        at = before
        for entry in run:
            entry[2] = at
            at += (after - before) * seconds_to_say(entry[0]) / wanted
            entry[3] = at
        index += len(run)


def _spread(parts: Sequence[str], start: float, end: float, who: str) -> list[Word]:
    """Words that share a time, in proportion to their letters."""
    if len(parts) == 1:
        return [Word(parts[0], start, end, who)]
    edges = [0]
    for part in parts:
        edges.append(edges[-1] + len(part) + 1)
    times = [round(start + (end - start) * edge / edges[-1], 3) for edge in edges]
    return [Word(part, a, b, who) for part, (a, b) in zip(parts, pairwise(times), strict=True)]


def _time(value: Any) -> float | None:
    """A number of seconds, or None for what is none."""
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            return None
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    # A whole number may be larger than any float.
    return float(value) if abs(value) <= sys.float_info.max else None


def seconds_to_say(text: str) -> float:
    """How long something takes to say, roughly."""
    return _SECONDS_A_LETTER * (len(text) + 1)


def _by_start(words: Iterable[Word]) -> tuple[Word, ...]:
    return tuple(sorted(words, key=lambda word: word.start))
