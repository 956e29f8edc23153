"""Turns a folder of recordings into a data set, in a folder of its own."""

from __future__ import annotations

import json
import shutil
import uuid
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from itertools import groupby
from pathlib import Path

import blake3
import numpy as np
import soundfile

from ttt_moshi.data.audio import AUDIO_SUFFIXES, AudioInfo, read_blocks, read_info
from ttt_moshi.data.errors import DataError
from ttt_moshi.data.plain_text import read_plain_text
from ttt_moshi.data.transcripts import (
    MAIN_SPEAKER,
    OTHER_SPEAKER,
    MoshiSpeaker,
    Transcript,
    Word,
    alignments,
    read_transcript,
    transcript_path,
)
from ttt_moshi.data.turns import assign_spans
from ttt_moshi.data.voiced import EnergyMeter, Span, spread_words, voiced_spans
from ttt_moshi.frames import FRAME_RATE, SAMPLE_RATE

OnFile = Callable[[str, int, int], None]
"""called before a recording is read, with its name, how many are done and how many there are"""

REPORT_NAME = "prepare.json"

_RECORDINGS = "recordings"


@dataclass
class Outcome:
    """What became of one sound file."""

    source: str
    """relative to the source folder"""
    path: str | None = None
    """relative to the data set; None where the file was left out"""
    seconds: float = 0.0
    words: int = 0
    """of Moshi"""
    word_times: str = "none"
    """given, approximate, or none where there is no transcript"""
    done: list[str] = field(default_factory=list)
    """what was done to it, in words"""
    left_out: str | None = None
    """why it is not in the data set"""
    digest: str = ""


@dataclass(frozen=True)
class Prepared:
    """The result: one outcome per sound file, and the lists that were written with their numbers of recordings."""

    outcomes: list[Outcome]
    lists: dict[str, int]


def prepare(
    source: Path,
    out: Path,
    *,
    moshi_speaker: MoshiSpeaker = "A",
    eval_fraction: float = 0.0,
    overwrite: bool = False,
    on_file: OnFile | None = None,
) -> Prepared:
    """Writes `out/data.jsonl`, or `out/train.jsonl` and `out/eval.jsonl`, with 24 kHz stereo wavs and transcripts.

    Nothing in `source` is changed, and `out` appears in one piece when all is done. A file that cannot be used is left
    out and its outcome says why. The same folder gives the same data set, bit for bit.

    Args:
        moshi_speaker: whose channel becomes Moshi's, the left one: A is left in the source, B right.
        eval_fraction: share of the recordings that goes to evaluation, chosen by their content.
        overwrite: whether `out` may be replaced if an earlier call made it.

    Raises:
        DataError: no recordings, or an `out` that must not be replaced.
        OSError: `out` cannot be written.
    """
    _refuse_to_destroy(source, out, overwrite)
    files = _sound_files(source, out)
    partial = out.with_name(f".{out.name}-{uuid.uuid4().hex[:8]}.partial")
    try:
        outcomes = _prepare_all(source, files, partial, moshi_speaker, on_file)
        lists = _write_lists(partial, outcomes, eval_fraction)
        report = {"moshi_speaker": moshi_speaker, "recordings": [_public(outcome) for outcome in outcomes]}
        (partial / REPORT_NAME).write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        if out.exists():
            shutil.rmtree(out)
        partial.rename(out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return Prepared(outcomes, lists)


def _sound_files(source: Path, out: Path) -> list[Path]:
    if not source.is_dir():
        raise DataError(f"no folder of recordings at {source}")
    made = out.resolve()
    files = sorted(
        file
        for file in source.rglob("*")
        if file.suffix.lower() in AUDIO_SUFFIXES and file.is_file() and made not in file.resolve().parents
    )
    if not files:
        raise DataError(f"{source} holds no recordings ({', '.join(AUDIO_SUFFIXES)})")
    return files


def _refuse_to_destroy(source: Path, out: Path, overwrite: bool) -> None:
    if out.resolve() == source.resolve() or out.resolve() in source.resolve().parents:
        raise DataError(f"{out} holds the recordings themselves; name another folder for the data set")
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    if not (out / REPORT_NAME).is_file():
        raise DataError(f"{out} is not empty and was not made by this command; name another folder")
    if not overwrite:
        raise DataError(f"{out} holds a data set; `--overwrite` replaces it")


def _prepare_all(
    source: Path, files: Sequence[Path], out: Path, moshi_speaker: MoshiSpeaker, on_file: OnFile | None
) -> list[Outcome]:
    outcomes: list[Outcome] = []
    paths: dict[str, str] = {}
    digests: dict[str, str] = {}
    for done, file in enumerate(files):
        outcome = Outcome(file.relative_to(source).as_posix())
        outcomes.append(outcome)
        if on_file:
            on_file(outcome.source, done, len(files))
        outcome.path = (Path(_RECORDINGS) / outcome.source).with_suffix(".wav").as_posix()
        outcome.digest = blake3.blake3().update_mmap(file).hexdigest()
        same_name = paths.setdefault(outcome.path, outcome.source)
        same_sound = digests.setdefault(outcome.digest, outcome.source)
        if same_name != outcome.source:
            outcome.left_out = f"{same_name} has the same name"
        elif same_sound != outcome.source:
            outcome.left_out = f"{same_sound} has the same sound"
        else:
            outcome.left_out = _try_one(file, out / outcome.path, moshi_speaker, outcome)
        if outcome.left_out:
            outcome.path = None
    if all(outcome.path is None for outcome in outcomes):
        raise DataError(f"none of the {len(files)} recordings can be used; the first: {outcomes[0].left_out}")
    return outcomes


def _try_one(file: Path, target: Path, moshi_speaker: MoshiSpeaker, outcome: Outcome) -> str | None:
    """Why the file cannot be used; nothing of it is left behind then."""
    try:
        _prepare_one(file, target, moshi_speaker, outcome)
    except DataError as error:
        target.unlink(missing_ok=True)
        return str(error).removeprefix(str(file)).lstrip(": ")
    return None


def _prepare_one(file: Path, target: Path, moshi_speaker: MoshiSpeaker, outcome: Outcome) -> None:
    info = read_info(file)
    if info.seconds < 1 / FRAME_RATE:
        raise DataError(f"{info.seconds:.3f} s are less than one frame (0.08 s)")
    given = transcript_path(file)
    plain = file.with_suffix(".txt")
    transcript = read_transcript(given, moshi_speaker) if given.is_file() else None
    if transcript and transcript.layout == "alignments" and moshi_speaker == "B":
        raise DataError(f"{given.name} says itself who Moshi is (SPEAKER_MAIN, left); leave `--moshi_speaker` at A")
    pairs = read_plain_text(plain, moshi_speaker) if transcript is None and plain.is_file() else None

    target.parent.mkdir(parents=True, exist_ok=True)
    swap = moshi_speaker == "B" and info.channels == 2
    decibels = _write_sound(file, info, target, swap, outcome)
    if pairs is not None:
        words = _guess_times(pairs, decibels)
        transcript = Transcript(words, "alignments", approximate=True)
        outcome.done.append(f"words of {plain.name} spread over the voiced parts")
    if transcript is None:
        outcome.done.append("no transcript: its text stream will be absent")
    else:
        _write_transcript(transcript_path(target), transcript)
        outcome.word_times = "approximate" if transcript.approximate else "given"
    outcome.seconds = info.samples_24k / SAMPLE_RATE
    outcome.words = sum(word.speaker == MAIN_SPEAKER for word in transcript.words) if transcript else 0


def _write_sound(file: Path, info: AudioInfo, target: Path, swap: bool, outcome: Outcome) -> np.ndarray:
    """Writes 24 kHz stereo, Moshi left; returns the energies of the source's channels, Moshi first, `[channels, hops]`.

    A wav that is right already is copied byte for byte.
    """
    right = file.suffix.lower() == ".wav" and (info.sample_rate, info.channels, swap) == (SAMPLE_RATE, 2, False)
    meter = EnergyMeter(info.channels)
    if right:
        for block in read_blocks(file):
            meter.add(block)
        shutil.copyfile(file, target)
        outcome.done.append("copied")
        return meter.decibels()
    with soundfile.SoundFile(target, "w", SAMPLE_RATE, 2, subtype="PCM_16", format="WAV") as wav:
        for block in read_blocks(file):
            moshi_first = block[::-1] if swap else block
            meter.add(moshi_first)
            silence = np.zeros((2 - info.channels, block.shape[1]), np.float32)
            wav.write(np.concatenate([moshi_first, silence]).T)
    if info.sample_rate != SAMPLE_RATE:
        outcome.done.append(f"resampled from {info.sample_rate} Hz")
    if info.channels == 1:
        outcome.done.append("mono: taken as Moshi's voice, with a silent user")
    if swap:
        outcome.done.append("channels swapped")
    if not outcome.done:
        outcome.done.append("rewritten as 16-bit wav")
    return meter.decibels()


def _guess_times(pairs: list[tuple[str, str]], decibels: np.ndarray) -> tuple[Word, ...]:
    """Times for `(speaker, word)` pairs. In stereo each speaker's words lie where his channel is loud."""
    spans = [voiced_spans(channel) for channel in decibels]
    turns = []
    for speaker, group in groupby(pairs, key=lambda pair: pair[0]):
        channel = 0 if speaker == MAIN_SPEAKER or len(spans) == 1 else 1
        turns.append((channel, speaker, [word for _, word in group]))
    for channel, _, texts in turns:
        if not spans[channel]:
            whose = "Moshi's" if channel == 0 else "the user's"
            raise DataError(
                f"the transcript has words ({texts[0]!r}, ...) for {whose} channel, which is silent throughout"
            )
    words: list[Word] = []
    if {channel for channel, _, _ in turns} == {0, 1}:
        for turn in assign_spans([(channel, texts) for channel, _, texts in turns], spans):
            speaker = MAIN_SPEAKER if turn.channel == 0 else OTHER_SPEAKER
            words += _words([(speaker, text) for text in turn.words], turn.spans)
    else:
        # One channel: nothing but the order of the words says where they lie.
        words = _words(pairs, spans[turns[0][0]])
    return tuple(sorted(words, key=lambda word: word.start))


def _words(pairs: list[tuple[str, str]], spans: Sequence[Span]) -> list[Word]:
    times = spread_words([text for _, text in pairs], spans)
    return [Word(text, round(t.start, 3), round(t.end, 3), who) for (who, text), t in zip(pairs, times, strict=True)]


def _write_transcript(path: Path, transcript: Transcript) -> None:
    document: dict[str, object] = {"alignments": alignments(transcript.words)}
    if transcript.approximate:
        document["word_times"] = "approximate"
    path.write_text(json.dumps(document, ensure_ascii=False, indent=0) + "\n", encoding="utf-8")


def _write_lists(out: Path, outcomes: Sequence[Outcome], eval_fraction: float) -> dict[str, int]:
    used = [outcome for outcome in outcomes if outcome.path is not None]
    if not eval_fraction:
        return {"data.jsonl": _write_list(out / "data.jsonl", used)}
    if len(used) < 2:
        raise DataError("one recording cannot be split into training and evaluation data; leave `--eval_fraction` out")
    held_out = min(max(1, round(eval_fraction * len(used))), len(used) - 1)
    # By content, so that renaming files or adding a transcript moves nothing between the two.
    chosen = {outcome.digest for outcome in sorted(used, key=lambda outcome: outcome.digest)[:held_out]}
    return {
        "train.jsonl": _write_list(out / "train.jsonl", [o for o in used if o.digest not in chosen]),
        "eval.jsonl": _write_list(out / "eval.jsonl", [o for o in used if o.digest in chosen]),
    }


def _write_list(path: Path, outcomes: Sequence[Outcome]) -> int:
    lines = [{"path": outcome.path, "duration": outcome.seconds} for outcome in outcomes]
    path.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), encoding="utf-8")
    return len(lines)


def _public(outcome: Outcome) -> dict[str, object]:
    return {key: value for key, value in asdict(outcome).items() if key != "digest"}
