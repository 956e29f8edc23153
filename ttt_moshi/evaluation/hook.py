"""Benchmarks in the middle of training, which does not notice them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from moshi.models.lm import LMModel

from ttt_moshi.config import PaperMetricsArgs
from ttt_moshi.data import Codec
from ttt_moshi.evaluation.scoring.engine import BatchPolicy, Engine
from ttt_moshi.evaluation.scoring.nll_cache import NLLCache
from ttt_moshi.evaluation.scoring.ranks import Ranks
from ttt_moshi.evaluation.scoring.recordings import Recordings
from ttt_moshi.evaluation.scoring.scorer import ModelScorer
from ttt_moshi.evaluation.suite import run_suite
from ttt_moshi.evaluation.tasks.registry import Benchmarks, parse_tasks


def paper_metrics(
    model: LMModel,
    codec: Codec,
    args: PaperMetricsArgs,
    codes_dir: Path,
    rank: int = 0,
    world_size: int = 1,
) -> dict[str, dict[str, Any]]:
    """{task: {"status", "value", "ci95", "n"}, or {"status": "skipped", "reason"}}, on all ranks; call it on all.

    The model may be sharded and in training: mode, random generators, streaming state and gradients stay as they are.
    Scores live in memory, since the weights are different the next time; codes are kept in `codes_dir`.
    """
    assert args.data_root is not None
    recordings = Recordings(codec, codes_dir)
    scorer = ModelScorer(model, "in training")
    policy = BatchPolicy(max_frames=args.max_frames)
    engine = Engine(scorer, recordings, NLLCache(None, scorer.identity), policy, ranks=Ranks(rank, world_size))
    benchmarks = Benchmarks(Path(args.data_root), recordings.frames, args.split, args.max_items)
    found = run_suite(parse_tasks(args.tasks), benchmarks, engine)
    kept = ("status", "value", "ci95", "n", "reason")
    return {name: {key: task[key] for key in kept if key in task} for name, task in found.tasks.items()}
