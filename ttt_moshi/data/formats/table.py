"""Readers of transcripts, one per format, chosen by content and never by a file's name.

A new format is a function that gives None for what is not its own and raises ValueError for what is broken, and a line
in one of the two tables.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

from ttt_moshi.data.errors import DataError, PassingError
from ttt_moshi.data.formats.annotations import read_ctm, read_elan, read_rttm, read_textgrid
from ttt_moshi.data.formats.captions import read_captions
from ttt_moshi.data.formats.json_layouts import (
    read_alignments,
    read_aws,
    read_deepgram,
    read_speakers,
    read_whisper,
    read_whisper_cpp,
    read_words,
)
from ttt_moshi.data.formats.plain import read_plain
from ttt_moshi.data.formats.raw import RawTranscript, decode
from ttt_moshi.data.remote import local
from ttt_moshi.files import read_bytes

JSON_READERS = (
    read_alignments, read_whisper, read_whisper_cpp, read_deepgram, read_aws, read_words, read_speakers,
)  # fmt: skip
TEXT_READERS = (read_captions, read_textgrid, read_elan, read_rttm, read_ctm)
PLAIN_SUFFIXES = (".txt",)
"""what everything could be, nothing is taken for unless its name says so"""

_EXACT_FIRST = (".json", ".TextGrid", ".eaf", ".ctm", ".rttm", ".vtt", ".srt", ".txt")
SUFFIXES = tuple(dict.fromkeys(form for name in _EXACT_FIRST for form in (name, name.lower(), name.upper())))
"""under which a transcript is looked for beside its recording, the most exact first"""


def read_raw(path: Path) -> RawTranscript:
    """A transcript of any known format.

    Raises:
        DataError: a missing file, or one that no reader knows.
    """
    try:
        content = read_bytes(local(path))
    except FileNotFoundError:
        raise DataError(f"no transcript at {path}") from None
    except OSError as error:
        raise PassingError(f"cannot read {path}: {error.strerror or error}") from error
    text, remarks = decode(path, content)
    try:
        raw = _read(text, plain=path.suffix.lower() in PLAIN_SUFFIXES)
    except (ValueError, TypeError, AttributeError, KeyError, RecursionError, OverflowError) as error:
        raise DataError(f"{path} is no transcript that can be read: {error}") from error
    raw.remarks += remarks
    return raw


def _read(text: str, plain: bool) -> RawTranscript:
    if not text.strip():
        raise ValueError("it is empty")
    # A list of anything but objects, lists and strings is a time or a mark in brackets.
    if re.match(r"\s*(\{|\[\s*([{\[\"\]]|$))", text):
        try:
            document = json.loads(text)
        except json.JSONDecodeError as error:
            raise ValueError(f"not valid JSON: {error}") from None
        for read in JSON_READERS:
            raw = read(document)
            if raw is not None:
                return raw
        raise ValueError('JSON of no known layout; {"alignments": [[word, [start, end], speaker], ...]} is one that is')
    for read_text in TEXT_READERS:
        found = read_text(text)
        if found is not None:
            return found
    if re.match(r"\s*<(!doctype html|html)\b", text, re.IGNORECASE):
        raise ValueError("it is a web page; save its text alone")
    if not plain:
        raise ValueError("it has none of the known formats; plain text is read from files that end in .txt")
    return read_plain(text)
