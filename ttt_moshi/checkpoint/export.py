"""Exported weights under `consolidated/`: what other programs load, derived from the very image that is saved.

Every rank writes the rows it holds into the one file at their place; no tensor travels between ranks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ttt_moshi.checkpoint.dtypes import DTYPE_NAMES
from ttt_moshi.checkpoint.errors import CheckpointError
from ttt_moshi.checkpoint.files import Files
from ttt_moshi.checkpoint.manifest import Record, tensor_record
from ttt_moshi.checkpoint.output import Output, Stream
from ttt_moshi.checkpoint.rows import Rows, rows_of
from ttt_moshi.checkpoint.tensorfile import Plan, nbytes, plan, row_count

Read = Callable[[str], Tensor]


@dataclass(frozen=True)
class Export:
    """One tensor of an exported file, stored as `dtype`.

    `source` is one of
    - the name of a saved tensor, which is exported as it was saved;
    - a frozen tensor that training never changes, plain or sharded;
    - a function `(read, start, stop) -> rows` that makes rows `start` to `stop`; `read(name)` gives a whole saved
      tensor on the CPU. It needs `shape`, and `rows_of`, the tensor whose sharding decides who makes which rows
      (None: rank 0 makes all).
    """

    source: str | Tensor | Callable[[Read, int, int], Tensor]
    dtype: torch.dtype
    shape: tuple[int, ...] | None = None
    rows_of: Tensor | None = None


@dataclass(frozen=True)
class ExportFile:
    """An exported file of this save: its layout, equal on all ranks, and which rows this rank makes."""

    path: str
    layout: Plan
    exports: Mapping[str, Export]
    rows: Mapping[str, Rows]


def plan_exports(exports: Mapping[str, Mapping[str, Export]], saved: Mapping[str, Rows], rank: int) -> list[ExportFile]:
    """Lay out every exported file. Raises CheckpointError for an unknown source or an impossible name."""
    result = []
    for file, items in sorted(exports.items()):
        if not file.endswith(".safetensors") or "/" in file:
            raise CheckpointError(f"exported file {file!r} must be a plain name that ends in .safetensors")
        rows = {name: _rows(f"{file}: {name}", item, saved, rank) for name, item in items.items()}
        tensors = {name: (DTYPE_NAMES[items[name].dtype], part.shape) for name, part in rows.items()}
        result.append(ExportFile(f"consolidated/{file}", plan(tensors, {"format": "pt"}), items, rows))
    return result


def _rows(where: str, export: Export, saved: Mapping[str, Rows], rank: int) -> Rows:
    if isinstance(export.source, str):
        if export.source not in saved:
            raise CheckpointError(f"{where} is exported from {export.source!r}, which is not among the saved tensors")
        return saved[export.source]
    if isinstance(export.source, Tensor):
        return rows_of(where, export.source, rank)
    if export.shape is None:
        raise CheckpointError(f"{where} is made by a function and needs its shape")
    if export.rows_of is None:
        return Rows(torch.empty(0), export.shape, 0, row_count(export.shape), rank == 0)
    return rows_of(where, export.rows_of, rank)


def write_export(
    files: Files, folder: Path, file: ExportFile, views: Mapping[str, Tensor], read: Read, rank: int, direct: bool
) -> Record:
    """Write this rank's rows of one file; what it wrote, name -> part of the manifest.

    `direct` only when this rank writes the whole file. Extra memory: one buffer, and the rows of one made tensor.
    """
    parts: Record = {}
    with Output(files, folder / file.path, file.layout.size, direct, reserve=rank == 0) as output:
        stream = Stream(output)
        if rank == 0:
            stream.add_bytes(file.layout.header)
        for name, entry in file.layout.entries.items():
            rows = file.rows[name]
            row_bytes = nbytes(entry.dtype, rows.shape[1:])
            begin, end = entry.begin + rows.start * row_bytes, entry.begin + rows.stop * row_bytes
            if not rows.is_writer or begin == end:
                continue
            stream.seek(begin)
            made = _make(file.exports[name], rows, views, read)
            if made.numel() * file.exports[name].dtype.itemsize != end - begin:
                raise CheckpointError(f"{file.path}: {name} was made with shape {tuple(made.shape)}, which is wrong")
            blake = stream.add(made, file.exports[name].dtype)
            parts[name] = {"file": file.path, "rows": [rows.start, rows.stop], "bytes": [begin, end], "blake3": blake}
        stream.finish()
    return parts


def _make(export: Export, rows: Rows, views: Mapping[str, Tensor], read: Read) -> Tensor:
    if isinstance(export.source, str):
        return views[export.source]
    if isinstance(export.source, Tensor):
        return rows.local
    return export.source(read, rows.start, rows.stop)


def merge_export(file: ExportFile, results: list[Record]) -> Record:
    """The manifest's record of one exported file, from what every rank wrote into it."""
    entries = file.layout.entries.items()
    return {n: tensor_record(e.dtype, e.shape, [result[n] for result in results if n in result]) for n, e in entries}
