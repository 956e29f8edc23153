"""What it costs that frozen weights of the depth transformer see their rows scattered in memory.

    python benchmarks/moshi/frozen_depth.py [--frames 50] [--device cpu]

One layer of Moshi 7B's depth transformer (width 1024, eight codebooks, weights of its own for each) with frozen random
weights, in evaluation mode: as the official class runs it, and after `keep_rows_together`, as the models of this
package do. Both are timed in turn; shown is the best of three.
"""

from __future__ import annotations

import argparse
import json
import time

import torch
from moshi.models.loaders import _lm_kwargs
from moshi.modules.transformer import StreamingTransformer
from moshi.utils.compile import no_compile
from torch import Tensor

from ttt_moshi.moshi.layer import keep_rows_together

CODEBOOKS = _lm_kwargs["dep_q"]
WIDTH = _lm_kwargs["depformer_dim"]


def depth_transformer(device: str, dtype: torch.dtype) -> StreamingTransformer:
    """One layer with the weights of seed 0."""
    torch.manual_seed(0)
    layer = StreamingTransformer(
        d_model=WIDTH,
        num_heads=_lm_kwargs["depformer_num_heads"],
        num_layers=1,
        dim_feedforward=_lm_kwargs["depformer_dim_feedforward"],
        causal=True,
        context=CODEBOOKS,
        positional_embedding="none",
        norm="rms_norm_f32",
        gating="silu",
        weights_per_step=CODEBOOKS,
        device=device,
        dtype=dtype,
    )
    return layer.eval().requires_grad_(False)


def seconds(model: StreamingTransformer, x: Tensor) -> float:
    """Wall clock of one pass."""
    began = time.perf_counter()
    model(x)
    if x.is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - began


def main() -> None:
    """Prints one line of JSON for each type."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, default=50, help="rows of every product")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    options = parser.parse_args()
    for dtype in (torch.float32, torch.bfloat16):
        official, ours = (depth_transformer(options.device, dtype) for _ in range(2))
        keep_rows_together(ours.layers)
        x = torch.randn(options.frames, CODEBOOKS, WIDTH, device=options.device).to(dtype)
        with torch.no_grad(), no_compile():
            difference = (official(x) - ours(x)).abs().max().item()
            times = [[seconds(model, x) for model in (official, ours)] for _ in range(3)]
        slow, fast = (min(column) for column in zip(*times, strict=True))
        print(json.dumps({
            "dtype": str(dtype), "frames": options.frames, "device": options.device, "threads": torch.get_num_threads(),
            "torch": torch.__version__, "official_ms": round(1e3 * slow, 1), "ours_ms": round(1e3 * fast, 1),
            "times_faster": round(slow / fast, 1), "largest_difference": difference,
        }))  # fmt: skip


if __name__ == "__main__":
    main()
