"""Transcripts of annotation tools and recognisers: Praat's TextGrid, ELAN, CTM and RTTM."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterable, Iterator, Mapping

from ttt_moshi.data.formats.raw import Piece, RawTranscript

_TEXTGRID_TOKEN = re.compile(r'"((?:[^"]|"")*)"|\[[^\]]*\]|(?<![\w.])(-?\d+(?:\.\d+)?(?:[eE][-+]?\d+)?)(?![\w.])')
_TIER = re.compile(r"(?:(.*?)[-_ ]*\b)?(words?|phones?|phonemes?|transcripts?|utterances?|text)", re.IGNORECASE)
"""names that say what a tier holds, maybe after the name of a speaker"""
_WORDS, _LONGER, _SOUNDS = range(3)
"""what a tier holds, the most exact words first"""
_NUMBER = re.compile(r"-?\d+(\.\d+)?$")


def read_textgrid(text: str) -> RawTranscript | None:
    """Praat, in its long and its short form: the intervals of every tier; a tier is a speaker.

    Where a speaker has several (`Anna`, `Anna - utterances`, `Anna - words`, `Anna - phones`), all say the same: the
    words are read, or else the first that holds longer stretches.
    """
    if '"TextGrid"' not in text[:200]:
        return None
    # Everything but strings and numbers is decoration, in which the two forms differ.
    tokens = [
        match[1].replace('""', '"') if match[1] is not None else float(match[2])
        for match in _TEXTGRID_TOKEN.finditer(text.split('"TextGrid"', 1)[1])
        if match[1] is not None or match[2] is not None
    ]
    pieces: list[Piece] = []
    values = iter(tokens)
    try:
        _begin, _end, tiers = next(values), next(values), next(values)
        for _ in range(_count(tiers)):
            kind, name = next(values), str(next(values))
            _begin, _end, size = next(values), next(values), next(values)
            for _ in range(_count(size)):
                start = next(values)
                end = next(values) if kind == "IntervalTier" else start
                label = str(next(values)).strip()
                if label and kind == "IntervalTier":
                    pieces.append(Piece(label, start, end, name))
    except StopIteration:
        raise ValueError("the TextGrid ends in the middle of a tier") from None
    named = {name: _tier(name) for name in dict.fromkeys(piece.speaker or "" for piece in pieces)}
    chosen: dict[str | None, str] = {}
    for name, (speaker, _) in sorted(named.items(), key=lambda tier: tier[1][1]):
        chosen.setdefault(speaker and speaker.casefold(), name)
    kept = [piece for piece in pieces if (piece.speaker or "") in chosen.values()]
    words = [Piece(piece.text, piece.start, piece.end, named[piece.speaker or ""][0]) for piece in kept]
    return RawTranscript("TextGrid", words, remarks=_told(name for name in named if name not in chosen.values()))


def _tier(name: str) -> tuple[str | None, int]:
    """Whose a tier is, and what it holds. A name that says nothing of that is the speaker's."""
    match = _TIER.fullmatch(name)
    if match is None:
        return name, _LONGER
    kind = match[2].lower()
    return match[1] or None, _WORDS if kind.startswith("word") else _SOUNDS if kind.startswith("phon") else _LONGER


def _told(left_out: Iterable[str]) -> list[str]:
    return [f"tier `{name}` is left out" for name in left_out]


def _count(value: str | float) -> int:
    if isinstance(value, str):
        raise ValueError(f"the TextGrid has {value!r} where the size of a tier should be")
    return int(value)


def read_elan(text: str) -> RawTranscript | None:
    """ELAN: annotations with times of every tier; its participant, or else the tier, is the speaker.

    A tier is left out where another one says the same in smaller parts: one that depends on it, or the words of the
    same speaker.
    """
    if "<ANNOTATION_DOCUMENT" not in text[:4000]:
        return None
    try:
        root = ElementTree.fromstring(re.sub(r"^<\?xml[^>]*\?>", "", text.lstrip()))
    except ElementTree.ParseError as error:
        raise ValueError(f"no whole XML ({error})") from None
    slots = {slot.get("TIME_SLOT_ID"): slot.get("TIME_VALUE") for slot in root.iter("TIME_SLOT")}

    def seconds(slot: str | None) -> float | None:
        value = slots.get(slot)
        return None if value is None else int(value) / 1000

    tiers = {tier.get("TIER_ID") or "": tier for tier in root.iter("TIER")}
    said: dict[str, list[Piece]] = {}
    for name, tier in tiers.items():
        for annotation in tier.iter("ALIGNABLE_ANNOTATION"):
            value = annotation.findtext("ANNOTATION_VALUE") or ""
            start, end = seconds(annotation.get("TIME_SLOT_REF1")), seconds(annotation.get("TIME_SLOT_REF2"))
            if value.strip():
                said.setdefault(name, []).append(Piece(value, start, end, tier.get("PARTICIPANT") or name))
    left_out = _said_elsewhere({name: tiers[name].get("PARTICIPANT") for name in said}, _parents(tiers))
    pieces = [piece for name, own in said.items() if name not in left_out for piece in own]
    return RawTranscript("ELAN", pieces, remarks=_told(name for name in said if name in left_out))


def _parents(tiers: Mapping[str, ElementTree.Element]) -> dict[str, set[str]]:
    """Of every tier those that it depends on, directly or not."""
    found: dict[str, set[str]] = {}
    for name in tiers:
        found[name] = set()
        at = tiers[name].get("PARENT_REF")
        while at is not None and at in tiers and at not in found[name]:
            found[name].add(at)
            at = tiers[at].get("PARENT_REF")
    return found


def _said_elsewhere(participants: Mapping[str, str | None], parents: Mapping[str, set[str]]) -> set[str]:
    """The tiers, of those with words, whose words another one has too."""
    whose = {name: (participant or _tier(name)[0] or "").casefold() for name, participant in participants.items()}
    holds = {name: _tier(name)[1] for name in whose}
    spoken = {whose[name] for name in whose if holds[name] != _SOUNDS}
    sounds = {name for name in whose if holds[name] == _SOUNDS and whose[name] in spoken}
    above = {parent for name in whose if name not in sounds for parent in parents[name]}
    by_word = {whose[name] for name in whose if holds[name] == _WORDS and name not in above}
    longer = {name for name in whose if holds[name] == _LONGER and _TIER.fullmatch(name) and whose[name] in by_word}
    return sounds | above | longer


def read_ctm(text: str) -> RawTranscript | None:
    """CTM: `file channel start duration word [confidence]`; a channel is a speaker."""
    lines = list(_fields(text))
    if not lines or not all(len(line) in (5, 6, 7, 8) and _times(line[2:4]) for line in lines):
        return None
    if not all(re.fullmatch(r"\d|[A-Ha-h]", line[1]) for line in lines):
        return None
    return RawTranscript("CTM", [Piece(w[4], float(w[2]), float(w[2]) + float(w[3]), _channel(w[1])) for w in lines])


def read_rttm(text: str) -> RawTranscript | None:
    """RTTM with text: its lexemes."""
    lines = list(_fields(text))
    kinds = {
        "SPEAKER",
        "LEXEME",
        "SEGMENT",
        "NOSCORE",
        "NON-LEX",
        "NON-SPEECH",
        "FILLER",
        "SU",
        "SPKR-INFO",
        "NO_RT_METADATA",
    }
    if not lines or not all(line[0] in kinds and len(line) >= 8 for line in lines):
        return None
    words = [line for line in lines if line[0] == "LEXEME"]
    if not words:
        raise ValueError("this RTTM says who speaks when, and has no words; `data prepare --separate` uses it")
    if not all(_times(line[3:5]) for line in words):
        raise ValueError("an RTTM line lacks its times")
    return RawTranscript("RTTM", [Piece(w[5], float(w[3]), float(w[3]) + float(w[4]), w[7]) for w in words])


def _fields(text: str) -> Iterator[list[str]]:
    for line in text.splitlines():
        if line.strip() and not line.startswith(";;"):
            yield line.split()


def _times(fields: list[str]) -> bool:
    return all(_NUMBER.match(field) for field in fields)


def _channel(name: str) -> str:
    """A and B, or 1 and 2, are the left and the right channel; others are what they are called."""
    return {"1": "A", "2": "B"}.get(name, name.upper())
