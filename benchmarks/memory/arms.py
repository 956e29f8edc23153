"""The models that are compared, and their training: the package's own `run`, on the same recordings in one order."""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from ttt_moshi.config import CheckpointArgs, DataArgs, LongArgs, ModelPaths, OptimArgs, TrainArgs, TTTArgs
from ttt_moshi.moshi import TTTMoshi, load_trained
from ttt_moshi.training import run

WINDOW = 16
SINK = 4
"""positions that StreamingLLM keeps of a recording's beginning"""


@dataclass(frozen=True)
class Arm:
    """One model: its attention window in frames (None: that of the base model), its TTT layers (None: none), after how
    many frames half of their memory is forgotten (None: it stays), and how many of a recording's first positions stay
    in its window when it is measured (training knows nothing of them), what its keys learn to predict, and how many
    frames are written at once (delta writes every frame by itself)."""

    window: int | None
    inner: Literal["linear", "mlp", "delta"] | None = None
    half_life: float | list[float] | None = None
    forget: Literal["fixed", "learned", "gated"] = "fixed"
    sink: int = 0
    target: Literal["own", "next", "both"] = "own"
    mini_batch_size: int = 16


ARMS = {
    "window": Arm(WINDOW),
    "window-sink": Arm(WINDOW, sink=SINK),
    "ttt-linear": Arm(WINDOW, "linear"),
    "ttt-mlp": Arm(WINDOW, "mlp"),
    "ttt-linear-by-4": Arm(WINDOW, "linear", mini_batch_size=4),
    "ttt-linear-by-1": Arm(WINDOW, "linear", mini_batch_size=1),
    "ttt-linear-fading": Arm(WINDOW, "linear", 512),
    "ttt-linear-spread": Arm(WINDOW, "linear", [64, 1024]),
    "ttt-mlp-fading": Arm(WINDOW, "mlp", 512),
    "ttt-mlp-spread": Arm(WINDOW, "mlp", [64, 1024]),
    "ttt-delta": Arm(WINDOW, "delta"),
    "ttt-delta-512": Arm(WINDOW, "delta", 512),
    "ttt-delta-fading": Arm(WINDOW, "delta", [64, 1024]),
    "ttt-delta-16384": Arm(WINDOW, "delta", [64, 16384]),
    "ttt-delta-learned": Arm(WINDOW, "delta", [64, 1024], "learned"),
    "ttt-delta-gated": Arm(WINDOW, "delta", [64, 1024], "gated"),
    "ttt-delta-gated-16384": Arm(WINDOW, "delta", [64, 16384], "gated"),
    "ttt-delta-next": Arm(WINDOW, "delta", [64, 1024], target="next"),
    "ttt-delta-both": Arm(WINDOW, "delta", [64, 1024], target="both"),
    "ttt-delta-both-long": Arm(WINDOW, "delta", [256, 8192], target="both"),
    "ttt-delta-both-lasting": Arm(WINDOW, "delta", target="both"),
    "full": Arm(None),
}


def chosen(text: str) -> list[str]:
    """Names of arms, separated by commas, on a command line. Raises ArgumentTypeError for one that there is not."""
    names = text.split(",")
    unknown = sorted(set(names) - set(ARMS))
    if unknown:
        raise argparse.ArgumentTypeError(f"no model {', '.join(unknown)}; there are {', '.join(ARMS)}")
    return names


@dataclass(frozen=True)
class Schedule:
    """How an arm is trained.

    The rates were found for this size: TTT layers learn what to write where the rest of the model moves slowly, and
    their gates may open at once since there is no trained model to protect.
    """

    steps: int
    batch_size: int
    clip_frames: int
    seed: int
    lr: float = 2e-3
    ttt_lr: float = 1e-2
    gate_lr: float = 2e-2
    gating_alpha: float = 0.3
    semantic_weight: float = 10.0
    shuffle: bool = False
    """whether recordings are heard in random order, instead of that in which they are listed"""
    carried: bool = False
    """whether each batch row walks through one recording, attention and memory carried from clip to clip"""
    start: Path | None = None
    """checkpoint whose weights the training starts from, instead of those of the base model"""


@dataclass(frozen=True)
class Trained:
    """An arm loaded back from its checkpoint."""

    model: TTTMoshi
    checkpoint: Path
    seconds: float
    """wall clock, checkpoint included"""
    cpu_seconds: float
    final_loss: float


def arguments(arm: Arm, schedule: Schedule, base_model: Path, train_data: Path, run_dir: Path) -> TrainArgs:
    """The training of all parameters, base and TTT together, as the package's configuration."""
    return TrainArgs(
        run_dir=str(run_dir),
        data=DataArgs(train_data=str(train_data), shuffle=schedule.shuffle),
        moshi_paths=ModelPaths(hf_repo_id=str(base_model)),
        ttt=TTTArgs(
            enable=arm.inner is not None,
            layers="all",
            inner=arm.inner or "mlp",
            mini_batch_size=arm.mini_batch_size,
            initial_gating_alpha=schedule.gating_alpha,
            half_life_frames=arm.half_life,
            forget=arm.forget,
            target=arm.target,
            # Given frames are heard once, forwards, as everything else.
            bidirectional_prefix=False,
        ),
        train=LongArgs(context_frames=arm.window, stateful=schedule.carried),
        optim=OptimArgs(lr=schedule.lr, ttt_lr=schedule.ttt_lr, gate_lr=schedule.gate_lr, weight_decay=0.01),
        checkpoint=CheckpointArgs(init_state_dir=None if schedule.start is None else str(schedule.start)),
        full_finetuning=True,
        save_adapters=False,
        seed=schedule.seed,
        duration_sec=schedule.clip_frames * 0.08,
        batch_size=schedule.batch_size,
        max_steps=schedule.steps,
        first_codebook_weight_multiplier=schedule.semantic_weight,
        param_dtype="float32",
        gradient_checkpointing=False,
    )


def train(args: TrainArgs) -> Trained:
    """Trains by `args` and loads the checkpoint as any user would."""
    losses: list[float] = []
    began, cpu = time.perf_counter(), time.process_time()
    outcome = run(args, lambda record: losses.append(record["loss"]))
    if not outcome.finished or outcome.checkpoint is None:
        raise SystemExit(f"training was stopped by {outcome.stopped_by}")
    seconds, cpu_seconds = time.perf_counter() - began, time.process_time() - cpu
    model = load_trained(outcome.checkpoint, dtype=torch.float32)
    return Trained(model, outcome.checkpoint, seconds, cpu_seconds, losses[-1])
