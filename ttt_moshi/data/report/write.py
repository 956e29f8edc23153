"""The numbers of a data set on one page that needs nothing else."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined

from ttt_moshi.data.addresses import url_of
from ttt_moshi.data.check import OnFile, Report, check_data
from ttt_moshi.data.errors import DataError
from ttt_moshi.data.interleaver import MOSHI_STYLE, TextStyle
from ttt_moshi.data.prepare import REPORT_NAME
from ttt_moshi.data.remote import is_there, local, outgoing, put
from ttt_moshi.data.report.clips import PIXELS_A_SECOND, Clip, choose, cut
from ttt_moshi.data.report.measure import Measured, measure_recording
from ttt_moshi.data.rules import Finding
from ttt_moshi.data.sources import lists_at, split_spec
from ttt_moshi.data.tokenizer import Tokenizer
from ttt_moshi.data.transcripts import MAIN_SPEAKER, OTHER_SPEAKER
from ttt_moshi.files import read_text, write_atomically
from ttt_moshi.frames import FRAME_RATE

_TITLE = b"<title>Data: "
_HEAD = 1000
"""bytes of a page in which its title begins"""
_NAMED = {MAIN_SPEAKER: "Moshi", OTHER_SPEAKER: "the user"}
_NUMBERS = re.compile(r"(?<![\w-])[-+]?\d+(?:,\d{3})*(?:\.\d+)?")
_NAMES = re.compile(r"[^\s:;]+\.[A-Za-z]\w{1,8}(?=[\s:;,]|$)")


@dataclass(frozen=True)
class Histogram:
    """Counts of bins of equal width; what lies beyond either end is counted in the last bin there."""

    title: str
    unit: str
    bins: tuple[tuple[float, int], ...]
    """lower edge, count"""
    median: float

    @property
    def highest(self) -> int:
        return max(count for _, count in self.bins)


def write_report(
    spec: str,
    out: Path,
    tokenizer: Tokenizer | None = None,
    style: TextStyle = MOSHI_STYLE,
    clips: int = 10,
    on_file: OnFile | None = None,
) -> Report:
    """Reads a data set as `check_data` does and writes a page about it.

    Args:
        tokenizer: makes the tokens that the page shows; None shows none.

    Raises:
        DataError: nothing there to look at, no recording whose audio can be read, or `out` is a file that is no such
            page, which may be the only copy of something.
        OSError: `out` cannot be written.
    """
    _require_page(out)  # before hours of work
    recordings: list[Measured] = []
    report = check_data(
        spec, on_file, lambda heard: recordings.append(measure_recording(heard)), tokenizer=tokenizer, style=style
    )
    if not recordings:
        raise DataError(f"{spec} holds no recording whose audio can be read; `ttt-moshi data check` says why")
    shown = list(_clips(recordings, clips, tokenizer, style, report))
    environment = Environment(
        loader=PackageLoader("ttt_moshi.data.report", "."),
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    environment.filters["clock"] = clock
    page = environment.get_template("page.html").render(
        name=spec,
        report=report,
        others=report.recordings - len(recordings),
        share=_shares(recordings),
        voices=_voices(recordings),
        speakers=sorted({_NAMED.get(name, name) for recording in recordings for name in recording.speakers}),
        languages=Counter(recording.language for recording in recordings if recording.language).most_common(),
        scripts=sum((recording.scripts for recording in recordings), Counter[str]()).most_common(),
        histograms=list(_histograms(recordings)),
        findings=_findings(report),
        prepared=_prepared(spec),
        clips=shown,
        pixels=PIXELS_A_SECOND,
        frame=PIXELS_A_SECOND / FRAME_RATE,
        tokens=tokenizer is not None,
    )
    here = out if url_of(out) is None else outgoing(out)
    here.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(here, page.encode("utf-8", "backslashreplace"))
    if here != out:
        put(here, out)
        here.unlink()
    return report


def _require_page(out: Path) -> None:
    """Raises where something else would be replaced."""
    if not is_there(out):
        return
    try:
        with local(out).open("rb") as file:
            begin = file.read(_HEAD)
    except OSError as error:
        raise DataError(f"cannot read {out}: {error.strerror or error}") from error
    if begin and _TITLE not in begin:
        raise DataError(f"{out} is there and is no page that this command made: name another file")


def _clips(
    recordings: Sequence[Measured], count: int, tokenizer: Tokenizer | None, style: TextStyle, report: Report
) -> Iterator[Clip]:
    """Parts to listen to. What could be measured and cannot be read any more is a finding, and costs no other."""
    for recording, start, seconds in choose(recordings, count):
        try:
            yield cut(recording, start, seconds, tokenizer, style)
        except DataError as error:
            report.findings.append(Finding("problem", "unreadable", recording.line.path, f"not to be heard: {error}"))


def clock(seconds: float) -> str:
    """`1:02:03`, or `2:03` where there are no hours."""
    hours, rest = divmod(int(seconds), 3600)
    return f"{hours}:{rest // 60:02}:{rest % 60:02}" if hours else f"{rest // 60}:{rest % 60:02}"


def _shares(recordings: Sequence[Measured]) -> dict[str, float]:
    """Of the time of recordings with two channels: only Moshi, only the user, both, nobody."""
    two = [recording for recording in recordings if len(recording.voices) == 2]
    total = sum(recording.seconds for recording in two)
    if not total:
        return {}
    both = sum(recording.overlap for recording in two)
    alone = [sum(recording.voices[side].speech for recording in two) - both for side in (0, 1)]
    nobody = sum(recording.silence for recording in two)
    return {"Moshi": alone[0] / total, "both": both / total, "user": alone[1] / total, "nobody": nobody / total}


def _voices(recordings: Sequence[Measured]) -> list[dict[str, Any]]:
    found = []
    for side, name in enumerate(("Moshi", "user")):
        voices = [recording.voices[side] for recording in recordings if len(recording.voices) > side]
        speech, words = sum(voice.speech for voice in voices), sum(voice.words for voice in voices)
        told = sum(voice.speech for voice in voices if voice.words)
        levels = [voice.decibels for voice in voices if math.isfinite(voice.decibels)]
        if not voices:
            continue
        found.append(
            {
                "name": name,
                "speech": speech,
                "words": words,
                "rate": 60 * words / told if told else math.nan,
                "level": float(np.median(levels)) if levels else math.nan,
                "range": (min(levels), max(levels)) if levels else (math.nan, math.nan),
                "clipped": sum(voice.clipped > 1e-3 for voice in voices),
                "recordings": len(voices),
            }
        )
    return found


def _histograms(recordings: Sequence[Measured]) -> list[Histogram]:
    minutes = [recording.seconds / 60 for recording in recordings]
    widest = max(1.0, math.ceil(max(minutes)))
    made = [
        _histogram("Length of recordings", "min", minutes, 0, widest, widest / 20),
        _histogram(
            "Moshi's words in a minute of speech", "", [r.voices[0].words_a_minute for r in recordings], 0, 400, 20
        ),
        _histogram("Pauses between turns", "s", [p for r in recordings for p in r.pauses], -2, 3, 0.25),
        _histogram(
            "Level of speech", "dB", [v.decibels for r in recordings for v in r.voices], -60, 0, 3
        ),
    ]  # fmt: skip
    return [histogram for histogram in made if histogram is not None]


def _histogram(
    title: str, unit: str, values: Sequence[float], low: float, high: float, width: float
) -> Histogram | None:
    finite = np.array([value for value in values if math.isfinite(value)])
    if not len(finite):
        return None
    count = round((high - low) / width)
    places = np.clip(((finite - low) / width).astype(int), 0, count - 1)
    counts = np.bincount(places, minlength=count)
    bins = tuple((round(low + width * i, 6), int(n)) for i, n in enumerate(counts))
    return Histogram(title, unit, bins, float(np.median(finite)))


def _findings(report: Report) -> list[dict[str, Any]]:
    """Problems first, then notes, by kind."""
    groups: dict[tuple[str, str], list[Any]] = {}
    for finding in report.findings:
        groups.setdefault((finding.level, finding.kind), []).append(finding)
    ordered = sorted(groups.items(), key=lambda item: (item[0][0] != "problem", -len(item[1])))
    return [
        {"level": level, "kind": kind, "count": len(found), "where": Path(found[0].where).name,
         "message": found[0].message}
        for (level, kind), found in ordered
    ]  # fmt: skip


def _prepared(spec: str) -> dict[str, list[tuple[str, int, str]]] | None:
    """What `data prepare` did and what it left out: the words, how often, an example; None if it says nothing."""
    done, left_out = dict[str, list[tuple[str, str]]](), dict[str, list[tuple[str, str]]]()
    reports = {jsonl.parent / REPORT_NAME for path, _ in split_spec(spec) for jsonl in lists_at(path)}
    existing = sorted(filter(is_there, reports))
    for path in existing:
        try:
            entries = json.loads(read_text(local(path)))["recordings"]
            for entry in entries:
                for text in [entry["left_out"]] if entry["left_out"] else entry["done"]:
                    what = left_out if entry["left_out"] else done
                    what.setdefault(_kind(text), []).append((entry["source"], text))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DataError(f"{path} is not a report of `data prepare` that can be read: {error}") from error
    if not existing:
        return None
    return {
        name: sorted((_row(kind, entries) for kind, entries in found.items()), key=lambda row: -row[1])
        for name, found in (("done", done), ("left_out", left_out))
    }


def _row(kind: str, entries: Sequence[tuple[str, str]]) -> tuple[str, int, str]:
    """What is said of all files alike stands there as it is."""
    (source, text), texts = entries[0], {text for _, text in entries}
    return (text, len(entries), source) if len(texts) == 1 else (kind, len(entries), f"{source}: {text}")


def _kind(text: str) -> str:
    """A line without what differs from file to file."""
    return _NUMBERS.sub("N", _NAMES.sub("...", text))
