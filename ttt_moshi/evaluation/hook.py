"""Benchmarks in the middle of training, which does not notice them.

Before step 1 call `check_paper_metrics`; it finds what would fail hours later. An evaluation that is asked to stop
raises `EvaluationStopped` between two batches, on all ranks; nothing needs to be undone.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from moshi.models.lm import LMModel

from ttt_moshi.config import PaperMetricsArgs
from ttt_moshi.data import Codec
from ttt_moshi.evaluation.errors import EvaluationError
from ttt_moshi.evaluation.scoring.engine import BatchPolicy, Engine, ShouldStop, never
from ttt_moshi.evaluation.scoring.nll_cache import NLLCache
from ttt_moshi.evaluation.scoring.ranks import Ranks
from ttt_moshi.evaluation.scoring.recordings import Recordings
from ttt_moshi.evaluation.scoring.scorer import ModelScorer
from ttt_moshi.evaluation.suite import check_tasks, run_suite
from ttt_moshi.evaluation.tasks.registry import ON_RECORDINGS, Benchmarks, known_tasks, parse_tasks


def check_paper_metrics(args: PaperMetricsArgs) -> None:
    """Finds everything that the benchmarks will need, without a model: names, folders, tables, headers of audio.

    Raises `EvaluationError` (or another `UserError`) with every task that could not run and why.
    """
    check_tasks(_tasks(args), _benchmarks(args))


def paper_metrics(
    model: LMModel,
    codec: Codec,
    args: PaperMetricsArgs,
    codes_dir: Path,
    rank: int = 0,
    world_size: int = 1,
    should_stop: ShouldStop = never,
) -> dict[str, dict[str, Any]]:
    """{task: {"status", "value", "ci95", "n"}, or {"status": "skipped", "reason"}}, on all ranks; call it on all.

    The model may be sharded and in training: mode, random generators, streaming state and gradients stay as they are.
    Scores live in memory, since the weights are different the next time; codes are kept in `codes_dir`.

    Raises `EvaluationStopped` on all ranks when `should_stop` of one of them says so between two batches.
    """
    recordings = Recordings(codec, codes_dir)
    scorer = ModelScorer(model, "in training")
    policy = BatchPolicy(max_frames=args.max_frames)
    ranks = Ranks(rank, world_size)
    engine = Engine(scorer, recordings, NLLCache(None, scorer.identity), policy, ranks=ranks, should_stop=should_stop)
    found = run_suite(_tasks(args), _benchmarks(args), lambda name: engine)
    reported = ("status", "value", "ci95", "n", "reason")
    return {name: {key: task[key] for key in reported if key in task} for name, task in found.tasks.items()}


def _tasks(args: PaperMetricsArgs) -> list[str]:
    """The named tasks; `all` is every one that can be measured in training.

    Raises `EvaluationError` for tasks on recordings, which `do_eval` measures, for `inner`, which needs whole weights
    where training has shards of them, and for those that need a model that talks.
    """
    names = parse_tasks(args.tasks)
    talking = [name for name, spec in known_tasks().items() if spec.talks]
    elsewhere = (*ON_RECORDINGS, "inner", *talking)
    if args.tasks.strip() == "all":
        return [name for name in names if name not in elsewhere]
    if named := [name for name in names if name in elsewhere]:
        raise EvaluationError(
            f"`paper_metrics.tasks`: {', '.join(named)} cannot be measured in training; `do_eval` measures perplexity, "
            "and `ttt-moshi eval` everything else from a checkpoint"
        )
    return names


def _benchmarks(args: PaperMetricsArgs) -> Benchmarks:
    if args.data_root is None:
        raise EvaluationError("`paper_metrics.data_root` names no folder of benchmarks")
    return Benchmarks(Path(args.data_root), args.split, args.max_items)
