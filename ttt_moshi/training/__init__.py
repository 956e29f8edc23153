"""The training loop and everything that it must be able to continue."""

from ttt_moshi.training.run import Outcome, RunEnded, run

__all__ = ["Outcome", "RunEnded", "run"]
