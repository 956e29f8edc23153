"""Transcripts with word times, in the two layouts that fine-tuning data sets of Moshi come in.

`{"alignments": [[word, [start, end], speaker], ...]}` is moshi-finetune's; Moshi's words carry the speaker
`SPEAKER_MAIN` and its voice is the left channel. `[{"speaker": "A", "word", "start", "end"}, ...]` is that of
nu-dialogue/moshi-finetune; speaker A is the left channel, B the right one, and either of them may be Moshi.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ttt_moshi.data.errors import DataError

MAIN_SPEAKER = "SPEAKER_MAIN"
OTHER_SPEAKER = "SPEAKER_OTHER"

MoshiSpeaker = Literal["A", "B"]
Layout = Literal["alignments", "speakers"]


@dataclass(frozen=True)
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
    layout: Layout
    approximate: bool = False
    """whether the times were guessed from the sound rather than measured"""


def transcript_path(audio: Path) -> Path:
    """Where the transcript of a recording lies: beside it, ending in `.json`."""
    return audio.with_suffix(".json")


def read_transcript(path: Path, moshi_speaker: MoshiSpeaker = "A") -> Transcript:
    """Reads either layout.

    Words are put in the order of their start times (ties keep the file's order). `moshi_speaker` says who Moshi is in
    the layout with speakers A and B and has no meaning in the other one.

    Raises:
        DataError: a missing or corrupt file, or a word without text or with a negative or infinite time. A word that
            does not end after its start is kept here and left out of the text stream.
    """
    document = _read_json(path)
    if isinstance(document, dict) and isinstance(document.get("alignments"), list):
        words = [_aligned_word(path, i, item) for i, item in enumerate(document["alignments"])]
        approximate = document.get("word_times") == "approximate"
        return Transcript(_by_start(words), "alignments", approximate)
    if isinstance(document, list):
        words = [_speaker_word(path, i, item, moshi_speaker) for i, item in enumerate(document)]
        return Transcript(_by_start(words), "speakers")
    raise DataError(
        f'{path} is no transcript: expected {{"alignments": [[word, [start, end], speaker], ...]}} '
        'or [{"speaker", "word", "start", "end"}, ...]'
    )


def alignments(words: tuple[Word, ...]) -> list[list[Any]]:
    """The words as moshi-finetune's `alignments`."""
    return [[word.text, [word.start, word.end], word.speaker] for word in words]


def _read_json(path: Path) -> Any:
    if not path.is_file():
        raise DataError(f"no transcript at {path}")
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise DataError(f"{path} is not valid JSON: {error}") from error


def _aligned_word(path: Path, index: int, item: Any) -> Word:
    try:
        text, (start, end), speaker = item
    except (TypeError, ValueError) as error:
        raise DataError(f"{path}: alignment {index} is not [word, [start, end], speaker]: {item!r}") from error
    return _word(path, index, text, start, end, speaker)


def _speaker_word(path: Path, index: int, item: Any, moshi_speaker: MoshiSpeaker) -> Word:
    try:
        text, start, end, speaker = item["word"], item["start"], item["end"], item["speaker"]
    except (TypeError, KeyError) as error:
        raise DataError(f"{path}: entry {index} lacks one of speaker, word, start, end: {item!r}") from error
    if speaker not in ("A", "B"):
        raise DataError(f"{path}: word {index} has speaker {speaker!r}; this layout knows A (left) and B (right)")
    return _word(path, index, text, start, end, MAIN_SPEAKER if speaker == moshi_speaker else OTHER_SPEAKER)


def _word(path: Path, index: int, text: Any, start: Any, end: Any, speaker: Any) -> Word:
    if not isinstance(text, str) or not isinstance(speaker, str):
        raise DataError(f"{path}: word {index} needs a text and a speaker, got {text!r} and {speaker!r}")
    if not (_is_time(start) and _is_time(end)):
        raise DataError(
            f"{path}: word {index} ({text!r}) has the times [{start!r}, {end!r}]; "
            "they must be seconds from the start of the recording"
        )
    # Line breaks and runs of spaces inside a word say nothing about speech.
    return Word(" ".join(text.split()), float(start), float(end), speaker)


def _is_time(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value) and value >= 0


def _by_start(words: list[Word]) -> tuple[Word, ...]:
    return tuple(sorted(words, key=lambda word: word.start))
