"""Transcripts of annotation tools and recognisers: Praat's TextGrid, ELAN, CTM and RTTM."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator

from ttt_moshi.data.formats.raw import Piece, RawTranscript

_TEXTGRID_TOKEN = re.compile(r'"((?:[^"]|"")*)"|\[[^\]]*\]|(?<![\w.])(-?\d+(?:\.\d+)?(?:[eE][-+]?\d+)?)(?![\w.])')
_TIER = re.compile(r"(?:(.*?)[-_ ]*\b)?(words?|phones?|phonemes?|transcripts?|utterances?|text)", re.IGNORECASE)
"""names that say what a tier holds, maybe after the name of a speaker"""
_NUMBER = re.compile(r"-?\d+(\.\d+)?$")


def read_textgrid(text: str) -> RawTranscript | None:
    """Praat, in its long and its short form: the intervals of every tier; a tier is a speaker.

    Of an aligner's tiers (`Anna - words`, `Anna - phones`) the words are read.
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
    named = {piece.speaker: _TIER.fullmatch(piece.speaker or "") for piece in pieces}
    speakers = {name: name if match is None else match[1] or None for name, match in named.items()}
    sounds = [name for name, match in named.items() if match and match[2].lower().startswith("phon")]
    spoken = {speakers[name] for name in named if name not in sounds}
    left_out = [name for name in sounds if speakers[name] in spoken]
    words = [Piece(p.text, p.start, p.end, speakers[p.speaker]) for p in pieces if p.speaker not in left_out]
    return RawTranscript("TextGrid", words, remarks=[f"tier `{name}` is left out" for name in left_out])


def _count(value: str | float) -> int:
    if isinstance(value, str):
        raise ValueError(f"the TextGrid has {value!r} where the size of a tier should be")
    return int(value)


def read_elan(text: str) -> RawTranscript | None:
    """ELAN: annotations with times of every tier; its participant, or else the tier, is the speaker."""
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

    pieces = []
    for tier in root.iter("TIER"):
        speaker = tier.get("PARTICIPANT") or tier.get("TIER_ID")
        for annotation in tier.iter("ALIGNABLE_ANNOTATION"):
            value = annotation.findtext("ANNOTATION_VALUE") or ""
            start, end = seconds(annotation.get("TIME_SLOT_REF1")), seconds(annotation.get("TIME_SLOT_REF2"))
            if value.strip():
                pieces.append(Piece(value, start, end, speaker))
    return RawTranscript("ELAN", pieces)


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
