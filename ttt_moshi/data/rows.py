"""Rows of Hugging Face data sets as recordings with transcripts: the bytes of the audio as they were stored.

Read are Parquet files, which is what the hub keeps of every public data set, and the Arrow files that `save_to_disk`
writes, on a disk or at URLs. Nothing of a data set is ever run.
"""

from __future__ import annotations

import functools
import json
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from ttt_moshi.data.addresses import named_in, url_of
from ttt_moshi.data.audio import AUDIO_SUFFIXES, files_below
from ttt_moshi.data.digests import state_of
from ttt_moshi.data.errors import DataError, kind_of
from ttt_moshi.data.remote import local
from ttt_moshi.extras import need

NO_TRANSCRIPTS = "-"
"""stands for a column where there is none"""

_SUFFIXES = (".parquet", ".arrow")
_NUMBERED = re.compile(r"-\d+-of-\d+$")


@dataclass(frozen=True)
class Rows:
    """A data set, and what its columns are."""

    folder: Path
    """on a disk, or standing for a URL"""
    transcript: str
    """column of the transcripts: text, or words with times as any file may have them; or `NO_TRANSCRIPTS`"""
    audio: str | None = None
    """column of the recordings; None takes the only one that holds audio"""
    split: str | None = None
    """None takes the only one that there is"""


@dataclass(frozen=True)
class Row:
    """One recording of a data set."""

    name: str
    """split and number"""
    folder: Path
    """of the data set, which holds all of it"""
    file: Path
    group: int
    """of the rows in the file that are read together"""
    number: int
    """in the group"""
    audio: str
    transcript: str


def rows_of(rows: Rows) -> list[Row]:
    """Every row, of columns that are there.

    Raises:
        DataError: no such data set, split or column, or no rows.
        MissingPackageError: pyarrow is not installed.
    """
    need("pyarrow", "a Hugging Face data set")
    split, files = _files(rows)
    found: list[Row] = []
    for file in files:
        table = _open(local(file))
        audio = rows.audio or _only_audio(rows.folder, table.schema)
        for column in (audio, rows.transcript):
            if column not in (*table.names, NO_TRANSCRIPTS):
                raise DataError(f"{file} has no column {column}; it has {', '.join(table.names)}")
        for group, count in enumerate(table.groups):
            found += [
                Row(f"{split}/{len(found) + number:08}", rows.folder, file, group, number, audio, rows.transcript)
                for number in range(count)
            ]
    if not found:
        raise DataError(f"{rows.folder} has no rows")
    return found


def state_of_row(row: Row) -> list[object]:
    """Equal where a row has not been touched."""
    return [str(row.file), *state_of(row.file), row.group, row.number, row.audio, row.transcript]


@contextmanager
def as_files(row: Row) -> Iterator[tuple[Path, Path | None]]:
    """A row as a recording and its transcript on the disk, as long as the body runs.

    Raises:
        DataError: a row without audio, or whose transcript is no such thing; or one that cannot be read.
    """
    values = _read(local(row.file), row.group, row.audio, row.transcript)[row.number]
    audio = values[row.audio]
    content, stored = (audio.get("bytes"), audio.get("path")) if isinstance(audio, dict) else (audio, None)
    if content is None and stored:
        content = _content(row, stored)
    if not isinstance(content, bytes):
        raise DataError("the row has no audio")
    suffix = Path(stored or "").suffix.lower()
    with TemporaryDirectory(prefix="ttt-moshi-row-") as folder:
        recording = Path(folder, f"row{suffix if suffix in AUDIO_SUFFIXES else '.wav'}")
        recording.write_bytes(content)
        yield recording, _write_transcript(recording, values.get(row.transcript))


def _files(rows: Rows) -> tuple[str, list[Path]]:
    """The split, and its files.

    Raises:
        DataError: none, or several splits of which none was named.
    """
    folder = rows.folder
    if url_of(folder) is None and not folder.is_dir():
        raise DataError(f"no data set at {folder}")
    splits: dict[str, list[Path]] = {}
    for file in files_below(folder):
        if file.suffix in _SUFFIXES and not file.name.startswith("cache-"):  # what the library computes lies there too
            splits.setdefault(_split(folder, file), []).append(file)
    names = ", ".join(sorted(splits))
    if not splits:
        raise DataError(f"{folder} holds no Parquet files, nor those that `save_to_disk` writes")
    if rows.split is None and len(splits) > 1:
        raise DataError(f"{folder} has the splits {names}: `--hf_split` names one of them")
    split = rows.split or next(iter(splits))
    if split not in splits:
        raise DataError(f"{folder} has no split {split}; it has {names}")
    return split, splits[split]


def _split(folder: Path, file: Path) -> str:
    """Of `train-00000-of-00002.parquet`, `train/0000.parquet` and `train/data-00000-of-00001.arrow`: train."""
    name = _NUMBERED.sub("", file.stem)
    if name in ("data", "") or name.isdigit():
        return file.parent.name if file.parent != folder else folder.name
    return name


@dataclass(frozen=True)
class _Table:
    """A file with rows that are read group by group."""

    schema: Any
    names: Sequence[str]
    """of the columns"""
    groups: Sequence[int]
    """rows of each"""
    opened: Any

    def read(self, group: int, columns: Sequence[str]) -> list[dict[str, Any]]:
        if isinstance(self.opened, list):
            batch = self.opened[group].select(columns)
            # Decoding does this for Parquet files. Offsets in corrupt Arrow files lead anywhere.
            batch.validate(full=True)
            return batch.to_pylist()  # type: ignore[no-any-return]
        return self.opened.read_row_group(group, columns=columns).to_pylist()  # type: ignore[no-any-return]


@functools.lru_cache(maxsize=2)
def _open(path: Path) -> _Table:
    import pyarrow

    try:
        if path.suffix == ".arrow":
            batches = list(pyarrow.ipc.open_stream(pyarrow.memory_map(str(path))))
            schema = pyarrow.ipc.open_stream(pyarrow.memory_map(str(path))).schema
            return _Table(schema, schema.names, [batch.num_rows for batch in batches], batches)
        from pyarrow.parquet import ParquetFile

        opened = ParquetFile(path, memory_map=True)
        sizes = [opened.metadata.row_group(group).num_rows for group in range(opened.num_row_groups)]
        return _Table(opened.schema_arrow, opened.schema_arrow.names, sizes, opened)
    except (pyarrow.ArrowException, OSError, ValueError) as error:  # names that are no text, too
        raise kind_of(error)(f"{path} cannot be read: {' '.join(str(error).split())}") from error


@functools.lru_cache(maxsize=1)
def _read(path: Path, group: int, audio: str, transcript: str) -> list[dict[str, Any]]:
    """Rows follow one another, so one group is held. Raises DataError: one that is corrupt."""
    import pyarrow

    table = _open(path)
    try:
        rows = table.read(group, [audio] if transcript == NO_TRANSCRIPTS else [audio, transcript])
        if len(rows) != table.groups[group]:
            raise ValueError(f"it has {len(rows)} rows of {table.groups[group]}")
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        told = " ".join(str(error).split())
        raise kind_of(error)(f"{path}, group {group + 1} of {len(table.groups)}, cannot be read: {told}") from error
    return rows


def _only_audio(folder: Path, schema: Any) -> str:
    """The column that the library calls audio, or that looks like it."""
    try:
        described = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))["info"]["features"].items()
    except (ValueError, TypeError, KeyError, AttributeError):
        described = ()  # the types are still there
    sounds = [name for name, feature in described if isinstance(feature, dict) and feature.get("_type") == "Audio"]
    if not sounds:
        sounds = [field.name for field in schema if str(field.type).startswith("struct<bytes: binary, path: string")]
    if len(sounds) != 1:
        what = f"the columns of audio {', '.join(sounds)}" if sounds else "no column of audio"
        raise DataError(f"{folder} has {what}: `--audio_column` names one of {', '.join(schema.names)}")
    return str(sounds[0])


def _content(row: Row, stored: str) -> bytes:
    """Of a recording that lies beside the rows. What a data set names elsewhere is no part of it, and none of its
    business: it may come from anybody.
    """
    try:
        path = Path(os.path.abspath(named_in(row.file.parent, stored)))
        if Path(os.path.abspath(row.folder)) not in path.parents:
            raise DataError(f"the recording {stored} lies outside of the data set, where nothing is read")
        return local(path).read_bytes()
    except (OSError, ValueError) as error:
        told = getattr(error, "strerror", None) or error
        raise kind_of(error)(f"the recording {stored} is not in the data set, and cannot be read: {told}") from error


def _write_transcript(recording: Path, value: Any) -> Path | None:
    if value is None:
        return None
    path = recording.with_suffix(".txt" if isinstance(value, str) else ".json")
    try:
        text = value if isinstance(value, str) else json.dumps(_by_word(value), ensure_ascii=False)
    except (TypeError, ValueError) as error:
        raise DataError(f"its transcript is none that can be read: {error}") from error
    path.write_text(text, encoding="utf-8")
    return path


def _by_word(value: Any) -> Any:
    """A list of words, of which older data sets keep a list for each of their fields."""
    if isinstance(value, dict) and {"word", "text"} & value.keys() and all(isinstance(v, list) for v in value.values()):
        return [dict(zip(value, entry, strict=True)) for entry in zip(*value.values(), strict=True)]
    return value
