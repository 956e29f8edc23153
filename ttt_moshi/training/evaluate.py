"""Evaluation in the middle of training, which must not notice it."""

from __future__ import annotations

from typing import Any

from torch.distributed.fsdp import FSDPModule

from ttt_moshi.config import TrainArgs
from ttt_moshi.evaluation import evaluate_perplexity
from ttt_moshi.training.assemble import Parts
from ttt_moshi.training.distributed import World


def evaluate(parts: Parts, args: TrainArgs, world: World) -> dict[str, Any]:
    """NLL in nats and perplexity of every component over the whole evaluation set; called on all ranks."""
    assert parts.eval_set is not None
    result = evaluate_perplexity(parts.model, parts.eval_set, args.batch_size, world.rank, world.size)
    # The root unit stays whole after a forward, in expectation of a backward that never comes; the optimizer and the
    # checkpoint know its shards only.
    assert isinstance(parts.model, FSDPModule)
    parts.model.reshard()
    return {
        "nll": {name: component.nll for name, component in result.components.items()},
        "ppl": {name: component.ppl for name, component in result.components.items()},
        "bits_per_second": result.bits_per_second,
        "clips": result.clips,
        "data_digest": result.data_digest,
    }
