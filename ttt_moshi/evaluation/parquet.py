"""Recordings and texts in Parquet, as Hugging Face stores data sets with audio: {"bytes", "path"} in a column."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from ttt_moshi.data.audio import read_audio
from ttt_moshi.evaluation.errors import EvaluationError
from ttt_moshi.extras import need


@dataclass(frozen=True)
class Embedded:
    """A recording in a table.

    Args:
        group: row group of the file.
        row: within the group.
    """

    path: Path
    column: str
    group: int
    row: int

    def content(self) -> bytes:
        """The bytes of the audio file. Raises `EvaluationError` where there are none."""
        value = _group(self.path, self.column, self.group)[self.row]
        if not isinstance(value, dict) or not value.get("bytes"):
            raise EvaluationError(f"{self.path}: a row holds no audio in `{self.column}`")
        return bytes(value["bytes"])

    def samples(self) -> np.ndarray:
        """float32 [channels, samples] at 24 kHz. Raises `DataError` for what is no audio."""
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "audio"
            path.write_bytes(self.content())
            return read_audio(path)


def columns(path: Path) -> list[str]:
    """Names of the columns. Raises `EvaluationError` for a file that is no Parquet, and where it cannot be read."""
    with _opened(path) as file:
        return list(file.schema_arrow.names)


def rows(path: Path, texts: Sequence[str], audio: str) -> Iterator[tuple[dict[str, Any], Embedded]]:
    """Every row: its texts, and where its recording is. Raises as `columns`."""
    with _opened(path) as file:
        for group in range(file.num_row_groups):
            table = file.read_row_group(group, columns=list(texts)).to_pylist()
            for row, values in enumerate(table):
                yield values, Embedded(path, audio, group, row)


@lru_cache(maxsize=1)
def _group(path: Path, column: str, group: int) -> list[Any]:
    with _opened(path) as file:
        return list(file.read_row_group(group, columns=[column])[column].to_pylist())


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    need("pyarrow", f"Parquet ({path.name})")
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            yield file
    except (pyarrow.ArrowException, OSError) as error:
        raise EvaluationError(f"cannot read {path}: {' '.join(str(error).split())}") from error
