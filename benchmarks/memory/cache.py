"""What a benchmark makes once: recordings, base models and trained models, kept beside its results.

A folder that has its final name is complete. The name of a trained model holds a digest of everything it was trained
by, so another rate or half-life is another model and none is taken for the other.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.memory import arms
from ttt_moshi.config import TrainArgs
from ttt_moshi.moshi import load_trained


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Waits until no other process makes this folder."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with open(folder.with_name(folder.name + ".lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def made(folder: Path, make: Callable[[Path], object]) -> Path:
    """`folder`, made by `make` under another name if it is not there yet."""
    with alone(folder):
        if not folder.exists():
            unfinished = folder.with_name(folder.name + ".unfinished")
            shutil.rmtree(unfinished, ignore_errors=True)
            make(unfinished)
            unfinished.rename(folder)
    return folder


def continued(path: Path, schema: int, settings: dict[str, Any]) -> dict[str, Any]:
    """The results of an earlier call with the same settings, if `path` holds them, else results without any runs: so a
    long benchmark can be continued."""
    result = json.loads(json.dumps({"schema": schema, "settings": settings, "runs": {}}))
    if path.exists():
        earlier = json.loads(path.read_text(encoding="utf-8"))
        same = all(earlier.get(key) == result[key] for key in ("schema", "settings"))
        result = earlier if same else result
    return result


def trained(folder: Path, name: str, described: dict[str, Any], arguments: Callable[[Path], TrainArgs]) -> arms.Trained:
    """A model that was trained in a subfolder of `folder` now or earlier.

    Args:
        described: what it is, for people; kept beside it.
        arguments: of its training, for the folder of the run.
    """
    # Every key of the training, so that no change of a default or a constant is taken for what was trained before.
    keys = json.dumps([described, asdict(arguments(Path("run")))], sort_keys=True).replace(f"{folder.parent}/", "")
    digest = hashlib.blake2b(keys.encode(), digest_size=4).hexdigest()
    own = folder / f"{name}-{digest}"
    record = own / "trained.json"
    with alone(own):
        if not record.exists():
            shutil.rmtree(own, ignore_errors=True)
            found = arms.train(arguments(own / "run"))
            costs = {"seconds": found.seconds, "cpu_seconds": found.cpu_seconds, "final_loss": found.final_loss}
            checkpoint = str(found.checkpoint.resolve().relative_to(own.resolve()))
            record.write_text(json.dumps({**described, "checkpoint": checkpoint, **costs}, indent=2))
    known = json.loads(record.read_text())
    checkpoint = own / known["checkpoint"]
    model = load_trained(checkpoint, dtype=torch.float32)
    return arms.Trained(model, checkpoint, known["seconds"], known["cpu_seconds"], known["final_loss"])


@dataclass(frozen=True)
class Models:
    """Trained models of one base model and one set of recordings."""

    folder: Path
    base_model: Path
    train_data: Path

    def trained(self, arm: arms.Arm, schedule: arms.Schedule) -> arms.Trained:
        """The arm, trained by this schedule now or earlier."""
        described = {"arm": asdict(replace(arm, sink=0)), "schedule": plain(asdict(schedule))}
        arguments = partial(arms.arguments, arm, schedule, self.base_model, self.train_data)
        return trained(self.folder, arm.inner or "attention", described, arguments)


def plain(values: dict[str, Any]) -> dict[str, Any]:
    """Without the folders that lead to it, a checkpoint is named by its model and its digest."""
    return {key: "/".join(value.parts[-4:]) if isinstance(value, Path) else value for key, value in values.items()}
