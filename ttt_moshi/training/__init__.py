"""The training loop and everything that it must be able to continue."""

from ttt_moshi.training.run import NonFiniteLossError, Outcome, run

__all__ = ["NonFiniteLossError", "Outcome", "run"]
