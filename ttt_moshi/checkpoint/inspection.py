"""Explaining checkpoints and the difference between two, as plain data that a command can print."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ttt_moshi.checkpoint import layout
from ttt_moshi.checkpoint.listing import total_bytes
from ttt_moshi.checkpoint.manifest import read_manifest
from ttt_moshi.checkpoint.reading import iter_tensors, read_document


def describe(path: Path) -> dict[str, Any]:
    """All that a checkpoint says about itself: its manifest without the long tables, counts, state and documents.

    `groups` counts tensors and elements by the first part of their names ("param", "exp_avg", "stream", ...), `exports`
    by exported file. Raises CorruptCheckpoint if manifest or documents are.
    """
    manifest = read_manifest(path)
    groups: dict[str, dict[str, int]] = {}
    for name, entry in manifest["tensors"].items():
        _count(groups, name.partition("/")[0], entry)
    exports: dict[str, dict[str, int]] = {}
    for file, tensors in manifest["exports"].items():
        for entry in tensors.values():
            _count(exports, file, entry)
    state = read_document(path, layout.STATE)
    documents = [name for name, record in manifest["files"].items() if "blake3" in record and name != layout.STATE]
    short = {key: value for key, value in manifest.items() if key not in ("tensors", "exports", "files")}
    return {
        **short,
        "path": str(path),
        "bytes": total_bytes(manifest),
        "files": {name: record["size"] for name, record in manifest["files"].items()},
        "groups": groups,
        "exports": exports,
        "state": state["state"],
        "documents": {name: read_document(path, name) for name in sorted(documents)},
    }


def _count(groups: dict[str, dict[str, int]], group: str, entry: dict[str, Any]) -> None:
    count = groups.setdefault(group, {"tensors": 0, "elements": 0})
    count["tensors"] += 1
    count["elements"] += math.prod(entry["shape"])


def diff(first: Path, second: Path, progress: Callable[[int, int], None] | None = None) -> dict[str, Any]:
    """What differs between two checkpoints' resumable states and documents.

    `changed` has, for each tensor of equal shape but other bytes, the largest absolute difference and the norm of the
    difference relative to the first's norm; only such tensors are read. `documents` maps "file: key" to both values.
    `progress` is called with (elements compared, elements to compare).
    """
    manifests = read_manifest(first), read_manifest(second)
    one, two = (manifest["tensors"] for manifest in manifests)
    both = sorted(set(one) & set(two))
    fits = [
        name for name in both if (one[name]["dtype"], one[name]["shape"]) == (two[name]["dtype"], two[name]["shape"])
    ]
    moved = [name for name in fits if one[name]["blake3"] != two[name]["blake3"]]
    changed, done, total = {}, 0, sum(math.prod(one[name]["shape"]) for name in moved)
    for (name, a), (_, b) in zip(iter_tensors(first, names=moved), iter_tensors(second, names=moved), strict=True):
        a, b = a.double(), b.double()
        relative = float((b - a).norm() / a.norm()) if float(a.norm()) > 0 else math.inf
        changed[name] = {"max_abs": float((b - a).abs().max()), "relative": relative}
        done += a.numel()
        if progress:
            progress(done, total)
    return {
        "same_state": manifests[0]["state_id"] == manifests[1]["state_id"],
        "only_in_first": sorted(set(one) - set(two)),
        "only_in_second": sorted(set(two) - set(one)),
        "other_shape_or_dtype": sorted(set(both) - set(fits)),
        "equal": len(fits) - len(moved),
        "changed": changed,
        "documents": _document_changes(first, second, manifests),
    }


def _document_changes(first: Path, second: Path, manifests: tuple[dict, dict]) -> dict[str, list[Any]]:
    values: list[dict[str, Any]] = [{}, {}]
    for side, (path, manifest) in enumerate(zip((first, second), manifests, strict=True)):
        for name, record in manifest["files"].items():
            if "blake3" in record:
                values[side] |= _flat(read_document(path, name), f"{name}: ")
    names = sorted(set(values[0]) | set(values[1]))
    return {name: [v.get(name) for v in values] for name in names if values[0].get(name) != values[1].get(name)}


def _flat(value: Any, prefix: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        return {prefix: value}
    result: dict[str, Any] = {}
    for key, inner in value.items():
        result |= _flat(inner, f"{prefix}{'' if prefix.endswith(' ') else '.'}{key}")
    return result
