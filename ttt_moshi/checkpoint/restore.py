"""Filling a model's tensors from a checkpoint, and saying exactly what was and was not restored."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ttt_moshi.checkpoint.errors import CheckpointError, Mismatch
from ttt_moshi.checkpoint.files import Files
from ttt_moshi.checkpoint.manifest import read_manifest
from ttt_moshi.checkpoint.reading import READERS, TensorSource
from ttt_moshi.checkpoint.rows import Rows, rows_of
from ttt_moshi.checkpoint.tensorfile import DTYPES


@dataclass
class LoadReport:
    """Names of tensors by what happened to them. `shape` and `dtype` hold lines that name both sides."""

    restored: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    shape: list[str] = field(default_factory=list)
    dtype: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether wanted and saved tensors agree exactly."""
        return not (self.missing or self.unexpected or self.shape or self.dtype)

    def text(self) -> str:
        """One line a kind, with the first names."""
        kinds = {
            "wanted but not in the checkpoint": self.missing,
            "in the checkpoint but not wanted": self.unexpected,
            "different shape": self.shape,
            "different dtype": self.dtype,
        }
        lines = [f"{len(self.restored)} tensors agree"]
        for kind, names in kinds.items():
            if names:
                more = f" and {len(names) - 5} more" if len(names) > 5 else ""
                lines.append(f"{len(names)} {kind}: {', '.join(names[:5])}{more}")
        return "; ".join(lines)


def compare(saved: Mapping[str, Mapping[str, Any]], wanted: Mapping[str, Tensor]) -> LoadReport:
    """What a load would do; `restored` are the names that agree in shape and dtype."""
    report = LoadReport(unexpected=sorted(set(saved) - set(wanted)))
    for name, tensor in sorted(wanted.items()):
        entry = saved.get(name)
        if entry is None:
            report.missing.append(name)
        elif tuple(entry["shape"]) != tuple(tensor.shape):
            report.shape.append(f"{name} (saved {entry['shape']}, wanted {list(tensor.shape)})")
        elif DTYPES[entry["dtype"]] != tensor.dtype:
            report.dtype.append(f"{name} (saved {entry['dtype']}, wanted {tensor.dtype})")
        else:
            report.restored.append(name)
    return report


def fill(source: TensorSource, tensors: Mapping[str, Tensor], names: list[str], rank: int) -> None:
    """Read `names` into their tensors, in place. Raises DamagedCheckpoint; then some tensors may be overwritten."""
    targets = {name: rows_of(name, tensors[name], rank) for name in names}
    with ThreadPoolExecutor(READERS, thread_name_prefix="checkpoint-read") as pool:
        for done in [pool.submit(_fill_one, source, name, rows) for name, rows in targets.items()]:
            done.result()


@torch.no_grad()
def _fill_one(source: TensorSource, name: str, rows: Rows) -> None:
    local = rows.local
    if local.numel() == 0:
        return
    if local.device.type == "cpu" and local.is_contiguous():
        source.rows_into(name, rows.start, rows.stop, local)
        return
    staged = torch.empty(local.shape, dtype=local.dtype)
    source.rows_into(name, rows.start, rows.stop, staged)
    local.copy_(staged)


def restore(
    path: Path,
    tensors: Mapping[str, Tensor],
    prefixes: tuple[str, ...] = ("param/",),
    strict: bool = True,
    rank: int = 0,
    files: Files | None = None,
) -> LoadReport:
    """Fill tensors from any checkpoint folder, for example to start a new run from its weights.

    Only saved tensors whose names begin with one of `prefixes` take part. `strict` refuses every difference (Mismatch);
    otherwise what agrees is restored and the report names the rest. Digests are checked (DamagedCheckpoint).
    """
    files = files or Files()
    manifest = read_manifest(path, files)
    saved = {name: entry for name, entry in manifest["tensors"].items() if name.startswith(prefixes)}
    report = compare(saved, tensors)
    if strict and not report.ok:
        raise Mismatch(f"{path} does not fit the model: {report.text()}", report)
    if not report.restored:
        raise CheckpointError(f"{path} has no tensor that the model wants")
    fill(TensorSource(files, path, saved), tensors, report.restored, rank)
    return report
