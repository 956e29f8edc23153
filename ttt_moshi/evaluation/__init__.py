"""Evaluation of Moshi models: one per-token likelihood, many published numbers, each with its uncertainty."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
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

_MODULES = {
    "errors": ("EvaluationError", "EvaluationStopped"),
    "results": ("Results", "read_results", "write_results"),
    "scoring.quiet": ("undisturbed",),
    "scoring.score": ("Scores", "score"),
    "tasks.perplexity": ("Perplexity", "evaluate_perplexity"),
}


def __getattr__(name: str) -> Any:
    """Imports a public name when it is first used: `--help` and the reports need no PyTorch."""
    for module, names in _MODULES.items():
        if name in names:
            return getattr(importlib.import_module(f"{__name__}.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
