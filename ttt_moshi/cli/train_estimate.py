"""`ttt-moshi train --config X.yaml --estimate`: what a configuration needs, without training anything."""

from __future__ import annotations

from rich.console import Console

from ttt_moshi.config import TrainArgs
from ttt_moshi.config_idle import told_idle


def show(args: TrainArgs) -> int:
    """Prints memory and work of one training process, in lines that fit 80 columns, and which keys have no effect."""
    from ttt_moshi.training import estimate

    model = estimate.meta_model(args)
    console = Console(highlight=False)
    peak = 0.0
    console.print("memory of one process if nothing is sharded, in GB (an estimate: nothing is run)")
    for title, rows in (
        ("held from step to step", estimate.held(args, model)),
        ("on top in a step", estimate.working(args, model)),
    ):
        size = estimate.total(rows)
        console.print(f"{size / 1e9:8.2f}  {title}", style="bold")
        for what, row in rows.items():
            console.print(f"{row.size / 1e9:14.2f}  {what}: {row.source}", soft_wrap=True)
        peak += size
    console.print(f"{peak / 1e9:8.1f}  at its peak, about; allocator and libraries take some more", style="bold")
    work, frames = estimate.work(args, model), estimate.frames_per_step(args)
    console.print(f"work of a step of {frames:,} frames, in TFLOP (a product and its sum are two)")
    console.print(f"{sum(work.values()) * frames / 1e12:8.0f}  in all", style="bold")
    for name, flop in work.items():
        console.print(f"{flop * frames / 1e12:14.0f}  {name}")
    console.print(
        f"{args.max_steps:,} steps hear {estimate.hours_heard(args):,.1f} hours of audio: "
        f"{sum(work.values()) * frames * args.max_steps / 1e18:,.2f} EFLOP"
    )
    for told in told_idle(args):
        console.print(f"warning: {told}", soft_wrap=True)
    return 0
