"""Proves the checkpoint store at full size: a whole model of any geometry saved, verified and loaded in little memory.

The weights are random. The base model is in memory once, in bfloat16; nothing else of that size ever is.
"""

from __future__ import annotations

import gc
import resource
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from blake3 import blake3
from moshi.models.loaders import CheckpointInfo
from torch import Tensor

from ttt_moshi.checkpoint import (
    CheckpointStore,
    Export,
    forget,
    read_manifest,
    read_speed,
    read_tensors,
    verify,
    write_speed,
)
from ttt_moshi.config import LoraArgs, OptimArgs, TTTArgs
from ttt_moshi.errors import UserError
from ttt_moshi.moshi import (
    TensorCounts,
    TTTMoshi,
    build_model,
    count_tensors,
    decays,
    export_documents,
    export_file_name,
    export_plan,
    load_trained,
    parameter_role,
)
from ttt_moshi.training.optimizer import build_optimizer, optimizer_tensors, update_counts
from ttt_moshi.verification.round_trip import perturb

BASE_DTYPE = torch.bfloat16
EXPORT = f"consolidated/{export_file_name('full')}"
STEP = 1
# Beside what is counted tensor by tensor: PyTorch itself, buffers, the largest tensor in float64.
OVERHEAD_BYTES = 1_500_000_000


@dataclass
class FullSize:
    """What was found.

    Args:
        counts: tensors and elements of the model, by group.
        exported_tensors, exported_elements: what the exported file holds, from its manifest.
        bytes: size of the checkpoint.
        seconds: wall-clock time of "build", "save" (durable), "verify" and "load" (resumable state, then whole model),
            the last two with the page cache dropped before.
        raw_write, raw_read: bytes per second of the bare disk (direct, fsync), measured right before save and verify.
        peak_bytes: most memory that this process ever held.
        problems: what does not hold; empty if everything does.
    """

    counts: TensorCounts
    exported_tensors: int = 0
    exported_elements: int = 0
    bytes: int = 0
    seconds: dict[str, float] = field(default_factory=dict)
    raw_write: float = 0.0
    raw_read: float = 0.0
    peak_bytes: int = 0
    problems: list[str] = field(default_factory=list)

    def ratio_to_disk(self, phase: str) -> float:
        """Time of a phase beside the time in which the bare disk moves as many bytes (1: as fast as the disk)."""
        speed = self.raw_write if phase == "save" else self.raw_read
        return self.seconds[phase] * speed / self.bytes


def prove_full_size(
    info: CheckpointInfo, layers: str, folder: Path, say: Callable[[str], None], raw_bytes: int = 2 << 30
) -> FullSize:
    """Saves a whole model with TTT in `layers` to `folder`, verifies every byte, and loads it back bit for bit.

    Args:
        info: the geometry; no file of it is read. Without a configuration of its own it is Moshi 7B.
        folder: on the disk to use; must exist. What is written there is left to the caller to delete.
        say: told what is being done.
        raw_bytes: how much to write and read when measuring the bare disk.

    Raises:
        UserError: not enough memory or disk.
    """
    say("building the model")
    began = time.perf_counter()
    model = build_model(info, TTTArgs(enable=True, layers=layers), LoraArgs(), device="meta", load_weights=False)
    found = FullSize(count_tensors(model))
    check_room(found.counts, folder, raw_bytes)
    materialise(model)
    found.seconds["build"] = time.perf_counter() - began
    root = folder / "checkpoints"
    weights, state = _save(model, info, root, found, say, raw_bytes)
    del model
    gc.collect()

    path = CheckpointStore(root).path(STEP)
    exported = read_manifest(path)["exports"][EXPORT]
    found.exported_tensors = len(exported)
    found.exported_elements = sum(_elements(entry["shape"]) for entry in exported.values())
    say("measuring the bare disk, reading")
    found.raw_read = read_speed(folder / "raw", raw_bytes)
    (folder / "raw").unlink()
    say("verifying every byte")
    forget(path)
    began = time.perf_counter()
    report = verify(path)
    found.seconds["verify"] = time.perf_counter() - began
    found.problems += [problem.what for problem in report.problems]
    if report.ok:
        _load(path, weights, state, found, say)
    found.peak_bytes = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return found


def check_room(counts: TensorCounts, folder: Path, raw_bytes: int) -> None:
    """Refuses a machine without the memory or the disk. Raises UserError naming both numbers."""
    base, trained = counts.total.elements - counts.total_trainable.elements, counts.total_trainable.elements
    # Masters and two moments, once as training has them and once as they are staged.
    memory = BASE_DTYPE.itemsize * base + 2 * 3 * 4 * trained + OVERHEAD_BYTES
    disk = BASE_DTYPE.itemsize * base + (4 + 3 * 4) * trained + raw_bytes
    available = available_memory()
    if available < memory:
        raise UserError(
            f"this needs {memory / 1e9:.1f} GB of free memory, and {available / 1e9:.1f} GB are free: stop other "
            "programs or use a larger machine (24 GiB are enough for 7B)"
        )
    free = shutil.disk_usage(folder).free
    if free < disk:
        raise UserError(
            f"this needs {disk / 1e9:.1f} GB of disk, and {folder} has {free / 1e9:.1f} GB free: free some, or set "
            "TMPDIR to a folder on a larger disk"
        )


def materialise(model: TTTMoshi) -> None:
    """Gives every parameter of a model on the meta device values of its own, one tensor at a time."""
    for seed, (name, parameter) in enumerate(list(model.named_parameters())):
        value = torch.empty(parameter.shape, dtype=parameter.dtype)
        if parameter.requires_grad:
            perturb(value, seed)
        else:
            value.uniform_(-0.03, 0.03, generator=torch.Generator().manual_seed(seed))
        module, leaf = name.rsplit(".", 1)
        setattr(model.get_submodule(module), leaf, torch.nn.Parameter(value, parameter.requires_grad))


def _save(
    model: TTTMoshi, info: CheckpointInfo, root: Path, found: FullSize, say: Callable[[str], None], raw_bytes: int
) -> tuple[dict[str, str], dict[str, str]]:
    """Saves the model with an optimizer's state; digests of the exported and of the resumable tensors."""
    optimizer = build_optimizer(model, OptimArgs(), parameter_role, decays)
    tensors = optimizer_tensors(model, optimizer)
    for seed, (name, tensor) in enumerate(tensors.items()):
        if not name.startswith("param/"):
            perturb(tensor, seed)
    say("taking digests of what is to be saved")
    plan = export_plan(model, "full", BASE_DTYPE)
    parameters = dict(model.named_parameters())
    weights = {entry.name: _digest(parameters[entry.sources[0]].detach().to(entry.dtype)) for entry in plan}
    state = {name: _digest(tensor) for name, tensor in tensors.items()}

    def source(name: str) -> str | Tensor:
        return f"param/{name}" if parameters[name].requires_grad else parameters[name].detach()

    exports = {entry.name: Export(source(entry.sources[0]), entry.dtype) for entry in plan}
    documents = export_documents(model, info, {"note": "random weights"}, "full")
    with CheckpointStore(root) as store:
        store.reserve(tensors)
        say("measuring the bare disk, writing")
        found.raw_write = write_speed(root.parent / "raw", raw_bytes)
        say("saving")
        began = time.perf_counter()
        store.save(
            STEP,
            kind="full",
            tensors=tensors,
            state={"step": STEP, "update_counts": update_counts(model, optimizer)},
            exports={export_file_name("full"): exports},
            documents={f"consolidated/{name}": document for name, document in documents.items()},
        )
        saved = store.wait()
        found.seconds["save"] = time.perf_counter() - began
        assert saved is not None
        found.bytes = saved.bytes
    return weights, state


def _load(
    path: Path, weights: Mapping[str, str], state: Mapping[str, str], found: FullSize, say: Callable[[str], None]
) -> None:
    """Loads the resumable state and then the whole model, and compares every tensor's digest."""
    say("loading the state to resume from")
    forget(path)
    entries = read_manifest(path)["tensors"]
    targets = {name: torch.zeros(entries[name]["shape"]) for name in state}
    began = time.perf_counter()
    CheckpointStore(path.parent).load(STEP, tensors=targets)
    seconds = time.perf_counter() - began
    found.problems += [
        f"{name} was loaded with other values" for name in state if _digest(targets[name]) != state[name]
    ]
    del targets

    say("loading the whole model")
    began = time.perf_counter()
    model = load_trained(path, dtype=BASE_DTYPE, tensors=read_tensors(path, EXPORT))
    found.seconds["load"] = seconds + time.perf_counter() - began
    say("comparing every tensor")
    loaded = {name: _digest(parameter.detach()) for name, parameter in model.named_parameters()}
    different = sorted(name for name in {*weights, *loaded} if weights.get(name) != loaded.get(name))
    found.problems += [f"{name} of the loaded model is not what was saved" for name in different]


def _digest(tensor: Tensor) -> str:
    data = tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data
    return blake3(memoryview(data), max_threads=blake3.AUTO).hexdigest()


def _elements(shape: list[int]) -> int:
    return torch.Size(shape).numel()


def available_memory() -> int:
    """Bytes that programs may still take, page cache included."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable:"))
