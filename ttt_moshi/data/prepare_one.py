"""One recording of somebody's own, made into a 24 kHz stereo wav with Moshi on the left and a transcript."""

from __future__ import annotations

import json
import math
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby, zip_longest
from pathlib import Path

import blake3
import numpy as np

from ttt_moshi.data.addresses import readable
from ttt_moshi.data.align import Aligner, align_in
from ttt_moshi.data.audio import AudioInfo, read_blocks, read_info
from ttt_moshi.data.digests import file_digest
from ttt_moshi.data.errors import DataError, PassingError
from ttt_moshi.data.levels import LevelMeter
from ttt_moshi.data.loudness import gains
from ttt_moshi.data.remote import is_there, local
from ttt_moshi.data.rows import Row, as_files
from ttt_moshi.data.rules import MAX_REPAIRED, judge_levels, judge_words
from ttt_moshi.data.separate import Separation, separate
from ttt_moshi.data.sound_files import new_sound
from ttt_moshi.data.transcripts import (
    DROPPED,
    ENDLESS,
    MAIN_SPEAKER,
    OTHER_SPEAKER,
    MoshiSpeaker,
    Transcript,
    Untimed,
    Word,
    alignments,
    find_transcript,
    read_any,
    require_short_name,
    seconds_to_say,
    speakers_of,
    told_repairs,
    transcript_path,
)
from ttt_moshi.data.turns import assign_spans
from ttt_moshi.data.voiced import EnergyMeter, Span, spread_words, voiced_spans
from ttt_moshi.frames import FRAME_RATE, SAMPLE_RATE

_CUT = "ending after the recording, cut there"
_FAR_BEYOND = 2.0
"""times the length of a recording, from which on a time is not merely late"""


@dataclass(frozen=True)
class Choices:
    """What only the owner of the recordings can know."""

    moshi_speaker: MoshiSpeaker = "A"
    """whose channel becomes Moshi's: A is left in the source, B right"""
    moshi_label: str | None = None
    """Moshi's name, in transcripts that have it"""
    channels: tuple[int, ...] | None = None
    """numbers from 1 of Moshi's and the user's channel; of Moshi's alone"""
    mono_mix: bool = False
    """whether a channel may hold both voices"""
    max_repaired: float = MAX_REPAIRED
    """share of the words of a transcript that may have had no usable time"""
    normalise: float | None = None
    """LUFS to which each channel is brought; None leaves levels as they are"""
    separate: bool = False
    """whether mono recordings become two channels, by the RTTM of a diarizer beside them"""
    align: str | None = None
    """`pocketsphinx` finds words without times; None spreads them over the voiced parts"""


@dataclass(frozen=True)
class Item:
    """A recording as it was found."""

    name: str
    """relative to the source folder"""
    path: str
    """of the wav that is made of it, relative to the data set"""
    files: tuple[Path, ...]
    """one file, or Moshi's and the user's"""
    transcript: Path | None
    """None where a pair has a transcript a file"""
    diarization: Path | None = None
    """RTTM beside it that says who speaks when, where it may be needed"""
    row: Row | None = None
    """of a data set, in the place of files"""
    unusable: str | None = None
    """why it is left out, where its name alone says so"""


@dataclass
class Outcome:
    """What became of one recording."""

    source: str
    """relative to the source folder"""
    path: str | None = None
    """relative to the data set; None where the recording was left out"""
    seconds: float = 0.0
    words: int = 0
    """of Moshi"""
    word_times: str = "none"
    """given, approximate, or none where there is no transcript"""
    separated: bool = False
    """whether its two channels were one"""
    done: list[str] = field(default_factory=list)
    """what was done to it, and what to know of it, in words"""
    left_out: str | None = None
    """why it is not in the data set"""
    passing: bool = False
    """whether another attempt may find otherwise, since neither its content nor the choices left it out"""
    digest: str = ""


def diarization_path(audio: Path) -> Path | None:
    """The RTTM beside a recording."""
    candidate = audio.with_suffix(".rttm")
    return candidate if is_there(candidate) else None


def prepare_one(item: Item, target: Path, choices: Choices) -> Outcome:
    """Writes `target` and the transcript beside it; where the recording cannot be used, the outcome says why.

    Raises:
        OSError: `target` cannot be written.
    """
    if item.unusable is not None:
        return Outcome(item.name, left_out=item.unusable)
    if item.row is not None:
        try:
            with as_files(item.row) as (recording, transcript):
                return prepare_one(Item(item.name, item.path, (recording,), transcript), target, choices)
        except DataError as error:
            return Outcome(item.name, left_out=str(error), passing=isinstance(error, PassingError))
    outcome = Outcome(item.name)
    try:
        digests = [file_digest(file) for file in item.files]
        outcome.digest = digests[0] if len(digests) == 1 else blake3.blake3(" ".join(digests).encode()).hexdigest()
        _prepare(item, target, choices, outcome)
        outcome.path = ""
    except DataError as error:
        told = str(error).removeprefix(readable(str(item.files[0]))).lstrip(": ")
        outcome.left_out = told.replace(readable(f"{item.files[0].parent}{os.sep}"), "")
        outcome.passing = isinstance(error, PassingError)
    except OSError:
        raise
    except Exception as error:  # noqa: BLE001 - one file that nobody thought of must not cost all the others
        outcome.left_out = f"unexpected {type(error).__name__}: {' '.join(str(error).split())}"
        outcome.passing = True
    if outcome.left_out:
        target.unlink(missing_ok=True)
        transcript_path(target).unlink(missing_ok=True)
    return outcome


def _prepare(item: Item, target: Path, choices: Choices, outcome: Outcome) -> None:
    require_short_name(item.files[0])
    infos = [read_info(file) for file in item.files]
    seconds = max(info.samples_24k for info in infos) / SAMPLE_RATE
    if seconds < 1 / FRAME_RATE:
        raise DataError(f"{seconds:.3f} s are less than one frame (0.08 s)")
    order = _channels(item, infos, choices)
    mono = infos[0].channels == 1 and len(item.files) == 1
    separation = _separation(item, choices) if mono and choices.separate else None
    found = _read_words(item, infos, choices)
    if separation is not None:
        order, outcome.separated = (0, 1), True
        found = _by_owner(item, found, separation)
    elif len(order) == 1 and mono and found is not None and not choices.mono_mix:
        _refuse_two_voices(found)

    target.parent.mkdir(parents=True, exist_ok=True)
    source = _Source(item, order, separation)
    decibels = _write_audio(source, infos, target, outcome, choices.normalise)
    if separation is not None:
        assert item.diarization is not None and choices.moshi_label is not None
        outcome.done += separation.told(item.diarization.name, choices.moshi_label)
    if isinstance(found, Untimed):
        outcome.done += found.remarks
        assert item.transcript is not None
        found, told = _placed(found.pairs, decibels, target if choices.align else None)
        outcome.done.append(f"words of {item.transcript.name} {told}")
    outcome.seconds = seconds
    if found is None:
        outcome.done.append("no transcript: its text stream will be absent")
        return
    found = _within(found, seconds, choices.max_repaired)
    for finding in judge_words("", found, seconds, decibels, choices.max_repaired):
        if finding.level == "problem":
            raise DataError(finding.message)
        if finding.kind not in ("word times", "repaired"):  # which are told below
            outcome.done.append(finding.message)
    outcome.done += [*found.remarks, *told_repairs(found.repairs)]
    _write_transcript(transcript_path(target), found)
    outcome.word_times = "approximate" if found.approximate else "given"
    outcome.words = sum(word.speaker == MAIN_SPEAKER for word in found.words)


def _channels(item: Item, infos: Sequence[AudioInfo], choices: Choices) -> tuple[int, ...]:
    """Which channels are read, Moshi's first; one where there is no user's."""
    if len(item.files) == 2:
        for file, info in zip(item.files, infos, strict=True):
            if info.channels != 1:
                raise DataError(f"{file.name} has {info.channels} channels; a file of a pair has one")
        return (0, 1)
    channels = infos[0].channels
    if choices.channels is not None:
        if max(choices.channels) > channels:
            raise DataError(f"there is no channel {max(choices.channels)}, it has {channels}")
        return tuple(number - 1 for number in choices.channels)
    if channels > 2:
        raise DataError(f"{channels} channels: `--channels 1,2` says which is Moshi's and which the user's")
    return (0,) if channels == 1 else (1, 0) if choices.moshi_speaker == "B" else (0, 1)


def _separation(item: Item, choices: Choices) -> Separation:
    file = item.files[0]
    if item.diarization is None:
        raise DataError(f"one channel: `--separate` needs {file.with_suffix('.rttm').name}, a diarizer's, beside it")
    return separate(file, item.diarization, choices.moshi_label)


def _by_owner(item: Item, found: Transcript | Untimed | None, separation: Separation) -> Transcript | Untimed | None:
    """Words of a transcript without speakers belong to whom their middle belongs to."""
    if found is None or item.transcript is None or speakers_of(item.transcript):
        return found
    if isinstance(found, Untimed):
        raise DataError(f"{item.transcript.name} has neither times nor speakers: nothing tells whose its words are")
    whose = (MAIN_SPEAKER, OTHER_SPEAKER)
    words = (replace(w, speaker=whose[separation.owner_at((w.start + w.end) / 2)]) for w in found.words)
    return replace(found, words=tuple(words))


def _read_words(item: Item, infos: Sequence[AudioInfo], choices: Choices) -> Transcript | Untimed | None:
    if item.transcript is not None:
        channels = infos[0].channels if len(item.files) == 1 else 1
        if channels == 2 or choices.moshi_speaker == "B":
            _refuse_the_channel_of_another(item.transcript, choices)
        return read_any(item.transcript, _moshis_side(channels, choices), choices.moshi_label)
    if len(item.files) == 1:
        return None
    return _words_of_a_pair(item.files)


def _moshis_side(channels: int, choices: Choices) -> MoshiSpeaker | None:
    """Which of A and B is Moshi: of the channels that are used, A comes first in the file. None where nothing says it.

    Args:
        channels: of the recording; 1 where there are two files.
    """
    if choices.separate and channels == 1:
        return None  # a diarizer names the speakers
    if choices.channels is None or channels == 1:
        return choices.moshi_speaker
    if len(choices.channels) == 2:
        return "A" if choices.channels[0] < choices.channels[1] else "B"
    return None if channels > 2 else "A" if choices.channels == (1,) else "B"


def _refuse_the_channel_of_another(transcript: Path, choices: Choices) -> None:
    """Raises where one speaker's words would get another one's channel, unless both have been said.

    A and B are the left and the right channel, and SPEAKER_MAIN is the left one.
    """
    main, label = MAIN_SPEAKER.casefold(), (choices.moshi_label or "").casefold()
    side = _moshis_side(2, choices)
    if not label and side != "B":
        return  # as usual: no need to read the transcript for this alone
    names = {name.casefold(): name for name in speakers_of(transcript)}
    if label in names and choices.channels is None and (main in names or names.keys() <= {"a", "b"}):
        own = "A" if label in ("a", main) else "B"
        if own != side:
            raise DataError(
                f"{transcript.name} has {names[label]} on the {'left' if own == 'A' else 'right'} channel, and the "
                f"other one is Moshi's: add `--moshi_speaker {own}`, or say with `--channels` which channel is Moshi's"
            )
    elif label not in names and main in names and side == "B":
        raise DataError(
            f"{transcript.name} says itself which speaker is the agent (SPEAKER_MAIN, left): take the left channel, or "
            f"say with `--moshi_label` whose words belong to the right one (it has {', '.join(names.values())})"
        )


def _words_of_a_pair(files: Sequence[Path]) -> Transcript | None:
    """Of a file a speaker, whoever the transcripts say speaks."""
    words: list[Word] = []
    repairs: Counter[str] = Counter()
    remarks: list[str] = []
    approximate = False
    language: str | None = None
    own = [find_transcript(file) for file in files]
    if own[0] is None:
        return None
    for path, speaker in zip(own, (MAIN_SPEAKER, OTHER_SPEAKER), strict=True):
        if path is None:
            continue
        names = speakers_of(path)
        if len(names) > 1:
            raise DataError(
                f"{path.name} has the speakers {', '.join(names)}, and the recording beside it one: the words of both "
                "belong into one transcript, named as both files are"
            )
        found = read_any(path, moshi_label=names[0] if names else None)
        if isinstance(found, Untimed):
            raise DataError(f"{path.name} has no times: the words of a pair without times belong into one transcript")
        words += [replace(word, speaker=speaker) for word in found.words]
        repairs.update(found.repairs)
        remarks += found.remarks
        approximate |= found.approximate
        language = language or found.language  # Moshi's comes first
    ordered = tuple(sorted(words, key=lambda word: word.start))
    return Transcript(ordered, "pair", approximate, dict(repairs), tuple(remarks), language)


def _refuse_two_voices(found: Transcript | Untimed) -> None:
    speakers = {who for who, _ in found.pairs} if isinstance(found, Untimed) else {w.speaker for w in found.words}
    if MAIN_SPEAKER in speakers and len(speakers) > 1:
        raise DataError(
            "one channel, and its transcript has two speakers: Moshi would speak for both; "
            "`--mono_mix` allows it, one channel a speaker is better"
        )


def _within(transcript: Transcript, seconds: float, max_repaired: float) -> Transcript:
    """The words up to the end of the recording, each mended by itself. Where all of them lie far beyond it, or a larger
    share than may be repaired, they stay as they are, and the rules say why.
    """
    far = sum(word.end > _FAR_BEYOND * seconds for word in transcript.words)
    if far == len(transcript.words) or far > max_repaired * len(transcript.words):
        return transcript
    repairs = Counter(transcript.repairs)
    words: list[Word] = []
    following = seconds  # when the next word begins, whoever says it
    for word in reversed(transcript.words):
        if word.start >= seconds:
            repairs[DROPPED] += 1
            continue
        if word.end > _FAR_BEYOND * seconds:
            repairs[ENDLESS] += 1
            guess = word.start + seconds_to_say(word.text)
            word = replace(word, end=min(guess, following) if following > word.start else guess)
        elif word.end > seconds:
            repairs[_CUT] += 1
        words.append(replace(word, end=min(word.end, seconds)))
        following = word.start
    return replace(transcript, words=tuple(reversed(words)), repairs=dict(repairs))


@dataclass(frozen=True)
class _Source:
    """Where the channels that are used come from."""

    item: Item
    order: tuple[int, ...]
    """Moshi's first"""
    separation: Separation | None

    def blocks(self) -> Iterator[np.ndarray]:
        """The channels that are used, Moshi's first."""
        if len(self.item.files) == 2:
            return _side_by_side(self.item.files)
        blocks = read_blocks(self.item.files[0])
        if self.separation is not None:
            return self.separation.channels(blocks)
        return (block[list(self.order)] for block in blocks)


def _write_audio(
    source: _Source,
    infos: Sequence[AudioInfo],
    target: Path,
    outcome: Outcome,
    normalise: float | None,
) -> np.ndarray:
    """Writes 24 kHz stereo, Moshi left; returns the energies of the channels, Moshi's first, `[channels, hops]`.

    A wav that is right already is copied byte for byte.
    """
    item, order = source.item, source.order
    file, info = item.files[0], infos[0]
    right = (info.sample_rate, info.channels, order) == (SAMPLE_RATE, 2, (0, 1)) and _is_stereo_wav(file)
    levels, energies = LevelMeter(len(order)), EnergyMeter(len(order))
    blocks = source.blocks()
    factors = np.ones(len(order), np.float32)
    if normalise is not None:
        factors[:] = gains(source.blocks(), len(order), normalise)
        right &= bool((factors == 1).all())
    if right:
        for block in blocks:
            levels.add(block)
            energies.add(block)
        shutil.copyfile(local(file), target)
        outcome.done.append("copied")
    else:
        with new_sound(target, SAMPLE_RATE, 2, subtype="PCM_16") as wav:
            for block in blocks:
                levels.add(block)
                block *= factors[:, None]
                energies.add(block)
                silence = np.zeros((2 - len(order), block.shape[1]), np.float32)
                wav.write(np.concatenate([block, silence]).T)
        outcome.done += _told(item, infos, order)
        if normalise is not None:
            told = (f"{20 * math.log10(factor):+.1f} dB" for factor in factors.tolist())
            outcome.done.append(f"towards {normalise:g} LUFS: {' and '.join(told)}")
    for finding in judge_levels("", levels.levels()):
        if finding.level == "problem":
            raise DataError(finding.message)
        outcome.done.append(finding.message)
    return energies.decibels()


def _told(item: Item, infos: Sequence[AudioInfo], order: tuple[int, ...]) -> list[str]:
    """What was done to the audio, for people."""
    told = []
    info = infos[0]
    rates = sorted({info.sample_rate for info in infos} - {SAMPLE_RATE})
    if rates:
        told.append(f"resampled from {' and '.join(map(str, rates))} Hz")
    if len(item.files) == 2:
        told.append(f"{item.files[0].name} is Moshi, {item.files[1].name} the user")
        difference = abs(infos[0].seconds - infos[1].seconds)
        if difference > 1 / FRAME_RATE:
            told.append(f"the shorter of them ends {difference:.2f} s earlier: silent from there")
    elif info.channels == 1 and len(order) == 1:
        told.append("mono: taken as Moshi's voice, with a silent user")
    elif info.channels == 2 and order == (1, 0):
        told.append("channels swapped")
    elif order != (0, 1):
        user = f"channel {order[1] + 1} the user" if len(order) == 2 else "a silent user"
        told.append(f"channel {order[0] + 1} of {info.channels} is Moshi, {user}")
    if info.tracks > 1:
        told.append(f"{info.tracks} audio tracks, the first is used")
    for file, own in zip(item.files, infos, strict=True):
        if own.begins_late:
            told.append(
                f"its sound begins {own.begins_late:.2f} s after its picture: word times must count from the sound"
            )
        if own.ends_early:
            told.append(own.ends_early if len(infos) == 1 else f"{file.name} {own.ends_early}")
    return told or ["rewritten as 16-bit wav"]


def _is_stereo_wav(file: Path) -> bool:
    with local(file).open("rb") as opened:
        head = opened.read(12)
    return head[:4] == b"RIFF" and head[8:] == b"WAVE"


def _side_by_side(files: Sequence[Path]) -> Iterator[np.ndarray]:
    """Two mono recordings as the channels of one, the shorter one filled up with silence."""
    waiting: list[np.ndarray] = [np.zeros((1, 0), np.float32)] * 2
    for blocks in zip_longest(*(read_blocks(file) for file in files), fillvalue=None):
        waiting = [w if b is None else np.concatenate([w, b], axis=1) for w, b in zip(waiting, blocks, strict=True)]
        ended = [block is None for block in blocks]
        length = min(w.shape[1] for w, end in zip(waiting, ended, strict=True) if not end)
        yield np.concatenate([_exactly(w, length) for w in waiting])
        waiting = [w[:, length:] for w in waiting]
    length = max(w.shape[1] for w in waiting)
    if length:
        yield np.concatenate([_exactly(w, length) for w in waiting])


def _exactly(samples: np.ndarray, length: int) -> np.ndarray:
    return np.pad(samples[:, :length], ((0, 0), (0, max(0, length - samples.shape[1]))))


def _placed(pairs: list[tuple[str, str]], decibels: np.ndarray, aligned: Path | None) -> tuple[Transcript, str]:
    """Words with times, and how they were found: by the sound of `aligned`, 24 kHz with Moshi left, or by loudness."""
    if aligned is None:
        return Transcript(
            _guess_times(pairs, decibels, _by_letters), "plain text", True
        ), "spread over the voiced parts"
    aligner, lost = Aligner(), 0

    def place(channel: int, texts: Sequence[str], spans: Sequence[Span]) -> list[Span]:
        nonlocal lost
        found = align_in(aligner, aligned, channel, texts, spans)
        lost += len(texts) if found is None else 0
        return _by_letters(channel, texts, spans) if found is None else found

    words = _guess_times(pairs, decibels, place)
    told = f"aligned by pocketsphinx, but {lost} of {len(words)} spread over the voiced parts"
    return Transcript(words, "plain text", lost > 0), told if lost else "aligned by pocketsphinx"


_Place = Callable[[int, Sequence[str], Sequence[Span]], list[Span]]
"""gives times to consecutive words of a channel that lie in some spans"""


def _by_letters(channel: int, texts: Sequence[str], spans: Sequence[Span]) -> list[Span]:
    return spread_words(texts, spans)


def _guess_times(pairs: list[tuple[str, str]], decibels: np.ndarray, place: _Place) -> tuple[Word, ...]:
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
            times = place(turn.channel, turn.words, turn.spans)
            words += _words([(speaker, text) for text in turn.words], times)
    else:
        # One channel: nothing but the order of the words says where they lie.
        channel = turns[0][0]
        words = _words(pairs, place(channel, [text for _, text in pairs], spans[channel]))
    return tuple(sorted(words, key=lambda word: word.start))


def _words(pairs: list[tuple[str, str]], times: Sequence[Span]) -> list[Word]:
    return [Word(text, round(t.start, 3), round(t.end, 3), who) for (who, text), t in zip(pairs, times, strict=True)]


def _write_transcript(path: Path, transcript: Transcript) -> None:
    document: dict[str, object] = {"alignments": alignments(transcript.words)}
    if transcript.language is not None:
        document["language"] = transcript.language
    if transcript.approximate:
        document["word_times"] = "approximate"
    with path.open("w", encoding="utf-8") as file:
        json.dump(document, file, ensure_ascii=False, indent=0)  # bit by bit: the text of hours is large
        file.write("\n")
