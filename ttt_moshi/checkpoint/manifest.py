"""The commit record. What `manifest.json` does not vouch for does not exist; every byte it vouches for has a digest.

The file is sorted, indented JSON, and is accepted only if its text is exactly what rendering its own content gives and
its own digest agrees, so that one changed byte anywhere in it is noticed.
"""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from blake3 import blake3

import ttt_moshi
from ttt_moshi.checkpoint.errors import CheckpointError, DamagedCheckpoint
from ttt_moshi.checkpoint.files import Files
from ttt_moshi.checkpoint.layout import MANIFEST

FORMAT_VERSION = 1
_TABLES = ("files", "tensors", "exports", "metrics", "versions", "health", "info", "timings")


def canonical(value: object, what: str) -> bytes:
    """JSON with sorted keys and no spaces. Raises CheckpointError naming `what` for values that JSON cannot hold."""
    try:
        return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False, ensure_ascii=False).encode()
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{what} must be plain JSON with finite numbers: {error}") from error


def digest(data: bytes | memoryview) -> str:
    """BLAKE3 in hexadecimal, 64 characters."""
    return blake3(data).hexdigest()


def collapse(rank_states: list[Any]) -> list[Any]:
    """One state if all ranks have the same, so that the world size leaves no trace where it changed nothing."""
    return rank_states[:1] if all(state == rank_states[0] for state in rank_states) else rank_states


def state_id(step: int, tensors: Mapping[str, Mapping[str, Any]], state: object, rank_states: list[Any]) -> str:
    """Identity of a training state: digests of whole tensors, the JSON state and the ranks' states.

    `tensors` maps a name to its manifest entry (`dtype`, `shape`, `blake3` of the whole tensor's bytes). Shards, files,
    times, hosts and metrics have no part in it.
    """
    content = {
        "step": step,
        "tensors": {name: [entry["dtype"], list(entry["shape"]), entry["blake3"]] for name, entry in tensors.items()},
        "state": state,
        "rank_state": collapse(rank_states),
    }
    return digest(canonical(content, "state"))


def versions() -> dict[str, str]:
    """Versions of everything that had a hand in the bytes."""
    return {
        "blake3": version("blake3"),
        "cuda": str(torch.version.cuda),
        "python": platform.python_version(),
        "safetensors": version("safetensors"),
        "torch": torch.__version__,
        "ttt_moshi": ttt_moshi.__version__,
    }


def render(manifest: Mapping[str, Any]) -> bytes:
    """The manifest's file content, with its own digest under `manifest_blake3`."""
    content = {key: value for key, value in manifest.items() if key != "manifest_blake3"}
    content["manifest_blake3"] = digest(canonical(content, "manifest"))
    return (json.dumps(content, sort_keys=True, indent=1, allow_nan=False, ensure_ascii=False) + "\n").encode()


def parse(data: bytes, where: str) -> dict[str, Any]:
    """A manifest from its file content. Raises DamagedCheckpoint if one byte is not as written."""
    try:
        content = json.loads(data)
        intact = isinstance(content, dict) and render(content) == data
    except (ValueError, CheckpointError) as error:
        raise DamagedCheckpoint(f"{where} is not readable: {error}") from error
    if not intact:
        raise DamagedCheckpoint(f"{where} is damaged: its content does not agree with its own digest")
    if content.get("format_version") != FORMAT_VERSION:
        found = content.get("format_version")
        raise CheckpointError(f"{where} has format version {found}; this program reads {FORMAT_VERSION}. Update it.")
    kinds = {"step": int, "state_id": str, "kind": str, "world_size": int, **dict.fromkeys(_TABLES, dict)}
    for key, kind in kinds.items():
        if not isinstance(content.get(key), kind):
            raise DamagedCheckpoint(f"{where}: key {key!r} is missing or not a {kind.__name__}")
    return content


def read_manifest(path: Path, files: Files | None = None) -> dict[str, Any]:
    """The manifest of a checkpoint folder. Raises DamagedCheckpoint, or CheckpointError if `path` is not one."""
    files = files or Files()
    try:
        data = files.read(path / MANIFEST)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise DamagedCheckpoint(f"{path} is not a checkpoint: it has no {MANIFEST}") from error
    return parse(data, str(path / MANIFEST))
