"""Train, interrupt and resume a model."""

from __future__ import annotations

import logging
import os
import shlex
import signal
import sys
from contextlib import redirect_stderr
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ttt_moshi.cli.printing import Lasting
from ttt_moshi.signals import Requests, Stopped, requests

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress

    from ttt_moshi.config import TrainArgs
    from ttt_moshi.training import Outcome

# Options that decide how a run begins; the command that continues it has others in their place.
_BEGINNINGS = (
    "--checkpoint.resume",
    "--checkpoint.resume_step",
    "--checkpoint.init_state_dir",
    "--checkpoint.accept_changes",
    "--overwrite_run_dir",
)

ESTIMATE = "--estimate"

# What a step's line shows, and its name in the metrics: a model that only writes has no loss of audio.
LOSSES = {"loss": "loss", "text": "text_loss", "audio": "audio_loss"}


def main(argv: list[str]) -> int:
    """`ttt-moshi train --config X.yaml [--key value ...]`.

    Status 0: finished, and its last state can be resumed. 143, 130 or 129: stopped by SIGTERM, SIGINT or SIGHUP with
    everything saved. 2: could not start, nothing was touched. 1: the run ended by itself before its last step.
    """
    # Before PyTorch is imported: a signal that comes while the process starts must not be lost, nor end it rudely.
    # And a terminal that is gone, or another reader of what is said here, must not end a run.
    with redirect_stderr(sys.stderr and Lasting(sys.stderr)), requests() as asked:
        try:
            return _train(argv, asked)
        except Stopped as stopped:
            name = signal.Signals(stopped.number).name
            print(f"stopped by {name} before the first step: nothing was trained, nothing is lost", file=sys.stderr)
            return 128 + stopped.number


def _train(argv: list[str], asked: Requests) -> int:
    asked.starting()
    from ttt_moshi.config_io import parse_train_args

    if ESTIMATE in argv:
        from ttt_moshi.cli.train_estimate import show

        return show(parse_train_args([word for word in argv if word != ESTIMATE]))
    args = parse_train_args(argv)
    # PyTorch is imported only now: a mistyped flag must not wait for it.
    from rich.console import Console

    from ttt_moshi.training import RunEnded, run

    is_main = os.environ.get("RANK", "0") == "0"
    logging.basicConfig(level=logging.INFO if is_main else logging.ERROR, format="%(message)s")
    console = Console(stderr=True, quiet=not is_main)
    with _bar(console) as bar:
        task = bar.add_task("training", total=args.max_steps)
        try:
            outcome = run(args, report=lambda record: _show(record, args, bar, task, console), asked=asked)
        except RunEnded as error:
            bar.stop()
            print(f"error: {error}", file=sys.stderr)
            if is_main and error.options:
                print(f"Continue with:\n  {continue_command(argv, error.options)}", file=sys.stderr)
            return 1
    if is_main:
        print(_last_words(outcome, args, argv), file=sys.stderr)
    return 0 if outcome.stopped_by is None else 128 + signal.Signals[outcome.stopped_by]


def _last_words(outcome: Outcome, args: TrainArgs, argv: list[str]) -> str:
    lines = []
    if outcome.checkpoint is not None:
        lines.append(f"last checkpoint: {outcome.checkpoint}")
    if outcome.state_id is not None:
        lines.append(f"state id: {outcome.state_id}")
    if outcome.stopped_by is not None:
        lines.append(f"stopped by {outcome.stopped_by} after step {outcome.step} of {args.max_steps}.")
        if outcome.checkpoint is None:
            lines[-1] += " Nothing was saved: do_ckpt is false"
        else:
            lines[-1] += " Continue with:"
            lines.append(f"  {continue_command(argv, ['--checkpoint.resume', 'true'])}")
    elif outcome.step > args.max_steps:
        lines.append(f"nothing to do: step {outcome.step} is beyond max_steps {args.max_steps}")
    else:
        lines.append(f"finished {outcome.step} steps")
    return "\n".join(lines)


def continue_command(argv: list[str], options: list[str]) -> str:
    """The command line that continues the run which `argv` started, with other options in the place of its own: by the
    door that was taken, ready for a shell, and without the secret that may be in it (`training.run_dir.redact`)."""
    from ttt_moshi.training.run_dir import redact

    replaced = (*_BEGINNINGS, *(word for word in options if word.startswith("--")))
    kept, skip = [], False
    for word in redact(argv):
        drop = word.split("=")[0] in replaced
        if not skip and not drop:
            kept.append(word)
        skip = drop and "=" not in word
    world = int(os.environ.get("WORLD_SIZE", "1"))
    script = Path(sys.argv[0]).name == "train.py"
    if world == 1:
        launcher = ["python", "train.py"] if script else ["ttt-moshi", "train"]
    else:
        launcher = ["torchrun", "--nproc_per_node", os.environ.get("LOCAL_WORLD_SIZE", str(world))]
        launcher += ["train.py"] if script else ["-m", "ttt_moshi", "train"]
    return shlex.join([*launcher, *kept, *options])


def _bar(console: Console) -> Progress:
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

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
    from ttt_moshi.frames import FRAME_RATE

    step = record["step"]
    if "loss" not in record:
        benchmarks = {
            name: task["value"]
            for name, task in record.get("paper_metrics", {}).items()
            if task.get("value") is not None
        }
        gates = {f"gates.{name}": value for name, value in record.get("gates", {}).items() if name != "reason"}
        console.print(
            f"step {step:>6} · evaluation · " + _pairs({**record.get("nll", {}), **benchmarks, **gates}),
            highlight=False,
            soft_wrap=True,
        )
        return
    bar.update(task, completed=step)
    if step % args.log_freq == 0 or step == args.max_steps:
        timing = record["timing"]
        losses = {name: record[key] for name, key in LOSSES.items() if key in record}
        console.print(
            f"step {step:>6}/{args.max_steps} · {_pairs(losses)} · lr {max(record['lr'].values()):.2e} "
            f"· {timing['step_seconds']:.2f} s · {timing['audio_frames_per_second'] / FRAME_RATE:.1f}x real time",
            highlight=False,
            soft_wrap=True,
        )


def _pairs(values: dict[str, float]) -> str:
    return " · ".join(f"{name} {value:.4f}" for name, value in values.items())
