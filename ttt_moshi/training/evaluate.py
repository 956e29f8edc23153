"""Evaluation in the middle of training, which must not notice it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch.distributed.fsdp import FSDPModule

from ttt_moshi.config import TrainArgs
from ttt_moshi.evaluation import evaluate_perplexity
from ttt_moshi.evaluation.hook import paper_metrics
from ttt_moshi.training.assemble import Parts
from ttt_moshi.training.distributed import World


def evaluate_when_due(parts: Parts, args: TrainArgs, world: World, step: int, codes_dir: Path) -> dict[str, Any]:
    """What is to be measured after `step`: perplexity, benchmarks, or nothing. Called on all ranks.

    Args:
        codes_dir: where the benchmarks' codes are kept.
    """
    last = step == args.max_steps
    found: dict[str, Any] = {}
    if args.do_eval and (last or (args.eval_freq and step % args.eval_freq == 0)):
        found |= _perplexity(parts, args, world)
    benchmarks = args.paper_metrics
    if benchmarks.enable and (last or (benchmarks.freq and step % benchmarks.freq == 0)):
        assert parts.codec is not None
        found["paper_metrics"] = paper_metrics(parts.model, parts.codec, benchmarks, codes_dir, world.rank, world.size)
    if found:
        # The root unit stays whole after a forward, in expectation of a backward that never comes; the optimizer and
        # the checkpoint know its shards only.
        assert isinstance(parts.model, FSDPModule)
        parts.model.reshard()
    return found


def _perplexity(parts: Parts, args: TrainArgs, world: World) -> dict[str, Any]:
    """NLL in nats and perplexity of every component over the whole evaluation set."""
    assert parts.eval_set is not None
    result = evaluate_perplexity(parts.model, parts.eval_set, args.batch_size, world.rank, world.size)
    return {
        "nll": {name: component.nll for name, component in result.components.items()},
        "ppl": {name: component.ppl for name, component in result.components.items()},
        "bits_per_second": result.bits_per_second,
        "clips": result.clips,
        "data_digest": result.data_digest,
    }
