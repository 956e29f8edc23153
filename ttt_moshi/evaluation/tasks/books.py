"""Long recordings in the layout of Libri-Light: one folder per book, speech found by voice activity detection.

librilight/<size>/<speaker>/<book>/<file>.flac (or .wav) and <file>.json with "voice_activity": [[start, end], ...]
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from ttt_moshi.data.audio import files_below
from ttt_moshi.evaluation.documents import read_json
from ttt_moshi.evaluation.errors import MALFORMED, EvaluationError
from ttt_moshi.evaluation.examples import Segment, Source
from ttt_moshi.evaluation.fields import span, told_apart
from ttt_moshi.evaluation.listing import chosen_of

FOLDERS = ("librilight", "libri-light", "LibriLight")


@dataclass(frozen=True)
class Book:
    """The speech of consecutive files of one book, without the pauses that the VAD cut out."""

    id: str  # speaker/book, or where that would name several its whole path
    speaker: str
    source: Source


def find_books(data_root: Path) -> list[Book]:
    """Every book below `data_root/librilight`, by name.

    Raises:
        EvaluationError: there is none, or two files of one have the same name but for their suffix.
    """
    root = next((data_root / name for name in FOLDERS if (data_root / name).is_dir()), None)
    if root is None:
        raise EvaluationError(f"no long recordings: expected {data_root / FOLDERS[0]}/<size>/<speaker>/<book>/*.flac")
    folders: dict[Path, list[Path]] = {}
    for path in chosen_of(root, files_below(root), ".flac", ".wav"):
        folders.setdefault(path.parent, []).append(path)
    if not folders:
        raise EvaluationError(f"{root} holds no .flac or .wav file")
    short = {folder: f"{folder.parent.name}/{folder.name}" for folder in sorted(folders)}
    called = Counter(short.values())
    return [
        _book(name if called[name] == 1 else folder.relative_to(root).as_posix(), folder, folders[folder])
        for folder, name in short.items()
    ]


def _book(id: str, folder: Path, files: list[Path]) -> Book:
    told_apart(files, lambda path: path.stem)
    segments = tuple(segment for path in files for segment in _speech(path))
    if not segments:
        raise EvaluationError(f"{folder}: the voice activity of its files is empty")
    return Book(id, folder.parent.name, Source(segments))


def _speech(path: Path) -> list[Segment]:
    description = path.with_suffix(".json")
    if not description.is_file():
        return [Segment(path)]
    found = read_json(description)
    try:
        activity = found["voice_activity"]
        return [Segment(path, *span(*stretch)) for stretch in activity]
    except MALFORMED as error:
        raise EvaluationError(
            f'{description} is no Libri-Light description with "voice_activity": [[start, end], ...] ({error})'
        ) from None
