"""`python -m benchmarks.memory.estimate CONFIG`: what a configuration for Moshi 7B needs. An estimate: nothing is run.

Tensors are counted on a model without memory. What one frame keeps for the backward pass of a TTT layer is a figure of
`make bench-ttt`. Sums of products follow from the sizes. Seconds would need a machine, and are not estimated.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from moshi.models.loaders import CheckpointInfo
from rich.console import Console
from rich.table import Table

from ttt_moshi.config import TrainArgs, clip_stages
from ttt_moshi.config_io import args_from_dict, check_config_file
from ttt_moshi.errors import UserError
from ttt_moshi.frames import FRAME_RATE, frames_to_seconds
from ttt_moshi.moshi import TTTMoshi, build_model, count_tensors, set_context

BF16, FP32 = 2, 4
MOMENTS = 2
KEPT_PER_FRAME = 0.197e6
"""bytes of a TTT layer with the inner MLP, 32 heads of 128 and 16 frames a mini-batch (`make bench-ttt`)"""
FORWARDS = 4
"""in training, in units of one: forward, again for checkpointed activations, and backward, which is worth two"""


def main(argv: list[str] | None = None) -> int:
    """Prints memory and work of one training process."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("config", type=Path)
    args = args_from_dict(check_config_file(parser.parse_args(argv).config))
    if args.ttt.inner != "mlp" or args.ttt.mini_batch_size != 16:
        raise UserError("only the inner MLP with mini-batches of 16 frames has been measured, which an estimate needs")
    model = meta_model(args)
    console = Console(width=120)
    table = Table("bytes of one process", "GB", "from", title="memory, if nothing is sharded")
    for name, (size, source) in memory(args, model).items():
        table.add_row(name, f"{size / 1e9:.2f}", source)
    console.print(table)
    frames = frames_per_step(args)
    table = Table("work", "a frame, GFLOP", "a step, TFLOP", title=f"sums of products of a step of {frames:,} frames")
    for name, flop in work(args, model).items():
        table.add_row(name, f"{flop / 1e9:.2f}", f"{flop * frames / 1e12:.0f}")
    console.print(table)
    heard = frames_to_seconds(frames)
    hours = args.max_steps * heard / 3600
    console.print(f"a step hears {heard:,.0f} s of speech; {args.max_steps:,} steps hear {hours:,.0f} h")
    return 0


def meta_model(args: TrainArgs) -> TTTMoshi:
    """Moshi 7B with the configured TTT and LoRA layers, without memory."""
    info = CheckpointInfo(Path(), Path(), Path())  # without a configuration of its own, this is Moshi 7B
    model = build_model(info, args.ttt, args.lora, device="meta", load_weights=False)
    if args.train.context_frames is not None:
        set_context(model, args.train.context_frames)
    return model


def frames_per_step(args: TrainArgs) -> int:
    """Of the last stage, on one process."""
    return round(_clip_frames(args) * args.train.backprop_clips * args.batch_size * args.num_microbatches)


def memory(args: TrainArgs, model: TTTMoshi) -> dict[str, tuple[float, str]]:
    """Bytes, and where the number comes from."""
    counts = count_tensors(model)
    trained = counts.total_trainable.elements
    frozen = counts.total.elements - trained
    rows = args.batch_size
    stream = model.start_stream(rows).state_dict()
    carried = sum(tensor.numel() * tensor.element_size() for tensor in stream.values()) * args.num_microbatches
    graph = rows * args.train.backprop_clips * _clip_frames(args)
    parts = {
        "frozen weights": (BF16 * frozen, f"{frozen:,} counted, bfloat16"),
        "trained weights": (FP32 * trained, f"{trained:,} counted, float32"),
        "their gradients": (FP32 * trained, "the same, float32"),
        "moments of AdamW": (MOMENTS * FP32 * trained, "twice the same, float32"),
        "carried states": (
            carried,
            f"{args.num_microbatches * rows} rows, counted; {model.context} frames of attention",
        ),
        "inputs of all layers": (
            BF16 * model.dim * len(model.layers) * graph,
            f"{graph:,.0f} frames with gradients between them; activations are made again",
        ),
        "backward pass of one TTT layer": (KEPT_PER_FRAME * graph, f"{KEPT_PER_FRAME / 1e6} MB a frame, measured"),
    }
    return {**parts, "sum": (sum(size for size, _ in parts.values()), "without the depth transformer's activations")}


def work(args: TrainArgs, model: TTTMoshi) -> dict[str, float]:
    """Floating-point operations of a frame in training, a product and its sum being two."""
    matrices = sum(
        p.numel() for n, p in model.named_parameters() if p.ndim >= 2 and "emb" not in n and ".inner." not in n
    )
    configs = [layer.ttt.config for layer in model.layers if layer.ttt is not None]
    # Seven products with the inner weights and those within a mini-batch; see docs/long_memory.md.
    inner = sum(c.num_heads * (56 * c.head_dim**2 + 20 * c.mini_batch_size * c.head_dim) for c in configs)
    assert model.context is not None
    parts = {
        "matrices of Moshi, LoRA and TTT projections": 2.0 * matrices,
        "attention to the window": 4.0 * model.dim * model.context * len(model.layers),
        f"inner networks of {len(configs)} TTT layers": float(inner),
    }
    parts = {name: FORWARDS * flop for name, flop in parts.items()}
    return {**parts, "sum": sum(parts.values())}


def _clip_frames(args: TrainArgs) -> float:
    """Of the last stage of the schedule."""
    return clip_stages(args.train.clip_schedule, args.duration_sec)[-1][1] * FRAME_RATE


if __name__ == "__main__":
    raise SystemExit(main())
