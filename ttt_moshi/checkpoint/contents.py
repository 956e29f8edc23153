"""Reading single things out of a checkpoint folder, always against the digests of its manifest."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from torch import Tensor

from ttt_moshi.checkpoint.errors import CheckpointError
from ttt_moshi.checkpoint.files import Files
from ttt_moshi.checkpoint.manifest import read_manifest
from ttt_moshi.checkpoint.reading import TensorSource, checked_document


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
    manifest = read_manifest(path)
    tables = {"": manifest["tensors"], **manifest["exports"]}
    if file not in tables:
        raise CheckpointError(f"{path} has no tensor file {file!r}; it has {', '.join(sorted(manifest['exports']))}")
    unknown = sorted(set(names or ()) - set(tables[file]))
    if unknown:
        raise CheckpointError(f"{path} has no tensor {unknown[0]!r} in {file or 'its resumable state'}")
    source = TensorSource(Files(), path, tables[file])
    for name in sorted(tables[file] if names is None else names):
        yield name, source.full(name)


def read_tensors(path: Path, file: str = "", names: Collection[str] | None = None) -> dict[str, Tensor]:
    """`iter_tensors` as a dictionary."""
    return dict(iter_tensors(path, file, names))
