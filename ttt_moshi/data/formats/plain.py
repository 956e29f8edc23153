"""Plain text: lines that may begin with a time and with the name of a speaker."""

from __future__ import annotations

import re
from collections.abc import Sequence

from ttt_moshi.data.formats.raw import Piece, RawTranscript, clock_seconds

_CLOCK = r"(?:\d{1,2}:)?\d{1,3}:\d{2}(?:[.,]\d{1,3})?"
_ARROW = r"(?:-{1,2}>|\u2192)"
_SPAN = rf"({_CLOCK})\s*(?:{_ARROW}|[-\u2013\u2014])\s*({_CLOCK})"
# Without colons `1.5 - 2.5` may be words, so that an arrow or a tab (Audacity's labels) must part the two.
_SECONDS = rf"(\d+\.\d+)\s?s?(?:\s*{_ARROW}\s*|\t)(\d+\.\d+)\s?s?"
_STAMP = re.compile(
    rf"^\s*([\[(]\s*)?(?:{_SPAN}|{_SECONDS}|({_CLOCK}))(?(1)\s*[\])])\s*(?:(?:-(?![->])|:)\s*)?(?=\D|$)"
)
_BESIDE = re.compile(rf"^\s*(?:[\[(]?\s*(?:{_ARROW}|{_SPAN})|[\[(]\s*{_CLOCK}[^\])]*[\])]\s*\S)")
"""what begins like a time and was not read as one: it would be taught as words"""
_BEHIND_A_NAME = re.compile(rf"^\s*[^\W\d_][\w.'-]*(?: [\w.'-]+){{0,2}}\s+[\[(]?(?:{_SPAN}|{_CLOCK}[\])]?\s*:?\s*$)")
_LABEL = re.compile(r"^\s*(?:[-*>]\s*)?[\[(]?([^\W\d_][\w.'-]*(?: [\w.'-]+){0,2})[\])]?\s*:(?=\s|$)\s*")
_KNOWN = re.compile(
    r"(?:speaker|spk|spkr|channel|participant|person)[ _-]?(?:\d{1,2}|[a-z])|s\d{1,2}|[a-z]|"
    r"agent|customer|caller|callee|client|user|moshi|assistant|bot|system|operator|representative|rep|host|guest|interviewer|interviewee|doctor|patient|"
    r"teacher|student|man|woman|male|female|speaker_main|speaker_other",
    re.IGNORECASE,
)


# What people write instead of `Agent:`. All lines, or all but those that go on, begin so, and two names come back.
_OTHER_LABELS = tuple(
    re.compile(pattern)
    for pattern in (
        r"^\s*[*_]{1,2}([^\W\d_][\w .'-]{0,30}?):?[*_]{1,2}:?\s+(?=\S)",  # **Agent:**
        r"^\s*[\[(]([^\W\d_][\w .'-]{0,30}?)[\])]\s+(?=\S)",  # (Agent) [Agent]
        r"^\s*([^\W\d_][\w.'-]*(?: [\w.'-]+)?)\s*\(\d{1,2}:\d{2}(?::\d{2})?\)\s*:?\s+(?=\S)",  # Agent (00:01):
        r"^\s*([^\W\d_][\w.'-]*(?: [\w.'-]+)?)\s+\d{1,2}:\d{2}(?::\d{2})?\s+(?=\S)",  # AGENT 00:01
        r"^\s*([^\W\d_][\w.'-]*(?: [\w.'-]+)?)(?:\s+[-\u2013\u2014]\s+|\s*>\s+|\t+)(?=\S)",  # Agent - or > or a tab
    )
)


def _with_colons(lines: list[str]) -> list[str]:
    """Lines whose labels have another form as lines with `Agent:`.

    Raises:
        ValueError: two voices without names.
    """
    if sum(line.lstrip().startswith(">>") for line in lines) > 1:
        raise ValueError("`>>` begins what another speaker says, and nobody has a name; write the names")
    alone = [_is_name(line.strip()) for line in lines]
    if len({line.strip().casefold() for line, name in zip(lines, alone, strict=True) if name}) > 1:
        return [f"{line.strip()}:" if name else line for line, name in zip(lines, alone, strict=True)]
    table = {
        line.split(",")[0].strip().casefold() for line in lines if "," in line and _is_name(line.split(",")[0].strip())
    }
    if len(table) > 1:
        raise ValueError(
            f"lines begin with {', '.join(sorted(table))} and a comma, as a table does; write `Name: words`"
        )
    for pattern in _OTHER_LABELS:
        found = [pattern.match(line) for line in lines]
        names = {match[1].casefold() for match in found if match}
        if found[:1] != [None] and len(names) > 1 and all(found) and (len(names) < len(lines) or _all_known(names)):
            return [f"{match[1]}: {line[match.end() :]}" for line, match in zip(lines, found, strict=True) if match]
        some = [match for match in found if match and _is_name(match[1])]
        if len(some) > 1:
            raise ValueError(
                f"some lines begin with `{some[0][0].strip()}`, as if with a speaker, others do not: "
                "begin every line with its speaker and a colon"
            )
    return lines


def _is_name(text: str) -> bool:
    """Whether nobody would take it for anything but a speaker, one letter left aside."""
    return len(text) > 1 and _KNOWN.fullmatch(text) is not None


def _all_known(names: set[str]) -> bool:
    return all(_KNOWN.fullmatch(name) for name in names)


def read_plain(text: str) -> RawTranscript:
    """Words without times, or lines with the time at which they begin, or with that and the one at which they end.

    Raises:
        ValueError: times that stand where none can be read.
    """
    lines = [line for line in text.split("\n") if line.strip()]
    stamped = _stamped(lines)
    timed = bool(stamped) and stamped[0][0] is not None
    if not timed:
        _refuse_lost_times(lines)
        stamped = [(None, line) for line in lines]
    pieces: list[Piece] = []
    speaker: str | None = None
    labelled = split_labels(_with_colons([body for _, body in stamped]))
    for (stamp, _), parts in zip(stamped, labelled, strict=True):
        start, end = (None, None) if stamp is None else _start_and_end(stamp)
        for label, body in parts:
            _refuse_a_time(body, timed)
            speaker = label or speaker
            if timed and stamp is None and label is None:
                pieces[-1].text += f" {body}"
            else:
                pieces.append(Piece(body, start, end, speaker))
    return RawTranscript("plain text", pieces, timed=timed)


def _stamped(lines: Sequence[str]) -> list[tuple[re.Match[str] | None, str]]:
    """Lines as the time that they begin with and the rest; a time in a line of its own is that of the next one."""
    found: list[tuple[re.Match[str] | None, str]] = []
    for line in lines:
        stamp = _STAMP.match(line)
        body = line if stamp is None else line[stamp.end() :]
        if found and not found[-1][1]:
            before, _ = found.pop()
            stamp = stamp or before
        found.append((stamp, body))
    return [(stamp, body) for stamp, body in found if body]


def _start_and_end(stamp: re.Match[str]) -> tuple[float, float | None]:
    """Seconds; no end where the line says only when it begins."""
    _, *times = stamp.groups()
    start, *end = [clock_seconds(time) for time in times if time is not None]
    return start, end[0] if end else None


def _refuse_lost_times(lines: Sequence[str]) -> None:
    """Raises for times in a text that does not begin with one: they would be taught as words."""
    late = [line for line in lines if (stamp := _STAMP.match(line)) and line[stamp.end() :]]
    if len(late) > 1:
        raise ValueError(
            f"`{_beginning(late[0])}` begins with a time, and the first line does not: "
            "begin every line with its time, or none"
        )
    behind = [line for line in lines if _BEHIND_A_NAME.match(line)]
    if len(behind) > 1:
        raise ValueError(
            f"`{_beginning(behind[0])}` has a time behind a name; write `[0:01] Name: words`, or leave the times out"
        )


def _refuse_a_time(body: str, timed: bool) -> None:
    """Raises for words that begin with what is left of a time."""
    if _BESIDE.match(body) or (timed and _STAMP.match(body)):
        raise ValueError(
            f"`{_beginning(body)}` begins with a time that cannot be read; begin a line with `[0:01]` or "
            "`[0:01 - 0:05]`, its speaker behind that, and write times that are said in words"
        )


def _beginning(line: str) -> str:
    return line.strip()[:40]


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
