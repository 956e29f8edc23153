"""What the commands about checkpoints share: finding them, reading facts off one, showing how far a long job is."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    ProgressColumn,
    TaskProgressColumn,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from ttt_moshi.checkpoint import NoCheckpoint, newest_valid, read_bytes
from ttt_moshi.errors import UserError
from ttt_moshi.tensor_groups import tensor_group

# How the folders in a checkpoints folder begin, whether or not they can be read.
_BEGINNINGS = (
    *("checkpoint_", "unhealthy_", "corrupt_", "left_", "foreign_"),
    *(".quarantine_", ".left_", ".saving_", ".trash_", ".replaced_"),
)


@dataclass(frozen=True)
class Place:
    """Where a path leads: to a folder of checkpoints, and to one in it if the path named one."""

    root: Path
    chosen: Path | None


def find(path: Path) -> Place:
    """What is meant by a run, its checkpoints folder, or one checkpoint.

    Raises:
        UserError: it is none of them.
    """
    if not path.is_dir():
        raise UserError(f"no folder at {path}")
    if path.absolute().name == "consolidated" and (path.absolute().parent / "manifest.json").exists():
        path = path.absolute().parent
    # A checkpoint that has lost its manifest is still meant as one.
    if (path / "manifest.json").exists() or path.absolute().name.startswith(_BEGINNINGS):
        return Place(path.absolute().parent, path)
    if (path / "checkpoints").is_dir():
        return Place(path / "checkpoints", None)
    if has_begun(path):  # and has saved nothing
        return Place(path / "checkpoints", None)
    if path.absolute().name == "checkpoints" or any(child.name.startswith(_BEGINNINGS) for child in path.iterdir()):
        return Place(path, None)
    raise UserError(f"{path} is neither a run, nor a checkpoints folder, nor a checkpoint")


def has_begun(path: Path) -> bool:
    """Whether a folder is one that a run has claimed, with or without checkpoints."""
    return (path / "args.yaml").is_file()


def nothing_saved(path: Path) -> str:
    """What is to be said of a run, or of a checkpoints folder, that has no checkpoint."""
    return f"{path}: a run that has no checkpoint yet" if has_begun(path) else f"{path}: no checkpoints yet"


def find_one(path: Path) -> Path:
    """The checkpoint that is meant: the one named, or the newest valid one of a run.

    What is corrupt or foreign is passed over, with a line on the error stream.

    Raises:
        NoCheckpoint: the run has no valid one.
        UnreadableCheckpoint: the newest one, or the folder, cannot be read now.
    """
    place = find(path)
    if place.chosen is not None:
        return place.chosen
    newest = newest_valid(place.root, lambda line: print(line, file=sys.stderr))
    if newest is None:
        raise NoCheckpoint(f"no valid checkpoint in {place.root}")
    return place.root / f"checkpoint_{newest:06d}"


def trained_counts(manifest: dict[str, Any]) -> dict[str, dict[str, int]]:
    """Trained tensors and their elements by group: "base", "lora", "ttt"."""
    counts = {group: {"tensors": 0, "elements": 0} for group in ("base", "lora", "ttt")}
    for name, entry in manifest["tensors"].items():
        kind, _, parameter = name.partition("/")
        if kind == "param":
            counts[tensor_group(parameter)]["tensors"] += 1
            counts[tensor_group(parameter)]["elements"] += math.prod(entry["shape"])
    return counts


def gate_openings(path: Path, manifest: dict[str, Any]) -> dict[str, dict[str, float]]:
    """Mean |tanh α| of each TTT layer's gates: layer index -> {"forward": share, "backward": share}."""
    gates: dict[str, dict[str, float]] = {}
    names = [name for name in manifest["tensors"] if _is_gate(name)]
    for name, data in read_bytes(path, names).items():
        layer, direction = name.split(".")[2], name.split(".")[-2].removesuffix("_gating")
        alpha = _floats(data, manifest["tensors"][name]["dtype"])
        gates.setdefault(layer, {})[direction] = float(np.abs(np.tanh(alpha)).mean())
    return dict(sorted(gates.items(), key=lambda item: int(item[0])))


def _floats(data: bytes, dtype: str) -> Any:
    """Numbers of a tensor, read without torch."""
    if dtype == "BF16":  # the upper half of a float32
        return (np.frombuffer(data, "<u2").astype("<u4") << 16).view("<f4")
    return np.frombuffer(data, {"F32": "<f4", "F16": "<f2", "F64": "<f8"}[dtype])


def _is_gate(name: str) -> bool:
    return name.startswith("param/transformer.layers.") and name.endswith(".gating_alpha")


def size_text(count: int) -> str:
    """Bytes for a person."""
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            return f"{count / size:.3g} {unit}" if count < 1000 * size else f"{count / size:.0f} {unit}"
    return f"{count} B"


@contextmanager
def progress_bar(what: str, unit: Literal["bytes", "elements"] = "bytes") -> Iterator[Callable[[int, int], None]]:
    """A bar on the terminal's error stream while the block runs; yields the function that moves it (done, total)."""
    console = Console(stderr=True)
    counts: list[ProgressColumn] = (
        [DownloadColumn(), TransferSpeedColumn()] if unit == "bytes" else [TaskProgressColumn()]
    )
    with Progress(
        TextColumn(what),
        BarColumn(),
        *counts,
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    ) as bar:
        task = bar.add_task("", total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
