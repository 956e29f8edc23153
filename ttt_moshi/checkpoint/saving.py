"""One save, from the staged image to the committed folder.

Shards, then exports and digests of whole tensors, then the commit by rank 0. The ranks exchange results through the
coordinator; if any of them fails, no rank commits and every rank learns why.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from blake3 import blake3
from torch import Tensor

from ttt_moshi.checkpoint import layout
from ttt_moshi.checkpoint.commit import commit, discard
from ttt_moshi.checkpoint.coordination import Coordinator
from ttt_moshi.checkpoint.dtypes import DTYPE_NAMES
from ttt_moshi.checkpoint.errors import CheckpointError
from ttt_moshi.checkpoint.export import ExportFile, merge_export, write_export
from ttt_moshi.checkpoint.files import Files, write_file
from ttt_moshi.checkpoint.image import Image
from ttt_moshi.checkpoint.lock import WriterLock
from ttt_moshi.checkpoint.manifest import Record, canonical, digest, render, state_id, tensor_record, versions
from ttt_moshi.checkpoint.output import PIECE, Output
from ttt_moshi.checkpoint.reading import Reading, read_all, stream
from ttt_moshi.checkpoint.rows import Rows, as_bytes

# Bytes that are hashed and then checked for NaN while they are in the processor's cache. Much smaller pieces would ask
# for the interpreter's lock so often that the training thread felt it.
CACHED = 4 << 20
PROCESSORS = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
HASHERS = max(1, min(4, PROCESSORS // 2))  # threads that do so; the other processors are training's
STRETCH = 64 << 20  # bytes of one write of the image, so many that a busy processor does not leave the disk idle
VISIBLE = 60.0  # seconds within which a network file system must show what another host has made
Outcome = tuple[str, str, int, bool]  # of a commit: folder name, state id, bytes, whether all is finite


@dataclass(frozen=True)
class Saved:
    """A finished save. `seconds`: "blocked" (training waited), "stage", "shards", "exports", "commit",
    "durable" (from the call to the commit)."""

    step: int
    path: Path
    state_id: str
    bytes: int
    healthy: bool
    seconds: dict[str, float]


@dataclass
class Job:
    """Everything that one save writes, frozen at the moment training called for it."""

    step: int
    kind: str
    image: Image
    rows: Mapping[str, Rows]
    exports: list[ExportFile]
    documents: Mapping[str, bytes]
    state: bytes
    rank_state: Any
    metrics: Mapping[str, Any]
    info: Mapping[str, Any]
    parent: Mapping[str, Any] | None
    begun: float  # by the performance counter
    seconds: dict[str, float] = field(default_factory=dict)


class Saver:
    """Writes jobs of one rank. Holds no state between jobs except where and how to write."""

    def __init__(self, files: Files, root: Path, coordinator: Coordinator, lock: WriterLock | None):
        self._files, self._root, self._coordinator, self._lock = files, root, coordinator, lock
        self._rank, self._world = coordinator.rank, coordinator.world_size

    def run(self, job: Job, number: int) -> Saved:
        """Write, exchange, commit. Raises on every rank if any rank failed; then nothing was committed."""
        coordinator, folder = self._coordinator, self._root / f".saving_{job.step:06d}"
        with coordinator.broadcast_errors(number):
            if self._rank == 0:
                self._prepare(folder, job)
            coordinator.share(number, "folder ready", True)
            self._await_visible(lambda: folder.name in self._files.names(self._root), folder)

            begin = time.perf_counter()
            written = self._write_shard(folder, job)
            job.seconds["shards"] = time.perf_counter() - begin
            shards = coordinator.share(number, "all shards", coordinator.gather(number, "shard", written))

            begin = time.perf_counter()
            for shard in shards:
                path = folder / shard["file"]
                self._await_visible(lambda: self._files.size(path) == shard["size"], path)  # noqa: B023
            tensors = merge_tensors(job.rows, shards)
            exported = self._write_exports(folder, job, tensors)
            whole = self._whole_digests(folder, tensors)
            job.seconds["exports"] = time.perf_counter() - begin
            results = coordinator.gather(number, "exports", {"exported": exported, "whole": whole})

            outcome = None if results is None else self._commit(folder, job, shards, tensors, results)
            name, identity, size, healthy = coordinator.share(number, "committed", outcome)
            job.seconds["durable"] = time.perf_counter() - job.begun
            return Saved(job.step, self._root / name, identity, size, healthy, dict(job.seconds))

    def _await_visible(self, visible: Callable[[], bool], path: Path) -> None:
        """Wait for what another rank has made: a network file system may show it on this host a little later."""
        deadline = time.monotonic() + min(VISIBLE, self._coordinator.timeout)
        while True:
            with suppress(FileNotFoundError):
                if visible():
                    return
            if time.monotonic() > deadline:
                what = f"{path}, made by another rank, cannot be seen here. Do all hosts share the folder?"
                raise CheckpointError(what)
            time.sleep(0.02)

    def _prepare(self, folder: Path, job: Job) -> None:
        assert self._lock is not None
        self._lock.check()
        for name in self._files.names(self._root):
            if name.startswith(".saving_"):  # of a save that failed; it may be what fills the disk
                discard(self._files, self._root, name)
        size = job.image.layout.size * self._world + sum(file.layout.size for file in job.exports)
        check_room(size, self._files.free_bytes(self._root), self._root, f"the checkpoint of step {job.step}")
        for new in (folder, folder / "resume", folder / "consolidated"):
            self._files.mkdir(new)

    def _write_shard(self, folder: Path, job: Job) -> Record:
        """Write the image and hash it meanwhile, both from memory."""
        plan, memory = job.image.layout, job.image.memory
        path = layout.shard_name(self._rank, self._world)
        with ThreadPoolExecutor(HASHERS, thread_name_prefix="checkpoint-hash") as pool:
            inspecting = {name: pool.submit(inspect, job.image, name) for name in plan.entries}
            with Output(self._files, folder / path, plan.size, direct=True) as output:
                end = len(memory) if output.direct else plan.size
                job.image.wait_host(end // 2)  # training waits for the copy: writing beside all of it slows it too much
                for offset in range(0, end, STRETCH):
                    job.image.wait_host(min(offset + STRETCH, end))
                    output.write(memory[offset : min(offset + STRETCH, end)], offset)
            found = {name: future.result() for name, future in inspecting.items()}
        parts = {}
        for name, entry in plan.entries.items():
            place = {"rows": [job.rows[name].start, job.rows[name].stop], "bytes": [entry.begin, entry.end]}
            parts[name] = {"file": path, **place, "blake3": found[name][0]}
        nonfinite = [name for name, (_, finite) in found.items() if not finite]
        record = {"file": path, "size": plan.size, "header_blake3": digest(plan.header)}
        return {**record, "parts": parts, "nonfinite": nonfinite, "rank_state": job.rank_state}

    def _write_exports(self, folder: Path, job: Job, tensors: Record) -> list[Record]:
        views, direct = job.image.views, self._world == 1

        def read(name: str) -> Tensor:
            if name in views and views[name].shape == job.rows[name].shape:
                return views[name]
            return next(stream(self._files, folder, [Reading(name, tensors[name], fresh=True)])).verified()

        return [write_export(self._files, folder, file, views, read, self._rank, direct) for file in job.exports]

    def _whole_digests(self, folder: Path, tensors: Record) -> dict[str, str]:
        """Digests of whole tensors that lie in several shards: read back, checked part by part, work shared."""
        split = sorted(name for name, entry in tensors.items() if "blake3" not in entry)
        readings = [Reading(name, tensors[name]) for name in split[self._rank :: self._world]]
        read_all(self._files, folder, readings)
        for reading in readings:
            if reading.corruption is not None:
                raise reading.corruption
        return {reading.name: reading.digest for reading in readings}

    def _commit(self, folder: Path, job: Job, shards: list[Record], tensors: Record, results: list[Record]) -> Outcome:
        begin = time.perf_counter()
        for result in results:
            for name, blake in result["whole"].items():
                tensors[name]["blake3"] = blake
        rank_states, state = [shard["rank_state"] for shard in shards], json.loads(job.state)
        content = {"step": job.step, "state": state, "rank_state": rank_states}
        documents = {**job.documents, layout.STATE: canonical(content, "state")}
        records = {s["file"]: {"size": s["size"], "header_blake3": s["header_blake3"]} for s in shards}
        for file in job.exports:
            records[file.path] = {"size": file.layout.size, "header_blake3": digest(file.layout.header)}
        for path, data in documents.items():
            write_file(self._files, folder / path, data)
            records[path] = {"size": len(data), "blake3": digest(data)}
        exports = {f.path: merge_export(f, [r["exported"][i] for r in results]) for i, f in enumerate(job.exports)}
        nonfinite = sorted({name for shard in shards for name in shard["nonfinite"]})
        identity = state_id(job.step, tensors, state, rank_states)
        manifest = {
            "step": job.step,
            "parent": job.parent,
            "state_id": identity,
            "kind": job.kind,
            "world_size": self._world,
            "files": records,
            "tensors": tensors,
            "exports": exports,
            "metrics": job.metrics,
            "versions": versions(),
            "health": {"finite": not nonfinite, "nonfinite": nonfinite},
            "info": job.info,
            "timings": job.seconds,
        }
        sound, unhealthy = layout.checkpoint_name(job.step), f"unhealthy_{job.step:06d}"
        name = layout.free_name(self._files, self._root, unhealthy).name if nonfinite else sound
        assert self._lock is not None
        self._lock.check()
        commit(self._files, self._root, folder, name, render(manifest))
        job.seconds["commit"] = time.perf_counter() - begin
        return name, identity, sum(record["size"] for record in records.values()), not nonfinite


def check_room(size: int, free: int, root: Path, what: str) -> None:
    """Raise CheckpointError, saying what to do, if `free` bytes do not hold `size`."""
    if free < size + PIECE:
        raise CheckpointError(
            f"no room for {what}: it needs {size / 1e9:.4g} GB and {PIECE / 1e9:.2g} GB to spare, {root} has "
            f"{free / 1e9:.4g} GB free. Free some space, keep fewer checkpoints, or use another run_dir."
        )


def merge_tensors(rows: Mapping[str, Rows], shards: list[Record]) -> Record:
    """The manifest's `tensors`: parts of all ranks by rows. A tensor in one part has its whole digest at once."""
    tensors: Record = {}
    for name, part in rows.items():
        parts = [shard["parts"][name] for shard in shards if name in shard["parts"]]
        tensors[name] = tensor_record(DTYPE_NAMES[part.local.dtype], part.shape, parts)
        if len(parts) <= 1:
            tensors[name]["blake3"] = parts[0]["blake3"] if parts else digest(b"")
    return tensors


def inspect(image: Image, name: str) -> tuple[str, bool]:
    """Digest of a tensor in the image, and whether it is free of NaN and infinity."""
    image.wait_host(len(image.memory))  # hashing beside the copy would slow it down, and training with it
    tensor, hasher, extremes = image.views[name], blake3(), list[Tensor]()
    for piece in tensor.reshape(-1).split(CACHED // tensor.element_size()):
        hasher.update(as_bytes(piece))
        if tensor.is_floating_point() and piece.numel():
            extremes += torch.aminmax(piece)  # NaN wins over every number
    return hasher.hexdigest(), not extremes or bool(torch.stack(extremes).isfinite().all())
