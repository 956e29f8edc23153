"""What a training checkpoint holds, and how a run starts from one."""

from __future__ import annotations

import logging
import math
import socket
import sys
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from torch import Tensor

from ttt_moshi.checkpoint import CheckpointStore, Export, NoCheckpoint, read_document, read_manifest
from ttt_moshi.config import ConfigError, TrainArgs, to_dict
from ttt_moshi.training import random_state
from ttt_moshi.training.assemble import Parts
from ttt_moshi.training.distributed import World
from ttt_moshi.training.optimizer import optimizer_tensors, set_update_counts, update_counts
from ttt_moshi.training.run_dir import git_state, redact

logger = logging.getLogger(__name__)

TRAINING_CONFIG = "consolidated/training_config.json"
STATE = "resume/state.json"

# Keys that may differ between a run and its resumption without changing what is trained or with what result.
HARMLESS_KEYS = (
    "run_dir", "log_freq", "do_ckpt", "ckpt_freq", "num_ckpt_keep", "overwrite_run_dir", "do_eval", "eval_freq",
    "checkpoint", "paper_metrics", "wandb", "train.watch_freq", "data.eval_data", "data.code_cache_dir",
)  # fmt: skip
# Keys that decide which parameters exist; their tensors could not be restored.
STRUCTURE_KEYS = ("ttt", "lora", "full_finetuning", "param_dtype")


@dataclass(frozen=True)
class Progress:
    """How far a run has come.

    Args:
        step: optimizer steps done.
        cursor: clips consumed in this stage, which is the position in its endless order of clips.
        clips: clips consumed in all.
        elapsed_seconds: time spent in steps, over all launches.
    """

    step: int = 0
    cursor: int = 0
    clips: int = 0
    elapsed_seconds: float = 0.0

    def after_step(self, clips: int, seconds: float) -> Progress:
        """The progress after one more step over `clips` clips."""
        return Progress(self.step + 1, self.cursor + clips, self.clips + clips, self.elapsed_seconds + seconds)

    def at_stage_start(self) -> Progress:
        """The same progress at the first clip of a new stage."""
        return replace(self, cursor=0)


def save(
    store: CheckpointStore,
    parts: Parts,
    args: TrainArgs,
    world: World,
    progress: Progress,
    metrics: dict[str, float],
) -> None:
    """Saves everything that influences the next step, and the exports that evaluation and serving read."""
    store.save(
        progress.step,
        kind="adapters" if args.save_adapters else "full",
        tensors=_tensors(parts, world),
        state={
            "step": progress.step,
            "cursor": progress.cursor,
            "clips": progress.clips,
            "data_fingerprint": parts.data_fingerprint,
            "rows": parts.carried_rows,
            "update_counts": update_counts(parts.model, parts.optimizer),
            "schedule": {"name": "one_cycle", "max_steps": args.max_steps, "pct_start": args.optim.pct_start},
        },
        rank_state={"random": random_state.capture()},
        exports=parts.exports(),
        documents={**parts.documents, TRAINING_CONFIG: to_dict(args)},
        metrics=metrics,
        info={
            "elapsed_seconds": progress.elapsed_seconds,
            "saved_at": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "host": socket.gethostname(),
            "command": redact(sys.argv),
            "git": git_state(),
        },
    )


def reserve(store: CheckpointStore, parts: Parts, world: World) -> None:
    """Refuses a disk without room for one checkpoint, before the first step."""
    exported = sum(e.dtype.itemsize * _elements(e, parts) for file in parts.exports().values() for e in file.values())
    store.reserve(_tensors(parts, world), exported)


def _elements(export: Export, parts: Parts) -> int:
    if export.shape is not None:
        return math.prod(export.shape)
    if isinstance(export.source, str):
        return parts.model.get_parameter(export.source.removeprefix("param/")).numel()
    assert isinstance(export.source, Tensor)
    return export.source.numel()


def check_resumable(store: CheckpointStore, parts: Parts, args: TrainArgs) -> None:
    """Refuses, before anything is touched, what cannot be resumed.

    Raises:
        NoCheckpoint: the run has none yet, or not the named step.
        ConfigError: the configuration describes another model than the checkpoint.
    """
    steps = store.steps()
    wanted = args.checkpoint.resume_step
    if not steps:
        raise NoCheckpoint(
            f"{store.root} holds no checkpoint to resume from. Start the run without --checkpoint.resume first; "
            "if it was killed before its first checkpoint, add --overwrite_run_dir true"
        )
    if wanted != -1 and wanted not in steps:
        raise NoCheckpoint(f"{store.root} has no checkpoint of step {wanted}; it has {', '.join(map(str, steps))}")
    candidate = store.newest_valid() if wanted == -1 else wanted
    if candidate is not None:
        path = store.path(candidate)
        _compare_configs(read_document(path, TRAINING_CONFIG), to_dict(args), path)
        _compare_rows(read_document(path, STATE), parts)


def resume(store: CheckpointStore, parts: Parts, args: TrainArgs, world: World) -> Progress:
    """Restores the newest valid checkpoint, or exactly the named one, and says which and why.

    Raises:
        ConfigError: the configuration describes other data than the checkpoint.
    """
    wanted = args.checkpoint.resume_step
    loaded = store.load(wanted, tensors=_tensors(parts, world))
    for path, reason in loaded.skipped:
        logger.warning("skipped damaged checkpoint %s: %s", path, reason)
    state = loaded.state
    if state["data_fingerprint"] != parts.data_fingerprint:
        raise ConfigError(
            "the training data, tokenizer, codec or clip length differ from those of the checkpoint, so the run cannot "
            f"continue exactly. Use the same data, or start a new run with --checkpoint.init_state_dir {loaded.path}"
        )
    for moved in store.leave_branch(loaded.step):
        logger.warning("kept %s aside: the run goes on from step %d without it", moved, loaded.step)
    set_update_counts(parts.model, parts.optimizer, state["update_counts"])
    if loaded.rank_state is not None:
        random_state.restore(loaded.rank_state["random"])
    if loaded.world_size != world.size:
        logger.warning(
            "resuming on %d processes a run saved by %d: the order of clips continues, results agree to rounding only",
            world.size,
            loaded.world_size,
        )
    if state["step"] >= args.max_steps:
        logger.warning("step %d is already the end: raise --max_steps to train further", state["step"])
    reason = f"named by resume_step {wanted}" if wanted != -1 else "the newest valid checkpoint"
    logger.info("resuming at step %d from %s (%s)", state["step"], loaded.path, reason)
    elapsed = read_manifest(loaded.path)["info"]["elapsed_seconds"]
    return Progress(state["step"], state["cursor"], state["clips"], elapsed)


def _tensors(parts: Parts, world: World) -> dict[str, Tensor]:
    """Every live tensor that the next step depends on."""
    return {**optimizer_tensors(parts.model, parts.optimizer), **parts.feed.tensors(world.mesh)}


def _compare_rows(saved: dict[str, Any], parts: Parts) -> None:
    """Refuses to continue carried recordings with another number of rows: they would have to be dropped or begun."""
    before, now = saved["state"]["rows"], parts.carried_rows
    if before != now:
        raise ConfigError(
            f"the checkpoint carries the recordings of {before} (micro-batches, rows each) and this run has {now}: "
            "keep num_microbatches, and the product of batch_size and the number of processes"
        )


def _compare_configs(saved: dict[str, Any], now: dict[str, Any], path: Path) -> None:
    """Refuses another structure, and names every other change that influences the run."""
    before, after = _flat(saved), _flat(now)
    changed = [key for key in after if before.get(key) != after[key] and not _under(key, HARMLESS_KEYS)]
    structural = [key for key in changed if _under(key, STRUCTURE_KEYS)]
    if structural:
        differences = "; ".join(f"{key} was {before.get(key)!r} and is {after[key]!r}" for key in structural)
        raise ConfigError(
            f"{path} was trained with another model: {differences}. Use the same values, or start a new run with "
            f"--checkpoint.init_state_dir {path}"
        )
    for key in changed:
        logger.warning(
            "%s changes from %r to %r: the run continues, but not as it would have", key, before.get(key), after[key]
        )


def _under(key: str, roots: tuple[str, ...]) -> bool:
    return any(key == root or key.startswith(root + ".") for root in roots)


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return flat
