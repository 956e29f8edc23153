"""Proves the checkpoint system on a small model: what is saved is what a fresh process loads, bit for bit."""

from __future__ import annotations

import json
import math
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from blake3 import blake3
from torch import Tensor
from torch.distributed.tensor import DTensor

from ttt_moshi.checkpoint import CheckpointStore, read_manifest, verify
from ttt_moshi.config import CheckpointArgs, DataArgs, ModelPaths, OptimArgs, TrainArgs, TTTArgs, to_dict
from ttt_moshi.config_io import args_from_dict
from ttt_moshi.moshi import TensorCounts, count_tensors
from ttt_moshi.synthetic import Material
from ttt_moshi.training import checkpoints
from ttt_moshi.training.assemble import assemble
from ttt_moshi.training.distributed import join_world
from ttt_moshi.training.optimizer import optimizer_tensors, set_update_counts, update_counts
from ttt_moshi.training.run import run


@dataclass(frozen=True)
class Finding:
    """One thing that was tried.

    Args:
        name: what was to be shown.
        holds: whether it was.
        detail: the figures, or what differed.
    """

    name: str
    holds: bool
    detail: str


def tiny_args(material: Material, run_dir: Path, **overrides: object) -> TrainArgs:
    """A configuration that trains in seconds, with every kind of parameter that adapters can have."""
    values = {
        "run_dir": str(run_dir),
        "data": DataArgs(train_data=str(material.train_data), shuffle=True),
        "moshi_paths": ModelPaths(hf_repo_id=str(material.base_model)),
        "ttt": TTTArgs(enable=True, layers="all", mini_batch_size=8),
        "optim": OptimArgs(lr=1e-3),
        "duration_sec": 2.4,
        "batch_size": 2,
        "max_steps": 8,
        "ckpt_freq": 3,
        "num_ckpt_keep": None,
        "param_dtype": "float32",
        "gradient_checkpointing": False,
    }
    return TrainArgs(**{**values, **overrides})  # type: ignore[arg-type]


def round_trip(material: Material, folder: Path) -> tuple[Finding, TensorCounts]:
    """Gives every tensor of a training state its own values, saves it, and compares what a fresh process loads.

    Fresh models agree with one another in most tensors (zeros, ones, equal seeds), so a comparison without new
    values would succeed even if nothing had been loaded.
    """
    args = tiny_args(material, folder / "round_trip")
    with join_world() as world:
        parts = assemble(args, world)
        tensors = optimizer_tensors(parts.model, parts.optimizer)
        for i, tensor in enumerate(tensors.values()):
            perturb(tensor, seed=i)
        counts = {name: 100 + i for i, name in enumerate(update_counts(parts.model, parts.optimizer))}
        set_update_counts(parts.model, parts.optimizer, counts)
        expected = digests(tensors)
        with CheckpointStore(folder / "round_trip" / "checkpoints") as store:
            store.open()
            checkpoints.save(store, parts, args, world, checkpoints.Progress(7, 1234, 1234), {})
            store.wait()
        model_counts = count_tensors(parts.model)
    elsewhere = tiny_args(material, folder / "round_trip", seed=1, checkpoint=CheckpointArgs(resume=True))
    child = subprocess.run(
        [sys.executable, "-m", "ttt_moshi.verification.round_trip", json.dumps(to_dict(elsewhere))],
        capture_output=True,
        text=True,
        check=False,
    )
    if child.returncode != 0:
        return Finding("round trip", False, f"the fresh process failed: {child.stderr[-2000:]}"), model_counts
    found = json.loads(child.stdout.splitlines()[-1])
    different = sorted(name for name in expected if found["digests"].get(name) != expected[name])
    different += [f"update count of {name}" for name in counts if found["counts"][name] != counts[name]]
    if (found["step"], found["cursor"]) != (7, 1234):
        different.append("step or data position")
    detail = f"{len(expected)} tensors, each with its own values, bit for bit equal in a fresh process"
    return Finding(
        "round trip", not different, detail if not different else f"differ: {', '.join(different)}"
    ), model_counts


def kill_and_resume(material: Material, folder: Path) -> Finding:
    """Trains, kills with SIGKILL, resumes, and compares with a run that was never killed."""
    whole, killed = (tiny_args(material, folder / name) for name in ("whole", "killed"))
    _train(whole).wait()
    process = _train(killed)
    metrics = Path(killed.run_dir) / "metrics.train.jsonl"
    while process.poll() is None and not (metrics.exists() and len(metrics.read_text().splitlines()) >= 5):
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    killed.checkpoint.resume = True
    _train(killed).wait()
    ids = [_state_id(args) for args in (whole, killed)]
    lines = [_timeless(args) for args in (whole, killed)]
    if ids[0] is None or ids[1] is None:
        return Finding("kill and resume", False, "a run did not reach its last checkpoint")
    if ids[0] != ids[1] or lines[0] != lines[1]:
        return Finding("kill and resume", False, f"state ids {ids[0]} and {ids[1]}, equal logs: {lines[0] == lines[1]}")
    return Finding("kill and resume", True, f"state id {ids[0][:16]}… and all {len(lines[0])} logged steps are equal")


def damage(folder: Path) -> Finding:
    """Flips one bit in every file of a checkpoint, one after the other: each must be noticed and named."""
    store = CheckpointStore(folder / "round_trip" / "checkpoints")
    path = store.path(store.steps()[-1])
    files = sorted(p for p in path.rglob("*") if p.is_file())
    missed = []
    for file in files:
        content = bytearray(file.read_bytes())
        place = (2 * len(content)) // 3
        content[place] ^= 0x10
        file.write_bytes(content)
        report = verify(path)
        if report.ok or not any(file.name in str(problem.file) for problem in report.problems):
            missed.append(file.name)
        content[place] ^= 0x10
        file.write_bytes(content)
    sound = verify(path)
    if missed or not sound.ok:
        return Finding("damage", False, f"not noticed: {', '.join(missed)}" if missed else sound.text())
    return Finding("damage", True, f"one flipped bit in each of {len(files)} files: all noticed, each file named")


def perturb(tensor: Tensor, seed: int) -> None:
    """Fills a tensor with values that no other tensor has, none of them zero."""
    local = tensor.to_local() if isinstance(tensor, DTensor) else tensor
    generator = torch.Generator().manual_seed(seed)
    values = torch.rand(local.shape, generator=generator, dtype=torch.float64) + math.sqrt(seed + 2)
    with torch.no_grad():
        local.copy_(values)


def digests(tensors: dict[str, Tensor]) -> dict[str, str]:
    """BLAKE3 of every tensor's bytes."""
    return {
        name: blake3((t.full_tensor() if isinstance(t, DTensor) else t).cpu().numpy().tobytes()).hexdigest()
        for name, t in tensors.items()
    }


def _train(args: TrainArgs) -> subprocess.Popen[bytes]:
    script = (
        "import sys, json; from ttt_moshi.verification.round_trip import train_in_child; train_in_child(sys.argv[1])"
    )
    return subprocess.Popen([sys.executable, "-c", script, json.dumps(to_dict(args))], stderr=subprocess.DEVNULL)


def train_in_child(config: str) -> None:
    """Entry of a training process: the configuration as JSON."""
    run(args_from_dict(json.loads(config)))


def _state_id(args: TrainArgs) -> str | None:
    store = CheckpointStore(Path(args.run_dir) / "checkpoints")
    if args.max_steps not in store.steps():
        return None
    return read_manifest(store.path(args.max_steps))["state_id"]


def _timeless(args: TrainArgs) -> list[dict]:
    path = Path(args.run_dir) / "metrics.train.jsonl"
    records = [json.loads(line) for line in path.read_text().splitlines()]
    return [{k: v for k, v in record.items() if k != "timing"} for record in records]


def _report_loaded(args: TrainArgs, write: Callable[[str], None]) -> None:
    with join_world() as world:
        parts = assemble(args, world)
        store = CheckpointStore(Path(args.run_dir) / "checkpoints")
        progress, _ = checkpoints.resume(store, parts, args, world)
        loaded = {
            "digests": digests(optimizer_tensors(parts.model, parts.optimizer)),
            "counts": update_counts(parts.model, parts.optimizer),
            "step": progress.step,
            "cursor": progress.cursor,
        }
    write(json.dumps(loaded))


if __name__ == "__main__":
    _report_loaded(args_from_dict(json.loads(sys.argv[1])), print)
