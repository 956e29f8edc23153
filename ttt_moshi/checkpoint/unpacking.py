"""Copying a checkpoint's exported weights into a folder of their own, always against the digests of its manifest."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from ttt_moshi.checkpoint.dtypes import DTYPES
from ttt_moshi.checkpoint.errors import CheckpointError
from ttt_moshi.checkpoint.files import Files, make_folders, write_file
from ttt_moshi.checkpoint.manifest import read_manifest
from ttt_moshi.checkpoint.output import Output, Stream
from ttt_moshi.checkpoint.reading import iter_tensors, read_document
from ttt_moshi.checkpoint.tensorfile import nbytes, plan


def export_weights(
    path: Path,
    target: Path,
    shard_bytes: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> list[Path]:
    """Write what is under `consolidated/` into a new folder; the files written.

    Digests are checked on the way (CorruptCheckpoint). With `shard_bytes`, each weight file becomes several of about
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
    unfinished = target.with_name(f".{target.name}.tmp")  # half a file of the full size would load, as zeros
    with Output(files, unfinished, layout.size, direct=False) as output:
        stream = Stream(output)
        stream.add_bytes(layout.header)
        for name, tensor in iter_tensors(path, file, list(layout.entries)):
            stream.seek(layout.entries[name].begin)
            stream.add(tensor, DTYPES[tensors[name]["dtype"]])
            yield tensor.nbytes
        stream.finish()
    files.rename(unfinished, target)
