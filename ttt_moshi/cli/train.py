"""Train, interrupt and resume a model."""

from __future__ import annotations

import logging
import os
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from ttt_moshi.config import TrainArgs
from ttt_moshi.config_io import parse_train_args
from ttt_moshi.frames import frames_to_seconds


def main(argv: list[str]) -> int:
    """`ttt-moshi train --config X.yaml [--key value ...]`; status 0 also when a signal ended it with a checkpoint."""
    args = parse_train_args(argv)
    # PyTorch is imported only now: a mistyped flag must not wait for it.
    from ttt_moshi.training import run

    main_rank = os.environ.get("RANK", "0") == "0"
    logging.basicConfig(level=logging.INFO if main_rank else logging.ERROR, format="%(message)s")
    console = Console(stderr=True, quiet=not main_rank)
    with _bar(console) as bar:
        task = bar.add_task("training", total=args.max_steps)
        outcome = run(args, report=lambda record: _show(record, args, bar, task, console))
    if not main_rank:
        return 0
    if outcome.checkpoint is not None:
        console.print(f"last checkpoint: {outcome.checkpoint}", soft_wrap=True, highlight=False)
    if outcome.state_id is not None:
        console.print(f"state id: {outcome.state_id}", soft_wrap=True, highlight=False)
    if outcome.finished:
        console.print(f"finished {outcome.step} steps")
    else:
        console.print(f"stopped by {outcome.stopped_by} after step {outcome.step} of {args.max_steps}. Continue with:")
        console.print(f"  {resume_command(argv)}", soft_wrap=True, highlight=False)
    return 0


def resume_command(argv: list[str]) -> str:
    """The command line that continues the run which `argv` started."""
    kept, skip = [], False
    for word in argv:
        starts_over = word.split("=")[0] in (
            "--checkpoint.resume",
            "--checkpoint.resume_step",
            "--checkpoint.init_state_dir",
            "--overwrite_run_dir",
        )
        if not skip and not starts_over:
            kept.append(word)
        skip = starts_over and "=" not in word
    world = int(os.environ.get("WORLD_SIZE", "1"))
    launcher = "python" if world == 1 else f"torchrun --nproc_per_node {os.environ.get('LOCAL_WORLD_SIZE', world)}"
    return " ".join([launcher, "train.py", *kept, "--checkpoint.resume", "true"])


def _bar(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console,
        disable=not console.is_terminal,
        transient=True,
    )


def _show(record: dict[str, Any], args: TrainArgs, bar: Progress, task: Any, console: Console) -> None:
    step = record["step"]
    if "loss" not in record:
        benchmarks = {
            name: task["value"] for name, task in record.get("paper_metrics", {}).items() if task["value"] is not None
        }
        console.print(
            f"step {step:>6} · evaluation · " + _pairs({**record.get("nll", {}), **benchmarks}),
            highlight=False,
            soft_wrap=True,
        )
        return
    bar.update(task, completed=step)
    if step % args.log_freq == 0 or step == args.max_steps:
        timing = record["timing"]
        console.print(
            f"step {step:>6}/{args.max_steps} · loss {record['loss']:.4f} · text {record['text_loss']:.4f} "
            f"· audio {record['audio_loss']:.4f} · lr {max(record['lr'].values()):.2e} "
            f"· {timing['step_seconds']:.2f} s · {frames_to_seconds(timing['audio_frames_per_second']):.1f}x real time",
            highlight=False,
            soft_wrap=True,
        )


def _pairs(values: dict[str, float]) -> str:
    return " · ".join(f"{name} {value:.4f}" for name, value in values.items())
