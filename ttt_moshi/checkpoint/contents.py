"""Reading and copying single things out of a checkpoint, always against the digests of its manifest."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any

from torch import Tensor

from ttt_moshi.checkpoint.errors import CheckpointError
from ttt_moshi.checkpoint.files import Files, make_folders, write_file
from ttt_moshi.checkpoint.manifest import read_manifest
from ttt_moshi.checkpoint.output import Output, Stream
from ttt_moshi.checkpoint.reading import Reading, checked_document, read_all, stream
from ttt_moshi.checkpoint.tensorfile import DTYPES, nbytes, plan


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


def export_weights(
    path: Path,
    target: Path,
    shard_bytes: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> list[Path]:
    """Write what is under `consolidated/` into a new folder; the files written.

    Digests are checked on the way (DamagedCheckpoint). With `shard_bytes`, each weight file becomes several of about
    that size, named as in `model-00001-of-00003.safetensors`, and an index that Hugging Face loaders read. One tensor
    and one buffer are in memory at a time. `progress` is called with (bytes done, bytes in all). Raises CheckpointError
    if `target` exists with something in it.
    """
    files, manifest, written = Files(), read_manifest(path), []
    if files.names(target):
        raise CheckpointError(f"{target} is not empty; export into a new folder")
    make_folders(files, target.absolute())
    done, total = (
        0,
        sum(nbytes(e["dtype"], e["shape"]) for table in manifest["exports"].values() for e in table.values()),
    )
    for name, record in manifest["files"].items():
        if name.startswith("consolidated/") and "blake3" in record:
            written.append(target / Path(name).name)
            write_file(files, written[-1], (json.dumps(read_document(path, name), indent=2) + "\n").encode())
    for file, tensors in manifest["exports"].items():
        stem = Path(file).stem
        groups = _groups(tensors, shard_bytes)
        places: dict[str, str] = {}
        for number, names in enumerate(groups, 1):
            single = f"{stem}.safetensors"
            shard = single if shard_bytes is None else f"{stem}-{number:05d}-of-{len(groups):05d}.safetensors"
            for size in _write(files, path, file, {name: tensors[name] for name in names}, target / shard):
                done += size
                if progress:
                    progress(done, total)
            places |= dict.fromkeys(names, shard)
            written.append(target / shard)
        if shard_bytes is not None:
            size = sum(nbytes(entry["dtype"], entry["shape"]) for entry in tensors.values())
            index = {"metadata": {"total_size": size}, "weight_map": dict(sorted(places.items()))}
            written.append(target / f"{stem}.safetensors.index.json")
            write_file(files, written[-1], (json.dumps(index, indent=2) + "\n").encode())
    files.sync_folder(target)
    return written


def _groups(tensors: dict[str, Any], limit: int | None) -> list[list[str]]:
    """Names in order, cut into runs of at most `limit` bytes; a larger tensor is a run of its own."""
    groups: list[list[str]] = [[]]
    filled = 0
    for name in sorted(tensors):
        size = nbytes(tensors[name]["dtype"], tensors[name]["shape"])
        if limit is not None and groups[-1] and filled + size > limit:
            groups.append([])
            filled = 0
        groups[-1].append(name)
        filled += size
    return groups


def _write(files: Files, path: Path, file: str, tensors: dict[str, Any], target: Path) -> Iterator[int]:
    """Writes one file; gives the size of each tensor when it is written."""
    layout = plan({n: (e["dtype"], tuple(e["shape"])) for n, e in tensors.items()}, {"format": "pt"})
    with Output(files, target, layout.size, direct=False) as output:
        stream = Stream(output)
        stream.add_bytes(layout.header)
        for name, tensor in iter_tensors(path, file, list(layout.entries)):
            stream.seek(layout.entries[name].begin)
            stream.add(tensor, DTYPES[tensors[name]["dtype"]])
            yield tensor.nbytes
        stream.finish()
