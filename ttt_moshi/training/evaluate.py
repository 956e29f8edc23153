"""Evaluation in the middle of training, which must not notice it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from moshi.utils.compile import no_compile, no_cuda_graph
from torch.distributed.fsdp import FSDPModule

from ttt_moshi.config import ConfigError, TrainArgs
from ttt_moshi.data import Batch, EvalSet
from ttt_moshi.errors import UserError
from ttt_moshi.evaluation import evaluate_perplexity
from ttt_moshi.evaluation.gates import RANKED, Gates, pass_gates, prompts
from ttt_moshi.evaluation.hook import check_paper_metrics, paper_metrics
from ttt_moshi.evaluation.scoring.quiet import undisturbed
from ttt_moshi.evaluation.scoring.ranks import Ranks
from ttt_moshi.evaluation.tasks.perplexity import component_names
from ttt_moshi.inference.driver import Driver
from ttt_moshi.inference.sampling import Sampling
from ttt_moshi.inference.speaker import Speaker
from ttt_moshi.moshi import resolve_model, text_tokenizer
from ttt_moshi.moshi.parallel import whole
from ttt_moshi.training.assemble import Parts
from ttt_moshi.training.distributed import World
from ttt_moshi.training.run_dir import RunDir


def check_evaluation(args: TrainArgs, dep_q: int) -> None:
    """Refuses, before the first step, benchmarks that could not run hours later, and a metric that will never be known.
    The evaluation data is checked where all recordings are.

    Raises:
        EvaluationError: a benchmark without its data.
        ConfigError: `checkpoint.keep_metric` names what is not measured.
    """
    if args.paper_metrics.enable:
        check_paper_metrics(args.paper_metrics)
    if args.eval.gates:
        prompts(args.data.eval_data, args.eval.gates)
        resolve_model(args.moshi_paths, "talk")
    measured = ["loss", *(f"eval.{name}" for name in component_names(dep_q) if args.do_eval)]
    measured += [f"gates.{name}" for name in RANKED if args.eval.gates]
    if args.checkpoint.keep_best and args.checkpoint.keep_metric not in measured:
        raise ConfigError(
            f"`checkpoint.keep_metric`: this run does not measure {args.checkpoint.keep_metric!r}; there "
            f"{'are' if len(measured) > 1 else 'is (more with do_eval or eval.gates)'} {', '.join(measured)}"
        )


def due(args: TrainArgs, step: int) -> tuple[bool, bool, bool]:
    """Whether perplexity, whether benchmarks, and whether gates are to be measured after `step`."""
    last, benchmarks = step == args.max_steps, args.paper_metrics
    now = last or bool(args.eval_freq and step % args.eval_freq == 0)
    return (
        args.do_eval and now,
        benchmarks.enable and (last or bool(benchmarks.freq and step % benchmarks.freq == 0)),
        args.eval.gates > 0 and now,
    )


@dataclass(frozen=True)
class Measured:
    """What was measured after a step.

    Args:
        record: for the metrics; parts that could not be measured have a "reason".
        said: float32 [samples], what the model says in its first conversation, where some were held.
    """

    record: dict[str, Any]
    said: np.ndarray | None = None

    @property
    def failures(self) -> list[str]:
        """What could not be measured, and why."""
        parts = {**self.record.get("paper_metrics", {}), "gates": self.record.get("gates", {})}
        return [f"{name}: {part['reason']}" for name, part in parts.items() if "reason" in part]


def evaluate(
    parts: Parts, args: TrainArgs, world: World, step: int, run_dir: RunDir, should_stop: Callable[[], bool]
) -> Measured:
    """What is to be measured after `step`: perplexity, benchmarks, gates, or nothing. Called on all ranks.

    Args:
        run_dir: where the benchmarks' codes and the conversations are kept.
        should_stop: asked between batches and frames.

    Raises:
        EvaluationStopped: on all ranks, when one was asked to stop.
        UserError: a file that cannot be read any more, or predictions that are not finite.
    """
    perplexity, benchmarks, gates = due(args, step)
    found: dict[str, Any] = {}
    said = None
    try:
        if perplexity:
            found |= _perplexity(parts, args, world, should_stop)
        if benchmarks:
            assert parts.codec is not None
            found["paper_metrics"] = paper_metrics(
                parts.model,
                parts.codec,
                args.paper_metrics,
                run_dir.benchmark_codes,
                world.rank,
                world.size,
                should_stop,
            )
        if gates:
            try:
                held = _gates(parts, args, world, run_dir.said(step), should_stop)
                found["gates"], said = held.record, held.sample
            except UserError as reason:
                found["gates"] = {"reason": str(reason)}
    finally:
        # The root unit stays whole after a forward, in expectation of a backward that never comes; the optimizer and
        # the checkpoint know its shards only.
        if perplexity or benchmarks or gates:
            assert isinstance(parts.model, FSDPModule)
            parts.model.reshard()
    return Measured(found, said)


def _gates(parts: Parts, args: TrainArgs, world: World, folder: Path, should_stop: Callable[[], bool]) -> Gates:
    """The gates of the model as it is; the same draws each time."""
    model, info, ranks = parts.model, parts.info, Ranks(world.rank, world.size)
    assert parts.codec is not None
    dialogues = ranks.together(lambda: prompts(args.data.eval_data, args.eval.gates))
    padding = (model.text_padding_token_id, model.end_of_text_padding_id)
    # What moshi compiles and captures belongs to parameters that lie elsewhere the next time.
    with parts.codec.lend() as mimi, undisturbed(model, mimi), no_compile(), no_cuda_graph(), whole(model):
        speaker = Speaker("in training", model, mimi, text_tokenizer(info), info.model_type, info.lm_gen_config)
        driver = Driver(speaker, Sampling.of(info.lm_gen_config), seed=args.seed)
        return pass_gates(driver, dialogues, args.eval.gates_sec, folder, ranks, padding, should_stop)


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
