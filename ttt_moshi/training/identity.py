"""Whether a run that is resumed is still the same run: every difference from the checkpoint, and what it means.

Files are told by their content, never by where they lie, and clips by what a step holds, never by who reads them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ttt_moshi.checkpoint import read_document, read_manifest
from ttt_moshi.config import ConfigError, TrainArgs, clip_stages, flatten, to_dict
from ttt_moshi.config_idle import idle_keys
from ttt_moshi.frames import seconds_to_frames
from ttt_moshi.training.assemble import Parts

TRAINING_CONFIG = "consolidated/training_config.json"
BASE_MODEL = "consolidated/base_model.json"
TTT = "consolidated/ttt.json"
STATE = "resume/state.json"
# How the fingerprint of the data in a checkpoint was made. Before there was this word, sizes stood for contents.
BY_CONTENT = "content"

SAME = "harmless: goes on, bit-identical"
ROUNDING = "harmless: goes on, equal to rounding"
ONWARD = "harmless: goes on, trained differently from here"
DATA, SEED, BATCH = "data", "seed", "batch"
IMPOSSIBLE = "impossible"
ACCEPTABLE = (DATA, SEED, BATCH)

# What a difference in each key means. Keys whose effect is compared by itself (paths by what the files hold, sizes of
# batches by what they make together) are harmless here.
KEY_CLASSES: dict[str, str] = {
    "run_dir": SAME,
    "data.train_data": SAME,
    "data.eval_data": SAME,
    "data.shuffle": SEED,
    "data.code_cache_dir": SAME,
    "data.remote_cache_dir": SAME,
    "data.remote_cache_gb": SAME,
    "data.no_whitespace_before_word": SAME,
    "data.new_text_embeddings": IMPOSSIBLE,
    "data.train_user_stream": IMPOSSIBLE,
    "moshi_paths.hf_repo_id": SAME,
    "moshi_paths.mimi_path": SAME,
    "moshi_paths.moshi_path": SAME,
    "moshi_paths.tokenizer_path": SAME,
    "moshi_paths.config_path": SAME,
    "ttt.enable": IMPOSSIBLE,
    "ttt.layers": SAME,
    "ttt.inner": IMPOSSIBLE,
    "ttt.preset": IMPOSSIBLE,
    "ttt.base_lr": IMPOSSIBLE,
    "ttt.mini_batch_size": IMPOSSIBLE,
    "ttt.init": SAME,
    "ttt.initial_gating_alpha": SAME,
    "ttt.half_life_frames": IMPOSSIBLE,
    "ttt.forget": IMPOSSIBLE,
    "ttt.target": IMPOSSIBLE,
    "ttt.bidirectional_prefix": IMPOSSIBLE,
    "lora.enable": IMPOSSIBLE,
    "lora.rank": IMPOSSIBLE,
    "lora.scaling": IMPOSSIBLE,
    "lora.ft_embed": IMPOSSIBLE,
    "optim.lr": ONWARD,
    "optim.weight_decay": ONWARD,
    "optim.pct_start": ONWARD,
    "optim.ttt_lr": ONWARD,
    "optim.fast_weight_lr": ONWARD,
    "optim.gate_lr": ONWARD,
    "train.stateful": IMPOSSIBLE,
    "train.backprop_clips": SAME,
    "train.context_frames": IMPOSSIBLE,
    "train.clip_schedule": SAME,
    "train.random_phase": SEED,
    "train.watch_freq": SAME,
    "train.distill.context_frames": IMPOSSIBLE,
    "train.distill.weight": ONWARD,
    "train.inherit_memory": ONWARD,
    "checkpoint.resume": SAME,
    "checkpoint.resume_step": SAME,
    "checkpoint.accept_changes": SAME,
    "checkpoint.tolerate_failed_saves": SAME,
    "checkpoint.every_minutes": SAME,
    "checkpoint.keep_every": SAME,
    "checkpoint.keep_best": SAME,
    "checkpoint.keep_metric": SAME,
    "checkpoint.mirror": SAME,
    "checkpoint.init_state_dir": SAME,
    "wandb.project": SAME,
    "wandb.offline": SAME,
    "wandb.key": SAME,
    "wandb.run_name": SAME,
    "paper_metrics.enable": SAME,
    "paper_metrics.data_root": SAME,
    "paper_metrics.tasks": SAME,
    "paper_metrics.split": SAME,
    "paper_metrics.max_items": SAME,
    "paper_metrics.freq": SAME,
    "paper_metrics.max_frames": SAME,
    "eval.gates": SAME,
    "eval.gates_sec": SAME,
    "full_finetuning": IMPOSSIBLE,
    "seed": SEED,
    "duration_sec": SAME,
    "batch_size": ROUNDING,
    "num_microbatches": ROUNDING,
    "max_steps": ONWARD,
    "max_norm": ONWARD,
    "first_codebook_weight_multiplier": ONWARD,
    "text_padding_weight": ONWARD,
    "param_dtype": IMPOSSIBLE,
    "gradient_checkpointing": ROUNDING,
    "log_freq": SAME,
    "do_eval": SAME,
    "eval_freq": SAME,
    "stop_on_failed_evaluation": SAME,
    "do_ckpt": SAME,
    "ckpt_freq": SAME,
    "num_ckpt_keep": SAME,
    "save_adapters": SAME,
    "overwrite_run_dir": SAME,
    "patience_minutes": SAME,
}


@dataclass(frozen=True)
class Difference:
    """One thing that is not as it was.

    Args:
        key: the configuration key, or in words what no key says.
        meaning: one of the classes above.
    """

    key: str
    before: Any
    now: Any
    meaning: str

    @property
    def changes_the_run(self) -> bool:
        """Whether it makes another run of it, and so has to be accepted."""
        return self.meaning in ACCEPTABLE


@dataclass(frozen=True)
class Identity:
    """What makes a run the one it is.

    Args:
        config: the configuration as plain values.
        world_size: processes.
        base: digest of the base model's weights.
        data: digest of what the recordings and transcripts hold, of codec and tokenizer and of the length of clips;
            None where it is not known.
        rows: micro-batches, and rows of each over all processes, if recordings are carried from step to step.
        ttt_layers: indices of the transformer layers that have one.
    """

    config: dict[str, Any]
    world_size: int
    base: str
    data: str | None
    rows: list[int] | None
    ttt_layers: list[int]

    @property
    def stages(self) -> list[tuple[int, int]]:
        """First step of each stage and the frames of its clips."""
        schedule, seconds = self.config["train"].get("clip_schedule"), self.config["duration_sec"]
        stages = clip_stages(schedule, seconds)
        return [(step, seconds_to_frames(length)) for step, length in stages]

    @property
    def clips(self) -> int:
        """Clips in a step."""
        config = self.config
        rows = config["batch_size"] * config["num_microbatches"] * self.world_size
        return int(rows * config["train"].get("backprop_clips", 1))


def identity_of_checkpoint(path: Path) -> Identity:
    """That of the run which saved a checkpoint."""
    state, manifest = read_document(path, STATE)["state"], read_manifest(path)
    return Identity(
        config=read_document(path, TRAINING_CONFIG),
        world_size=manifest["world_size"],
        base=read_document(path, BASE_MODEL)["files"]["moshi"]["blake3"],
        data=state["data_fingerprint"] if state.get("data_identity") == BY_CONTENT else None,
        rows=state["rows"],
        ttt_layers=read_document(path, TTT)["layers"] if TTT in manifest["files"] else [],
    )


def identity_of_run(args: TrainArgs, world_size: int, parts: Parts) -> Identity:
    """That of the run which is about to start."""
    return Identity(
        config=to_dict(args),
        world_size=world_size,
        base=parts.documents[BASE_MODEL]["files"]["moshi"]["blake3"],
        data=parts.data_fingerprint,
        rows=parts.carried_rows,
        ttt_layers=parts.model.ttt_layers,
    )


def differences(before: Identity, now: Identity) -> list[Difference]:
    """All of them, those that matter most last."""
    # A key that the checkpoint does not know has come with a later version, whose default is what was done before.
    old, new = {**flatten(asdict(TrainArgs(run_dir="-"))), **flatten(before.config)}, flatten(now.config)
    idle = idle_keys(old).keys() & idle_keys(new).keys()
    found = [
        Difference(key, old[key], new[key], SAME if key in idle else meaning)
        for key, meaning in KEY_CLASSES.items()
        if old[key] != new[key]
    ]
    for what, was, is_now, meaning in (
        ("processes", before.world_size, now.world_size, ROUNDING),
        ("clips in a step", before.clips, now.clips, BATCH),
        ("clip frames by step", before.stages, now.stages, DATA),
        ("TTT layers", before.ttt_layers, now.ttt_layers, IMPOSSIBLE),
        ("base model weights", before.base[:12], now.base[:12], IMPOSSIBLE),
    ):
        if was != is_now:
            found.append(Difference(what, was, is_now, meaning))
    if before.rows != now.rows and before.rows is not None and now.rows is not None:
        found.append(Difference("micro-batches, rows carried", before.rows, now.rows, BATCH))
    if before.data is not None and now.data is not None and before.data != now.data:
        found.append(Difference("content of the training data", before.data[:12], now.data[:12], DATA))
    order = (SAME, ROUNDING, ONWARD, BATCH, SEED, DATA, IMPOSSIBLE)
    return sorted(found, key=lambda difference: order.index(difference.meaning))


def table(found: Sequence[Difference]) -> list[str]:
    """Lines to print: key, before, now, class."""
    rows = [("key", "before", "now", "class")]
    for difference in found:
        meaning = f"changes the run ({difference.meaning})" if difference.changes_the_run else difference.meaning
        rows.append((difference.key, _short(difference.before), _short(difference.now), meaning))
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    return ["  ".join([*(cell.ljust(width) for cell, width in zip(row, widths)), row[3]]) for row in rows]  # noqa: B905


def refuse(found: Sequence[Difference], accepted: Sequence[str], path: Path) -> None:
    """Raises ConfigError for what is impossible, and for what changes the run without having been accepted."""
    impossible = [difference for difference in found if difference.meaning == IMPOSSIBLE]
    if impossible:
        raise ConfigError(
            f"{path} was trained with another model: {_list(impossible)}. Use the same values, or start a new run with "
            f"--checkpoint.init_state_dir {path}"
        )
    changing = [d for d in found if d.changes_the_run and d.meaning not in accepted]
    if changing:
        labels = ", ".join(sorted({*accepted, *(difference.meaning for difference in changing)}))
        raise ConfigError(
            f"this would not be the run that {path} belongs to: {_list(changing)}. Use what it was trained with, or "
            f"accept the change with --checkpoint.accept_changes '[{labels}]', or start a new run with "
            f"--checkpoint.init_state_dir {path}"
        )


def _list(found: Sequence[Difference]) -> str:
    return "; ".join(f"{d.key} was {_short(d.before)} and is {_short(d.now)}" for d in found)


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 40 else f"{text[:18]}...{text[-19:]}"
