"""Evaluation of Moshi models: one per-token likelihood, many published numbers, each with its uncertainty."""

from ttt_moshi.evaluation.errors import EvaluationError, EvaluationStopped
from ttt_moshi.evaluation.results import Results, read_results, write_results
from ttt_moshi.evaluation.scoring.quiet import undisturbed
from ttt_moshi.evaluation.scoring.score import Scores, score
from ttt_moshi.evaluation.tasks.perplexity import Perplexity, evaluate_perplexity

__all__ = [
    "EvaluationError",
    "EvaluationStopped",
    "Perplexity",
    "Results",
    "Scores",
    "evaluate_perplexity",
    "read_results",
    "score",
    "undisturbed",
    "write_results",
]
