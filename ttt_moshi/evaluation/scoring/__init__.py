"""One likelihood for every task: scores per token, on whole recordings, in batches, over ranks, and cached."""

from ttt_moshi.evaluation.scoring.clips import ClipTokens
from ttt_moshi.evaluation.scoring.engine import BatchPolicy, Engine, ShouldStop
from ttt_moshi.evaluation.scoring.nll_cache import NLLCache
from ttt_moshi.evaluation.scoring.quiet import undisturbed
from ttt_moshi.evaluation.scoring.ranks import Ranks
from ttt_moshi.evaluation.scoring.recordings import Recordings
from ttt_moshi.evaluation.scoring.score import Scores, score
from ttt_moshi.evaluation.scoring.scorer import ModelScorer, Scorer, ScoringOptions

__all__ = [
    "BatchPolicy",
    "ClipTokens",
    "Engine",
    "ModelScorer",
    "NLLCache",
    "Ranks",
    "Recordings",
    "Scorer",
    "Scores",
    "ScoringOptions",
    "ShouldStop",
    "score",
    "undisturbed",
]
