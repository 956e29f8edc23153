"""What a configuration needs on one device: bytes and arithmetic. An estimate: nothing is run.

Tensors are counted on a model without memory, so the first part is exact. What the forward and backward pass need on
top follows from sizes; one figure of it was measured (`make bench-ttt`). Seconds would need a machine, and are not
estimated.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from moshi.models.loaders import CheckpointInfo

from ttt_moshi.config import TrainArgs, clip_stages
from ttt_moshi.frames import FRAME_RATE, frames_to_seconds
from ttt_moshi.moshi import TTTMoshi, base_with_window, build_model, count_tensors, set_context
from ttt_moshi.moshi.remade import base_to_train
from ttt_moshi.ttt.delta import CHUNK

BF16, FP32 = 2, 4
MOMENTS = 2
KEPT_PER_FRAME = {"mlp": 0.197e6, "linear": 0.082e6, "delta": 0.230e6}
"""bytes that the scan of an inner network of 32 heads of 128 and 16 frames a mini-batch keeps for its backward pass"""
MEASURED = (16, 4096)
"""frames a mini-batch and width of those figures"""
FORWARDS = 4
"""in training, in units of one: forward, again for checkpointed activations, and backward, which is worth two"""
INNER_WORK = {"mlp": (56, 20), "linear": (6, 4), "delta": (10, 8)}
"""of a frame and head forward, products with the inner weights in units of head_dim^2, and with the other frames of its
mini-batch (delta: its chunk) in units of their number times head_dim"""
KEPT_WITHOUT_CHECKPOINTING = 16
"""what a layer keeps without activation checkpointing, in units of its input; a guess"""


@dataclass(frozen=True)
class Row:
    """One line of the estimate.

    Args:
        size: bytes.
        source: where the number comes from.
    """

    size: float
    source: str


def meta_model(args: TrainArgs, info: CheckpointInfo | None = None) -> TTTMoshi:
    """The configured model without memory.

    Args:
        info: the base model; None takes the configured one where it is local, and Moshi 7B for one on the hub.

    Raises:
        UserError: the configuration does not fit the base model, or a local file is missing.
    """
    paths = args.moshi_paths
    local = paths.config_path is not None or (paths.hf_repo_id is not None and Path(paths.hf_repo_id).is_dir())
    # Without a configuration of its own, this is Moshi 7B.
    info = info or (base_to_train(paths, args.data) if local else CheckpointInfo(Path(), Path(), Path()))
    model = build_model(
        info,
        args.ttt,
        args.lora,
        full_finetuning=args.full_finetuning,
        dtype=getattr(torch, args.param_dtype),
        device="meta",
        load_weights=False,
    )
    if args.train.context_frames is not None:
        set_context(model, args.train.context_frames)
    return model


def frames_per_step(args: TrainArgs) -> int:
    """Of the last stage, on one process."""
    return round(_clip_frames(args) * args.train.backprop_clips * args.batch_size * args.num_microbatches)


def held(args: TrainArgs, model: TTTMoshi) -> dict[str, Row]:
    """Bytes that are there from step to step, counted tensor by tensor."""
    counts = count_tensors(model)
    trained = counts.total_trainable.elements
    frozen = sum(p.numel() * p.element_size() for p in model.parameters() if not p.requires_grad)
    elements = counts.total.elements - trained
    rows = {
        "frozen weights": Row(frozen, f"{elements:,} counted, {args.param_dtype}"),
        "trained weights": Row(FP32 * trained, f"{trained:,} counted, float32"),
        "their gradients": Row(FP32 * trained, "the same, float32"),
        "moments of AdamW": Row(MOMENTS * FP32 * trained, "twice the same, float32"),
    }
    if args.train.stateful:
        count = args.num_microbatches * args.batch_size
        stream = model.start_stream(1, dtype=getattr(torch, args.param_dtype)).state_dict()
        carried = count * sum(tensor.numel() * tensor.element_size() for tensor in stream.values())
        about = f"{count} rows, counted; {model.context:,} frames of attention"
        rows["carried states"] = Row(carried, about)
        if (window := args.train.distill.context_frames) is not None:
            with base_with_window(model, window):
                stream = model.start_stream(1, dtype=getattr(torch, args.param_dtype)).state_dict()
            carried = count * sum(tensor.numel() * tensor.element_size() for tensor in stream.values())
            rows["carried states of the teacher"] = Row(carried, f"{window:,} frames of attention")
    return rows


def working(args: TrainArgs, model: TTTMoshi) -> dict[str, Row]:
    """Bytes that forward and backward pass need on top, in one micro-batch; follows from sizes."""
    width = getattr(torch, args.param_dtype).itemsize
    frames = args.batch_size * args.train.backprop_clips * _clip_frames(args)
    layers = len(model.layers)
    rows = {}
    if args.gradient_checkpointing:
        about = f"{frames:,.0f} frames; activations are made again"
        rows["inputs of all layers"] = Row(width * model.dim * layers * frames, about)
    else:
        about = f"{frames:,.0f} frames, about {KEPT_WITHOUT_CHECKPOINTING} times a layer's input (a guess)"
        size = KEPT_WITHOUT_CHECKPOINTING * width * model.dim * layers * frames
        rows["activations of all layers"] = Row(size, about)
    if model.ttt_layers:
        at_once = 1 if args.gradient_checkpointing else len(model.ttt_layers)
        rows["backward pass of TTT layers"] = Row(
            at_once * KEPT_PER_FRAME[args.ttt.inner] * model.dim / MEASURED[1] * frames,
            _ttt_source(args, model, at_once),
        )
    per_frame = model.dep_q * model.card + model.text_card
    rows["logits and their gradients"] = Row(
        (width + FP32 + FP32) * per_frame * frames,
        f"{per_frame:,} a frame, once in {args.param_dtype}, twice in float32",
    )
    if args.train.distill.context_frames is not None:
        about = "of one clip and the teacher: once in the dtype of training, three times in float32"
        rows["logits of the teacher"] = Row((width + 3 * FP32) * per_frame * frames, about)
    if model.depformer is not None:
        depth_layers = cast(Any, model.depformer.layers)
        depth = len(depth_layers) * model.dep_q * depth_layers[0].self_attn.embed_dim
        rows["inputs of the depth transformer"] = Row(width * depth * frames, f"{depth:,} values a frame")
    gathered = _gathered(model)
    rows["weights gathered to compute"] = Row(width * gathered, f"{gathered:,}: two layers, embeddings, heads")
    return rows


def total(rows: dict[str, Row]) -> float:
    """Bytes of all rows."""
    return sum(row.size for row in rows.values())


def work(args: TrainArgs, model: TTTMoshi) -> dict[str, float]:
    """Floating-point operations of a frame in training, a product and its sum being two."""
    matrices = sum(
        p.numel() for n, p in model.named_parameters() if p.ndim >= 2 and "emb" not in n and ".inner." not in n
    )
    configs = [layer.ttt.config for layer in model.layers if layer.ttt is not None]
    # Products with the inner weights and those within a mini-batch; see docs/long_memory.md.
    inner = 0
    for c in configs:
        of_weights, of_frames = INNER_WORK[c.inner]
        together = CHUNK if c.inner == "delta" else c.mini_batch_size
        inner += c.num_heads * (of_weights * c.head_dim**2 + of_frames * together * c.head_dim)
    assert model.context is not None
    parts = {
        "matrices of Moshi, LoRA and TTT projections": 2.0 * matrices,
        "attention to the window": 4.0 * model.dim * model.context * len(model.layers),
        f"inner networks of {len(configs)} TTT layers": float(inner),
    }
    forwards = FORWARDS if args.gradient_checkpointing else FORWARDS - 1
    found = {name: forwards * flop for name, flop in parts.items()}
    if (window := args.train.distill.context_frames) is not None:
        found["the teacher's forward pass"] = 2.0 * matrices + 4.0 * model.dim * window * len(model.layers)
    return found


def hours_heard(args: TrainArgs) -> float:
    """Hours of audio in all steps, if all were of the last stage."""
    return args.max_steps * frames_to_seconds(frames_per_step(args)) / 3600


def _ttt_source(args: TrainArgs, model: TTTMoshi, at_once: int) -> str:
    layers = "one layer at a time" if at_once == 1 else f"{at_once} layers at once"
    same = (args.ttt.mini_batch_size, model.dim) == MEASURED
    measured = f"{KEPT_PER_FRAME[args.ttt.inner] / 1e6} MB a frame, measured; {layers}"
    return measured if same else f"{measured} (width 4096, mini-batches of 16)"


def _gathered(model: TTTMoshi) -> int:
    """Elements that are whole besides their shard: the largest layer, the one fetched ahead, and what is no layer's."""
    sizes = [sum(p.numel() for p in layer.parameters()) for layer in model.layers]
    inside = {id(p) for layer in model.layers for p in layer.parameters()}
    if model.depformer is not None:
        inside |= {id(p) for layer in model.depformer.layers for p in layer.parameters()}
    rest = sum(p.numel() for p in model.parameters() if id(p) not in inside)
    return 2 * max(sizes) + rest


def _clip_frames(args: TrainArgs) -> float:
    """Of the last stage of the schedule."""
    return clip_stages(args.train.clip_schedule, args.duration_sec)[-1][1] * FRAME_RATE
