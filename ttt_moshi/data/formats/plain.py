"""Plain text: lines that may begin with a time and with the name of a speaker."""

from __future__ import annotations

import re
from collections.abc import Sequence

from ttt_moshi.data.formats.raw import Piece, RawTranscript, clock_seconds

_STAMP = re.compile(r"^\s*[\[(]?((?:\d{1,2}:)?\d{1,2}:\d{2}(?:[.,]\d{1,3})?)[\])]?\s*(?:-\s*)?(?=\D|$)")
_LABEL = re.compile(r"^\s*(?:[-*>]\s*)?[\[(]?([^\W\d_][\w.'-]*(?: [\w.'-]+){0,2})[\])]?\s*:(?=\s|$)\s*")
_KNOWN = re.compile(
    r"(?:speaker|spk|spkr|channel|participant|person)[ _-]?(?:\d{1,2}|[a-z])|s\d{1,2}|[a-z]|"
    r"agent|customer|caller|callee|client|user|moshi|assistant|bot|system|operator|representative|rep|host|guest|interviewer|interviewee|doctor|patient|"
    r"teacher|student|man|woman|male|female|speaker_main|speaker_other",
    re.IGNORECASE,
)


def read_plain(text: str) -> RawTranscript:
    """Words without times, or lines with the time at which they begin."""
    lines = [line for line in text.split("\n") if line.strip()]
    stamps = [_STAMP.match(line) for line in lines]
    timed = bool(lines) and stamps[0] is not None
    bodies = [line[stamp.end() :] if timed and stamp else line for line, stamp in zip(lines, stamps, strict=True)]
    pieces: list[Piece] = []
    speaker: str | None = None
    for stamp, parts in zip(stamps, split_labels(bodies), strict=True):
        for label, body in parts:
            speaker = label or speaker
            if timed and stamp is not None:
                pieces.append(Piece(body, clock_seconds(stamp[1]), None, speaker))
            elif timed:
                pieces[-1].text += f" {body}"
            else:
                pieces.append(Piece(body, None, None, speaker))
    return RawTranscript("plain text", pieces, timed=timed)


def split_labels(texts: Sequence[str]) -> list[list[tuple[str | None, str]]]:
    """Each text as parts `(speaker, words)`, one for every line that begins with a label.

    A label is a name of up to three words before a colon. Names that nobody would take for anything else are labels
    wherever they stand; others only where every line has one.

    Raises:
        ValueError: a line that might begin with a label, or might not.
    """
    candidates = [[_LABEL.match(line) for line in text.split("\n") if line.strip()] for text in texts]
    found = [match for matches in candidates for match in matches]
    everywhere = bool(found) and all(found)
    doubtful = [match for match in found if match and not everywhere and not _KNOWN.fullmatch(match[1])]
    if doubtful:
        raise ValueError(
            f"a line begins with `{doubtful[0][1]}:`, which may be a speaker or not: "
            "begin every line with its speaker, or take the colon out"
        )
    parts = []
    for text, matches in zip(texts, candidates, strict=True):
        own: list[tuple[str | None, str]] = []
        for line, match in zip([line for line in text.split("\n") if line.strip()], matches, strict=True):
            if match:
                own.append((match[1], line[match.end() :].strip()))
            elif own:
                own[-1] = (own[-1][0], f"{own[-1][1]} {line.strip()}")
            else:
                own.append((None, line.strip()))
        parts.append(own)
    return parts
