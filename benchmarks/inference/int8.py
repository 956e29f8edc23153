"""What int8 weights cost and save in talking:

    python -m benchmarks.inference.int8

Of the tiny model, trained for two steps: negative log-likelihood of its evaluation set and time of a frame. Of a larger
one with random weights (temporal transformer of --dim and --layers, in bfloat16): size of the weights and time of a
frame. Needs the extra `int8`.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.inference.soak import make_checkpoint
from benchmarks.ttt.machine import facts, write
from ttt_moshi.cli.checkpoint_facts import find_one
from ttt_moshi.config import LoraArgs, ModelPaths, TTTArgs
from ttt_moshi.data import Codec, Corpus, EvalSet
from ttt_moshi.evaluation.tasks.perplexity import evaluate_perplexity
from ttt_moshi.inference.benchmark import measure
from ttt_moshi.inference.speaker import Speaker, open_checkpoint
from ttt_moshi.moshi import build_model, resolve_model
from ttt_moshi.moshi.int8 import quantise_base


def main(argv: list[str] | None = None) -> int:
    """Runs it and prints the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dim", type=int, default=1024, help="of the larger model; default: %(default)s")
    parser.add_argument("--layers", type=int, default=8, help="of the larger model; default: %(default)s")
    parser.add_argument("--ticks", type=int, default=50, help="frames that are timed; default: %(default)s")
    parser.add_argument("--device", default="cpu", help="default: %(default)s")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    options = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        run = make_checkpoint(Path(folder))
        tiny = open_checkpoint(find_one(run), options.device, torch.bfloat16)
        found: dict[str, Any] = {"tiny": {"bfloat16": figures(tiny, options.ticks) | nll(tiny, Path(folder))}}
        quantise_base(tiny.model)
        found["tiny"]["int8"] = figures(tiny, options.ticks) | nll(tiny, Path(folder))
        large = grown(tiny, Path(folder), options.dim, options.layers, options.device)
    found["larger"] = {"bfloat16": figures(large, options.ticks)}
    quantise_base(large.model)
    found["larger"]["int8"] = figures(large, options.ticks)
    found["machine"] = facts()
    print(json.dumps(found, indent=2))
    if options.json:
        write(options.json, found)
    return 0


def figures(speaker: Speaker, ticks: int) -> dict[str, float]:
    """Megabytes of all weights, and milliseconds of a frame of one conversation."""
    load = measure(speaker, 1, ticks)
    megabytes = sum(_bytes(parameter) for parameter in speaker.model.parameters()) / 1e6
    return {"weights_mb": round(megabytes, 2), "p50_ms": round(1e3 * load.p50, 1), "p95_ms": round(1e3 * load.p95, 1)}


def _bytes(tensor: torch.Tensor) -> int:
    """Of the storage, also where a tensor is made of others."""
    if hasattr(tensor, "__tensor_flatten__"):
        names, _ = tensor.__tensor_flatten__()
        return sum(_bytes(getattr(tensor, name)) for name in names)
    return tensor.numel() * tensor.element_size()


def nll(speaker: Speaker, folder: Path) -> dict[str, float]:
    """Nats a token of the evaluation set, text and audio."""
    (data,) = folder.glob("material/eval/data.jsonl")
    corpus = Corpus(str(data), Codec(speaker.mimi), speaker.tokenizer, 8.0, folder / "codes")
    found = evaluate_perplexity(speaker.model, EvalSet(corpus)).components
    return {f"nll_{name}": round(found[name].nll, 5) for name in ("text", "audio")}


def grown(tiny: Speaker, folder: Path, dim: int, layers: int, device: str) -> Speaker:
    """The tiny model with another temporal transformer, of random weights."""
    info = resolve_model(ModelPaths(hf_repo_id=str(folder / "material" / "base")))
    assert info.lm_config is not None
    info.lm_config |= {"dim": dim, "num_layers": layers, "num_heads": dim // 64}
    ttt = TTTArgs(enable=True, layers="middle", mini_batch_size=16)
    model = build_model(info, ttt, LoraArgs(enable=False), device=device, load_weights=False).eval()
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    return replace(tiny, model=model)


if __name__ == "__main__":
    raise SystemExit(main())
