"""Lists of recordings: jsonl files with a `{"path", "duration"}` object per line.

A path names an audio file, or a file of codes (`ttt_moshi.data.encoded`).
"""

from __future__ import annotations

import functools
import itertools
import json
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any, get_args

from ttt_moshi.data.addresses import is_url, named_in, readable, url_of
from ttt_moshi.data.audio import AudioInfo, read_info
from ttt_moshi.data.digests import Digests, cache_folder
from ttt_moshi.data.encoded import EncodedInfo, is_encoded, read_encoded_info
from ttt_moshi.data.errors import DataError
from ttt_moshi.data.parts import part_of
from ttt_moshi.data.remote import files_below, is_there, local, located
from ttt_moshi.data.shards import container, is_stored
from ttt_moshi.data.transcripts import MAIN_SPEAKER, MoshiSpeaker, read_transcript, transcript_path
from ttt_moshi.files import read_text
from ttt_moshi.frames import FRAME_RATE, seconds_to_frames

DigestsFor = Callable[[Path], Digests]

_PART = re.compile(r"(.+)-(\d+)-of-(\d+)")
_NAMED_PARTS = 5
"""of those that are missing"""
_LINE_KEYS = ("path", "duration", "prefix_sec", "moshi_speaker")


@dataclass(frozen=True)
class Line:
    """One line of a jsonl file, before its recording has been looked at."""

    jsonl: Path
    number: int
    """from 1"""
    path: str
    """as written"""
    duration: float
    """seconds"""
    prefix_sec: float = 0.0
    """seconds at the start that are given to the model and not predicted"""
    moshi_speaker: MoshiSpeaker = "A"

    @property
    def where(self) -> str:
        return readable(f"{self.jsonl}, line {self.number}")

    @property
    def audio(self) -> Path:
        """The recording: relative to the jsonl file's folder, or, where nothing lies there, to the working folder.

        A path that stands for a URL where the line, or the place of the list, is one (`ttt_moshi.data.addresses`).
        """
        beside = named_in(self.jsonl.parent, self.path)
        return beside if is_there(container(beside)) or not is_there(Path(self.path)) else Path(self.path)


@dataclass(frozen=True)
class Recording:
    """A recording whose files are there."""

    id: str
    """names the recording by its content, independently of machine and paths; unique among all sources"""
    audio: Path
    """the audio file, or the file of codes"""
    digest: str
    """BLAKE3 of its bytes"""
    transcript: Path | None
    transcript_digest: str | None
    info: AudioInfo | EncodedInfo
    frames: int
    """frames that are used: those of the file, or fewer where the line's duration says so"""
    prefix_frames: int
    moshi_speaker: MoshiSpeaker
    """whose channel is Moshi's: A the left one, B the right one"""
    folder: Path
    """folder of the jsonl file"""

    @property
    def encoded(self) -> bool:
        """Whether the file holds codes and tokens, so that there is neither audio nor a transcript to read."""
        return isinstance(self.info, EncodedInfo)


@dataclass(frozen=True)
class Source:
    """One entry of `train_data` or `eval_data`."""

    recordings: tuple[Recording, ...]
    weight: Fraction


def _beside(folder: Path) -> Digests:
    return Digests(cache_folder(folder, None))


def spoken_text(recording: Recording, start: float, end: float) -> str | None:
    """What Moshi says from `start` to `end`, in seconds; None where there is no transcript to tell.

    Raises:
        DataError: a transcript that cannot be read.
    """
    if recording.transcript is None:
        return None
    words = read_transcript(recording.transcript, recording.moshi_speaker).words
    return " ".join(word.text for word in words if word.speaker == MAIN_SPEAKER and start <= word.start < end)


def open_sources(spec: str, digests: DigestsFor = _beside, shard: tuple[int, int] = (0, 1)) -> list[Source]:
    """The recordings of a comma-separated list of jsonl files or folders, each with an optional `:weight`.

    Args:
        digests: where digests of the files named in a jsonl file are remembered, by that file's folder.
        shard: which of how many parts, from 0: by the lists alone, so that no file of another part is read. Parts are
            about equally long, with about as much audio to encode. A source may have none of one.

    Raises:
        DataError: an empty or malformed list, a missing file, a corrupt line, a missing or unusable recording, a
            recording shorter than a frame or shorter than its line says.
    """
    digests = functools.cache(digests)  # each reads its whole file when it is first asked
    return [
        Source(tuple(_open_recordings(index, entry.lines, digests)), entry.weight)
        for index, entry in enumerate(_read_lists(spec, shard))
    ]


def names_audio(spec: str, shard: tuple[int, int] = (0, 1)) -> bool:
    """Whether some recording of the list is an audio file, so that a codec is needed. Reads the lists alone, and looks
    whether what they name is there: the first thing to ask of data, before a model is fetched for them.

    Args:
        shard: see `open_sources`.

    Raises:
        DataError: an empty or malformed list, a missing jsonl file, a corrupt line or a missing recording.
    """
    lines = listed_lines(spec, shard)
    for line in lines:
        _require_audio(line)
    return any(not is_encoded(line.path) for line in lines)


def listed_lines(spec: str, shard: tuple[int, int] = (0, 1)) -> list[Line]:
    """What the lists say, of the part that `open_sources` would open.

    Raises:
        DataError: an empty or malformed list, a missing jsonl file, a corrupt line.
    """
    return [line for entry in _read_lists(spec, shard) for line in entry.lines]


def split_spec(spec: str) -> list[tuple[Path, Fraction]]:
    """The entries of a comma-separated list of jsonl files or folders with their weights, 1 where none is given. URLs
    become the paths that stand for them.

    Raises:
        DataError: an empty or malformed list.
    """
    entries = [_split_weight(entry.strip()) for entry in spec.split(",") if entry.strip()]
    if not entries:
        raise DataError("no data: name a jsonl file, or a folder of such files")
    paths = [path for path, _ in entries]
    for path in paths:
        if paths.count(path) > 1:
            raise DataError(f"{path} is named twice; give it a weight instead, as in `{url_of(path) or path}:2`")
    return entries


def jsonl_files(path: Path) -> list[Path]:
    """`lists_at`, all of whose parts are there.

    Raises:
        DataError: see `lists_at`; or a list of which a part is missing.
    """
    files = lists_at(path)
    for told in told_missing(path, files):
        raise DataError(told)
    return files


def lists_at(path: Path) -> list[Path]:
    """`path` itself, or the jsonl files below it in the order of their names. Hidden ones are no data: digests that are
    remembered there, and what an unfinished `data prepare` has left.

    Raises:
        DataError: nothing there; or the same list in different numbers of parts, so that recordings would come twice.
    """
    files = _jsonl_files_at_url(path) if url_of(path) is not None else _jsonl_files_on_disk(path)
    for (folder, name), divisions in parts(files).items():
        if len(divisions) > 1:
            raise DataError(
                f"{folder / name}.jsonl is there {told_divisions(divisions)}: every recording would be read "
                f"{len(divisions)} times; delete what an earlier `data encode` left, or name the lists that are meant"
            )
    return files


def parts(lists: Iterable[Path]) -> dict[tuple[Path, str], dict[int, list[Path]]]:
    """Lists by folder and name, and by the number of parts that there are: `data-00002-of-00008.jsonl` is one of the
    eight parts of `data`, `data.jsonl` the whole.
    """
    found: dict[tuple[Path, str], dict[int, list[Path]]] = {}
    for path in sorted(lists):
        match = _PART.fullmatch(path.stem)
        name, count = (path.stem, 1) if match is None else (match[1], int(match[3]))
        found.setdefault((path.parent, name), {}).setdefault(count, []).append(path)
    return found


def told_divisions(divisions: dict[int, list[Path]]) -> str:
    """For people, of what `parts` says of one list."""
    return " and ".join(
        f"whole ({paths[0].name})" if count == 1 else f"in {count} parts ({paths[0].name}, ...)"
        for count, paths in sorted(divisions.items())
    )


def require_apart(spec: str, out: Path, name: str) -> None:
    """Of a data set that is to be made of another one.

    Args:
        out: its folder.
        name: of its list, whole or in parts.

    Raises:
        DataError: its list would replace one of `spec`, or be read with them from then on; see also `lists_at`.
    """
    out = _real(out)
    for path, _ in split_spec(spec):
        for file in lists_at(path):
            for place in {_real(file), _real(file.parent) / file.name}:
                if place.parent == out and next(iter(parts([place])))[1] == name:
                    raise DataError(f"{out} holds {file}, which is read, and would be written: name another folder")
        folder = _real(path)
        below = out.is_relative_to(folder) and not any(p.startswith(".") for p in out.relative_to(folder).parts)
        if below:
            raise DataError(
                f"{out} lies in {path}, all of whose lists are read: recordings would be read twice from then on; name "
                "another folder"
            )


def _real(path: Path) -> Path:
    return path if url_of(path) is not None else path.resolve()


def told_missing(path: Path, files: Sequence[Path]) -> Iterator[str]:
    """For people, of each list below `path` that lacks some of its parts. A part without recordings is there too, as an
    empty list. Whoever names a part itself wants no other.

    Args:
        files: `lists_at(path)`.
    """
    if path in files:
        return
    for (folder, name), divisions in parts(files).items():
        for count, paths in divisions.items():
            missing = _missing(name, count, paths)
            if missing:
                total = count - len(paths)
                more = f" and {total - len(missing)} more" if total > len(missing) else ""
                yield (
                    f"{folder} lacks {', '.join(missing)}{more}, of {count} parts of `{name}`: make what is missing "
                    "(`ttt-moshi data encode --shard`; a part without recordings is an empty list), or name the lists "
                    "that are meant"
                )


def _missing(name: str, count: int, paths: Sequence[Path]) -> list[str]:
    """Names of the first parts that are not there."""
    found = [match for path in paths if (match := _PART.fullmatch(path.stem))]
    if len(found) >= count or not found:
        return []
    numbers = {int(match[2]) for match in found}
    first = min(1, *numbers)  # some count from 0
    absent = (number for number in range(first, first + count) if number not in numbers)
    width, of = len(found[0][2]), found[0][3]
    return [f"{name}-{number:0{width}}-of-{of}.jsonl" for number in itertools.islice(absent, _NAMED_PARTS)]


def _jsonl_files_on_disk(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise DataError(f"no data at {path}: neither a jsonl file nor a folder of such files")
    files = sorted(
        file
        for file in path.rglob("*.jsonl")
        if file.is_file() and not any(part.startswith(".") for part in file.relative_to(path).parts)
    )
    if not files:
        raise DataError(f"{path} holds no file that ends in .jsonl; `ttt-moshi data prepare` makes one")
    return files


def _jsonl_files_at_url(path: Path) -> list[Path]:
    if is_there(path):
        return [path]
    if path.suffix == ".jsonl":
        raise DataError(f"no data at {path}: there is no such file")
    files = [
        file
        for file in files_below(path, ".jsonl")
        if not any(part.startswith(".") for part in file.relative_to(path).parts)
    ]
    if not files:
        raise DataError(f"no data at {path}: neither a jsonl file nor a folder of such files")
    return files


def read_line(jsonl: Path, number: int, text: str) -> Line:
    """One line of a jsonl file.

    Raises:
        DataError: not the JSON object that it should be; the message names file and line.
    """
    where = readable(f"{jsonl}, line {number}")
    try:
        values = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where} is not valid JSON: {error}") from error
    if not isinstance(values, dict) or not isinstance(values.get("path"), str) or not values["path"]:
        raise DataError(f'{where} is not {{"path": ..., "duration": ...}}: {text.strip()[:80]}')
    if "\0" in values["path"]:
        raise DataError(f"{where}: no file has a zero byte in its name, as `path` has here: {values['path']!r:.80}")
    try:
        if is_url(values["path"]):
            located(values["path"])
    except DataError as error:
        raise DataError(f"{where}: {error}") from error
    duration = _seconds(where, values, "duration", None)
    speaker = values.get("moshi_speaker", "A")
    if speaker not in get_args(MoshiSpeaker):
        raise DataError(f"{where}: `moshi_speaker` is A (left channel) or B (right channel), got {speaker!r}")
    return Line(jsonl, number, values["path"], duration, _seconds(where, values, "prefix_sec", 0.0), speaker)


def unknown_keys(text: str) -> list[str]:
    """Keys of a well-formed line that have no meaning here, such as a misspelt one."""
    return sorted(set(json.loads(text)) - set(_LINE_KEYS))


def numbered_lines(jsonl: Path) -> list[tuple[int, str]]:
    """The lines of a jsonl file that are not blank, with their numbers from 1.

    Raises:
        DataError: a file that cannot be read.
    """
    try:
        # Not `splitlines`, which takes more for the end of a line than JSON does.
        texts = read_text(local(jsonl), encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot read {jsonl}: {error}") from error
    return [(number, text) for number, text in enumerate(texts, start=1) if text.strip()]


def _split_weight(entry: str) -> tuple[Path, Fraction]:
    path, colon, weight = entry.rpartition(":")
    # A colon before a slash is that of a scheme or a port.
    if not colon or (is_url(entry) and "/" in weight) or Path(entry).exists():
        return located(entry), Fraction(1)
    try:
        value = Fraction(weight)
    except (ValueError, ZeroDivisionError) as error:
        raise DataError(f"`{entry}`: after the colon belongs a weight such as 0.5, got `{weight}`") from error
    if value <= 0:
        raise DataError(f"`{entry}`: a weight must be greater than 0")
    return located(path), value


@dataclass(frozen=True)
class _Entry:
    """The lines of one entry of `train_data`."""

    lines: list[Line]
    weight: Fraction


def _read_lists(spec: str, shard: tuple[int, int]) -> list[_Entry]:
    """What the lists say, of one part. Raises as `open_sources`."""
    entries = []
    for path, weight in split_spec(spec):
        lines = [
            read_line(jsonl, number, text) for jsonl in jsonl_files(path) for number, text in numbered_lines(jsonl)
        ]
        if not lines:
            raise DataError(f"{path} lists no recordings")
        entries.append(_Entry(lines, weight))
    listed = [line for entry in entries for line in entry.lines]
    mine: set[int] = set()
    for encoded in (False, True):
        places = [place for place, line in enumerate(listed) if is_encoded(line.path) == encoded]
        mine.update(places[i] for i in part_of([listed[place].duration for place in places], *shard))
    place = iter(range(len(listed)))
    return [replace(entry, lines=[line for line in entry.lines if next(place) in mine]) for entry in entries]


def _open_recordings(index: int, lines: Sequence[Line], digests: DigestsFor) -> Iterator[Recording]:
    times: Counter[str] = Counter()
    for line in lines:
        recording = open_recording(line, digests(line.jsonl.parent))
        times[recording.digest] += 1
        again = f"+{times[recording.digest]}" if times[recording.digest] > 1 else ""
        yield replace(recording, id=f"{index}/{recording.digest[:16]}{again}")


def _require_audio(line: Line) -> None:
    if not is_stored(line.audio):
        what = "file of codes" if is_encoded(line.path) else "audio file"
        raise DataError(f"{line.where}: no {what} {line.path} beside the jsonl file or in the working folder")


def open_recording(line: Line, digests: Digests) -> Recording:
    """The recording of a line, which has no name of its own yet.

    Raises:
        DataError: see `open_sources`.
    """
    _require_audio(line)
    info = _read_header(line, digests)
    if isinstance(info, AudioInfo) and info.channels > 2:
        raise DataError(
            f"{line.where}: {line.audio} has {info.channels} channels, of which training reads two; "
            "`ttt-moshi data prepare --channels` takes two of them"
        )
    wanted = seconds_to_frames(line.duration)
    if info.seconds * FRAME_RATE < 1 or line.duration * FRAME_RATE < 1:
        shorter = min(info.seconds, line.duration)
        raise DataError(f"{line.where}: {line.audio} has {shorter:.3f} s, less than one frame (0.08 s); leave it out")
    if wanted > info.frames + 1:
        raise DataError(
            f"{line.where}: the duration is {line.duration:.2f} s but {line.audio} has {info.seconds:.2f} s; "
            "correct the line (`ttt-moshi data check` lists all such lines)"
        )
    if line.moshi_speaker == "B":
        if isinstance(info, EncodedInfo):
            raise DataError(
                f"{line.where}: the codes of {line.audio} say which streams are Moshi's; drop `moshi_speaker`"
            )
        if info.channels == 1:
            raise DataError(f"{line.where}: {line.audio} is mono, so Moshi can only be speaker A")
    beside = transcript_path(line.audio)
    transcript = beside if not is_encoded(line.path) and is_there(beside) else None
    return Recording(
        id="",
        audio=line.audio,
        digest=digests.of(line.audio),
        transcript=transcript,
        transcript_digest=digests.of(transcript) if transcript else None,
        info=info,
        frames=min(wanted, info.frames),
        prefix_frames=seconds_to_frames(line.prefix_sec),
        moshi_speaker=line.moshi_speaker,
        folder=line.jsonl.parent,
    )


def _read_header(line: Line, digests: Digests) -> AudioInfo | EncodedInfo:
    """What a file holds; remembered of codes where they are at a URL, so that they need not be fetched to know."""
    if not is_encoded(line.path):
        return read_info(line.audio, digests)
    if url_of(line.audio) is None:
        return read_encoded_info(line.audio)
    found = digests.remember(line.audio, "header", lambda path: json.dumps(asdict(read_encoded_info(path))))
    return EncodedInfo(**json.loads(found))


def _seconds(where: str, values: dict[str, Any], key: str, default: float | None) -> float:
    value = values.get(key, default)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= sys.float_info.max:
        raise DataError(f"{where}: `{key}` must be a number of seconds, got {value!r:.80}")
    return float(value)
