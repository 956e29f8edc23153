"""Reading single things out of a checkpoint, always against the digests of its manifest."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from torch import Tensor

from ttt_moshi.checkpoint.errors import CheckpointError
from ttt_moshi.checkpoint.files import Files
from ttt_moshi.checkpoint.manifest import read_manifest
from ttt_moshi.checkpoint.reading import Reading, checked_document, read_all, stream


def read_document(path: Path, name: str) -> dict[str, Any]:
    """A JSON document, such as "consolidated/config.json". Raises CheckpointError if there is none of that name."""
    record = read_manifest(path)["files"].get(name)
    if record is None or "blake3" not in record:
        raise CheckpointError(f"{path} has no document {name!r}")
    return json.loads(checked_document(Files(), path / name, record, name))


def iter_tensors(path: Path, file: str = "", names: Collection[str] | None = None) -> Iterator[tuple[str, Tensor]]:
    """Tensors one at a time, on the CPU in their saved dtype; whole ones, whatever the number of shards.

    `file` is an exported file such as "consolidated/lora.safetensors"; empty for what training resumes from. `names`
    selects some. Raises CheckpointError if the file or a name is not there, DamagedCheckpoint for wrong bytes.
    """
    for reading in stream(Files(), path, _readings(path, file, names)):
        tensor, reading.out = reading.sound(), None
        yield reading.name, tensor


def read_tensors(path: Path, file: str = "", names: Collection[str] | None = None) -> dict[str, Tensor]:
    """`iter_tensors` as a dictionary, read several at once."""
    readings = _readings(path, file, names)
    read_all(Files(), path, readings)
    return {reading.name: reading.sound() for reading in readings}


def _readings(path: Path, file: str, names: Collection[str] | None) -> list[Reading]:
    """Whole tensors to be read, in order of names."""
    manifest = read_manifest(path)
    tables = {"": manifest["tensors"], **manifest["exports"]}
    if file not in tables:
        raise CheckpointError(f"{path} has no tensor file {file!r}; it has {', '.join(sorted(manifest['exports']))}")
    unknown = sorted(set(names or ()) - set(tables[file]))
    if unknown:
        raise CheckpointError(f"{path} has no tensor {unknown[0]!r} in {file or 'its resumable state'}")
    chosen = sorted(tables[file] if names is None else names)
    return [Reading(name, tables[file][name], fresh=True) for name in chosen]
