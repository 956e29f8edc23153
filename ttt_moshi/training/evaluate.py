"""Evaluation in the middle of training, which must not notice it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch.distributed.fsdp import FSDPModule

from ttt_moshi.config import ConfigError, TrainArgs
from ttt_moshi.data import Batch, EvalSet
from ttt_moshi.evaluation import evaluate_perplexity
from ttt_moshi.evaluation.hook import check_paper_metrics, paper_metrics
from ttt_moshi.evaluation.tasks.perplexity import component_names
from ttt_moshi.training.assemble import Parts
from ttt_moshi.training.distributed import World


def check_evaluation(args: TrainArgs, dep_q: int) -> None:
    """Refuses, before the first step, benchmarks that could not run hours later, and a metric that will never be known.
    The evaluation data is checked where all recordings are.

    Raises:
        EvaluationError: a benchmark without its data.
        ConfigError: `checkpoint.keep_metric` names what is not measured.
    """
    if args.paper_metrics.enable:
        check_paper_metrics(args.paper_metrics)
    measured = ["loss", *(f"eval.{name}" for name in component_names(dep_q) if args.do_eval)]
    if args.checkpoint.keep_best and args.checkpoint.keep_metric not in measured:
        raise ConfigError(
            f"`checkpoint.keep_metric`: this run does not measure {args.checkpoint.keep_metric!r}; there "
            f"{'are' if args.do_eval else 'is (more with do_eval)'} {', '.join(measured)}"
        )


def due(args: TrainArgs, step: int) -> tuple[bool, bool]:
    """Whether perplexity, and whether benchmarks, are to be measured after `step`."""
    last, benchmarks = step == args.max_steps, args.paper_metrics
    return (
        args.do_eval and (last or bool(args.eval_freq and step % args.eval_freq == 0)),
        benchmarks.enable and (last or bool(benchmarks.freq and step % benchmarks.freq == 0)),
    )


def evaluate(
    parts: Parts, args: TrainArgs, world: World, step: int, codes_dir: Path, should_stop: Callable[[], bool]
) -> dict[str, Any]:
    """What is to be measured after `step`: perplexity, benchmarks, or nothing. Called on all ranks.

    Args:
        codes_dir: where the benchmarks' codes are kept.
        should_stop: asked between batches.

    Raises:
        EvaluationStopped: on all ranks, when one was asked to stop.
        UserError: a file that cannot be read any more, or predictions that are not finite.
    """
    perplexity, benchmarks = due(args, step)
    found: dict[str, Any] = {}
    try:
        if perplexity:
            found |= _perplexity(parts, args, world, should_stop)
        if benchmarks:
            assert parts.codec is not None
            found["paper_metrics"] = paper_metrics(
                parts.model, parts.codec, args.paper_metrics, codes_dir, world.rank, world.size, should_stop
            )
    finally:
        # The root unit stays whole after a forward, in expectation of a backward that never comes; the optimizer and
        # the checkpoint know its shards only.
        if perplexity or benchmarks:
            assert isinstance(parts.model, FSDPModule)
            parts.model.reshard()
    return found


def _perplexity(parts: Parts, args: TrainArgs, world: World, should_stop: Callable[[], bool]) -> dict[str, Any]:
    """NLL in nats and perplexity of every component over the whole evaluation set."""
    assert parts.eval_set is not None
    clips = _ReadTogether(parts.eval_set, world)
    result = evaluate_perplexity(parts.model, clips, args.batch_size, world.rank, world.size, should_stop=should_stop)
    return {
        "nll": {name: component.nll for name, component in result.components.items()},
        "ppl": {name: component.ppl for name, component in result.components.items()},
        "bits_per_second": result.bits_per_second,
        "clips": result.clips,
        "data_digest": result.data_digest,
    }


@dataclass
class _ReadTogether:
    """An evaluation set that fails on all ranks where a file cannot be read on one."""

    whole: EvalSet
    world: World

    def __post_init__(self) -> None:
        self.fingerprint = self.whole.fingerprint

    @property
    def clips(self) -> Sequence[Any]:
        return self.whole.clips

    def __len__(self) -> int:
        return len(self.whole)

    def batches(self, batch_size: int, rank: int, world_size: int) -> Iterator[Batch]:
        batches = self.whole.batches(batch_size, rank, world_size)
        while (batch := self.world.together(lambda: next(batches, None))) is not None:
            yield batch
