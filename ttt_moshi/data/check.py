"""Looks through a data set file by file and says what is wrong with it, before training does."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, field

import numpy as np

from ttt_moshi.data.addresses import named_in, readable
from ttt_moshi.data.audio import AudioInfo, read_info
from ttt_moshi.data.digests import file_digest
from ttt_moshi.data.encoded import is_encoded, read_encoded, read_encoded_info
from ttt_moshi.data.errors import DataError
from ttt_moshi.data.interleaver import MOSHI_STYLE, TextStyle
from ttt_moshi.data.levels import Levels
from ttt_moshi.data.listen import listen, moshi_first
from ttt_moshi.data.remote import is_there
from ttt_moshi.data.rules import Finding, judge_levels, judge_words
from ttt_moshi.data.shards import container
from ttt_moshi.data.sources import (
    Line,
    lists_at,
    numbered_lines,
    read_line,
    split_spec,
    told_missing,
    unknown_keys,
)
from ttt_moshi.data.tokenizer import Coverage, Tokenizer, coverage
from ttt_moshi.data.transcripts import MAIN_SPEAKER, Transcript, read_transcript, transcript_path
from ttt_moshi.frames import FRAME_RATE, SAMPLE_RATE

OnFile = Callable[[str, int, int], None]
"""called before a file is looked at, with its name, how many are done and how many there are"""


@dataclass(frozen=True)
class Heard:
    """A recording that could be read to its end."""

    line: Line
    info: AudioInfo
    levels: Levels
    decibels: np.ndarray
    """energies `[channels, hops]`, Moshi's channel first"""
    transcript: Transcript | None
    """None where there is none that can be read"""


OnHeard = Callable[[Heard], None]

_ROUNDING = 1 / FRAME_RATE
"""seconds by which a line's duration may differ from the file's"""


@dataclass
class Report:
    """All findings about a data set, and what is in it."""

    recordings: int = 0
    seconds: float = 0.0
    """of recordings that can be read"""
    words: int = 0
    """of Moshi, where they are not in codes"""
    pretokenized: int = 0
    """recordings of codes, whose words are not counted"""
    findings: list[Finding] = field(default_factory=list)

    @property
    def problems(self) -> list[Finding]:
        return [finding for finding in self.findings if finding.level == "problem"]


def check_data(
    spec: str,
    on_file: OnFile | None = None,
    on_heard: OnHeard | None = None,
    *,
    tokenizer: Tokenizer | None = None,
    style: TextStyle = MOSHI_STYLE,
) -> Report:
    """Every recording of comma-separated jsonl files or folders, each read to its end.

    A recording that is named in two jsonl files is a problem, since one of them is probably for evaluation.

    Args:
        on_heard: gets everything that was measured of each recording, so that it need not be read again.
        tokenizer: whose unknown words and byte pieces are counted; None counts nothing.
        style: how the model's text stream is written.

    Raises:
        DataError: nothing there to look at.
    """
    report = Report()
    texts: list[str] = []

    def listened(heard: Heard) -> None:
        if tokenizer is not None and heard.transcript is not None:
            texts.extend(word.text for word in heard.transcript.words if word.speaker == MAIN_SPEAKER)
        if on_heard:
            on_heard(heard)

    lists = {path: lists_at(path) for path, _ in split_spec(spec)}
    named = dict.fromkeys(jsonl for files in lists.values() for jsonl in files)
    entries = [(jsonl, i, text) for jsonl in named for i, text in numbered_lines(jsonl)]
    if not entries:
        raise DataError(f"{spec} lists no recordings")
    for path, files in lists.items():
        name = readable(str(path))
        report.findings += [Finding("problem", "missing part", name, told) for told in told_missing(path, files)]
    seen: dict[str, Line] = {}
    for done, (jsonl, number, text) in enumerate(entries):
        if on_file:
            on_file(f"{jsonl.name}:{number}", done, len(entries))
        report.recordings += 1
        try:
            line = read_line(jsonl, number, text)
        except DataError as error:
            where = readable(f"{jsonl}, line {number}")
            report.findings.append(Finding("problem", "bad line", where, _without_name(error, where)))
            continue
        unknown = unknown_keys(text)
        if unknown:
            report.findings.append(Finding("note", "unknown key", line.where, f"nothing reads {', '.join(unknown)}"))
        report.findings += _check_line(line, report, seen, listened)
    if tokenizer is not None:
        report.findings += _check_tokenizer(spec, coverage(tokenizer, texts, style))
    return report


def _check_tokenizer(spec: str, found: Coverage) -> Iterator[Finding]:
    if found.foreign:
        message = f"{found.told}: it is a tokenizer of another language or spelling"
        yield Finding("problem", "tokenizer", spec, message)
    elif found.unknown or found.in_bytes:
        yield Finding("note", "tokenizer", spec, found.told)


def _check_line(line: Line, report: Report, seen: dict[str, Line], on_heard: OnHeard) -> Iterator[Finding]:
    """Whatever is wrong with one file costs no other."""
    name = readable(str(named_in(line.jsonl.parent, line.path)))
    try:
        yield from _check_recording(line, report, seen, on_heard)
    except DataError as error:  # a store that does not answer, or a name that no file can have
        yield Finding("problem", "unreadable", name, f"{_without_name(error, name)} ({line.where})")
    except Exception as error:  # noqa: BLE001 - one file that nobody thought of must not cost all the others
        told = f"unexpected {type(error).__name__}: {' '.join(str(error).split())}"
        yield Finding("problem", "unexpected", name, f"{told} ({line.where})")


def _check_recording(line: Line, report: Report, seen: dict[str, Line], on_heard: OnHeard) -> Iterator[Finding]:
    if is_encoded(line.path):
        yield from _check_encoded(line, report, seen)
        return
    audio = line.audio
    name = readable(str(audio))
    try:
        info = read_info(audio)
        if info.channels > 2:
            raise DataError(f"{name}: {info.channels} channels; `ttt-moshi data prepare --channels` takes two of them")
        levels, decibels = listen(audio, moshi_first(info.channels, line.moshi_speaker))
    except DataError as error:
        kind = "unreadable" if is_there(audio) else "missing recording"
        yield Finding("problem", kind, name, f"{_without_name(error, name)} ({line.where})")
        return
    report.seconds += info.seconds
    yield from _check_duplicate(line, seen)
    yield from _check_duration(line, info.seconds)
    yield from _check_form(line, info)
    yield from judge_levels(name, levels)
    transcript = yield from _check_transcript(line, info, report, decibels)
    on_heard(Heard(line, info, levels, decibels, transcript))


def _check_encoded(line: Line, report: Report, seen: dict[str, Line]) -> Iterator[Finding]:
    """A file of codes; whether a model has all of them is for training to see."""
    report.pretokenized += 1
    name = readable(str(line.audio))
    try:
        info = read_encoded_info(line.audio)
        read_encoded(line.audio)
    except DataError as error:
        kind = "unreadable" if is_there(container(line.audio)) else "missing recording"
        yield Finding("problem", kind, name, f"{_without_name(error, name)} ({line.where})")
        return
    report.seconds += info.seconds
    yield from _check_duplicate(line, seen)
    yield from _check_duration(line, info.seconds)
    if line.moshi_speaker == "B":
        yield Finding("problem", "speaker", name, f"its codes say which streams are Moshi's ({line.where})")


def _check_duplicate(line: Line, seen: dict[str, Line]) -> Iterator[Finding]:
    digest = file_digest(line.audio)
    first = seen.setdefault(digest, line)
    if first is line:
        return
    if first.jsonl != line.jsonl:
        message = f"the same audio is in {first.where}: training and evaluation data must not share recordings"
        yield Finding("problem", "in two lists", readable(str(line.audio)), message)
    else:
        yield Finding("note", "duplicate", readable(str(line.audio)), f"the same audio is in line {first.number} too")


def _check_form(line: Line, info: AudioInfo) -> Iterator[Finding]:
    name = readable(str(line.audio))
    if info.channels == 1:
        if line.moshi_speaker == "B":
            yield Finding("problem", "mono", name, f"mono, so Moshi cannot be speaker B ({line.where})")
        else:
            yield Finding("note", "mono", name, "mono: taken as Moshi's voice, with a silent user")
    if info.sample_rate != SAMPLE_RATE:
        yield Finding("note", "rate", name, f"{info.sample_rate} Hz, resampled to {SAMPLE_RATE} Hz")
    if info.tracks > 1:
        yield Finding("note", "tracks", name, f"{info.tracks} audio tracks, of which the first is used")
    if info.ends_early:
        yield Finding("note", "ends early", name, info.ends_early)


def _check_duration(line: Line, seconds: float) -> Iterator[Finding]:
    name = readable(str(line.audio))
    if min(seconds, line.duration) < 1 / FRAME_RATE:
        message = f"{min(seconds, line.duration):.3f} s are less than one frame (0.08 s)"
        yield Finding("problem", "too short", name, message)
    if line.duration > seconds + _ROUNDING:
        message = f"{line.where} says {line.duration:.2f} s, the file has {seconds:.2f} s"
        yield Finding("problem", "duration", name, message)
    elif line.duration < seconds - _ROUNDING:
        message = f"{line.where} says {line.duration:.2f} s, so the rest of its {seconds:.2f} s is not used"
        yield Finding("note", "duration", name, message)


def _check_transcript(
    line: Line, info: AudioInfo, report: Report, decibels: np.ndarray
) -> Generator[Finding, None, Transcript | None]:
    path = transcript_path(line.audio)
    name = readable(str(path))
    try:
        if not is_there(path):
            yield Finding(
                "problem", "missing transcript", name, "not there, so the recording would have no text stream"
            )
            return None
        transcript = read_transcript(path, line.moshi_speaker)
    except DataError as error:
        yield Finding("problem", "bad transcript", name, _without_name(error, name))
        return None
    report.words += sum(word.speaker == MAIN_SPEAKER for word in transcript.words)
    yield from judge_words(name, transcript, info.seconds, decibels)
    return transcript


def _without_name(error: DataError, name: str) -> str:
    """The message without the file's name, which stands beside it in a report."""
    return str(error).removeprefix(name).lstrip(": ")
