"""From the vector of NLLs to a score: which codebooks count, over which frames, as a mean or a sum.

The choice decides results (which of two models is better can flip with it), so it is always named and several are
reported side by side. All are weighted means over the tokens that exist:

    mean = sum_t sum_k w_k nll[k, t] / sum_t sum_k w_k          sum = sum_t sum_k w_k nll[k, t] / sum_k w_k
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ttt_moshi.evaluation.errors import EvaluationError

REDUCTIONS = ("moshi100", "semantic", "uniform", "acoustic", "text", "text_audio")
AUDIO_REDUCTIONS = ("moshi100", "semantic", "uniform", "acoustic")
NORMS = ("mean", "sum")


def channel_weights(name: str, channels: int) -> np.ndarray:
    """Weights [channels] of text, semantic and acoustic tokens; `channels` is 1 + dep_q.

    `moshi100` is 100 : 1 between the semantic and each acoustic codebook, the proportion that Moshi was trained with;
    `text_audio` adds the text at the semantic codebook's weight.
    """
    text, semantic, acoustic = {
        "moshi100": (0.0, 100.0, 1.0),
        "semantic": (0.0, 1.0, 0.0),
        "uniform": (0.0, 1.0, 1.0),
        "acoustic": (0.0, 0.0, 1.0),
        "text": (1.0, 0.0, 0.0),
        "text_audio": (100.0, 100.0, 1.0),
    }[name]
    return np.array([text, semantic] + [acoustic] * (channels - 2))


@dataclass(frozen=True)
class ChannelSums:
    """NLL of a sequence added up per channel: all that any reduction of it needs."""

    nll: np.ndarray  # float64 [1 + dep_q], nats
    tokens: np.ndarray  # float64 [1 + dep_q]

    def __sub__(self, other: ChannelSums) -> ChannelSums:
        """The difference of the NLLs of two readings of the same tokens."""
        return ChannelSums(self.nll - other.nll, self.tokens)

    def reduce(self, reduction: str, norm: str = "mean") -> float:
        """One number in nats. Raises `EvaluationError` when no token of that kind is there."""
        weights = channel_weights(reduction, len(self.nll))
        weight = float((self.tokens * weights).sum())
        if weight == 0.0:
            raise EvaluationError(f"no token to reduce by `{reduction}`: the frames have none of that kind")
        total = float((self.nll * weights).sum())
        return total / (weight if norm == "mean" else float(weights.sum()))


def channel_sums(nll: np.ndarray, start: int = 0, stop: int | None = None) -> ChannelSums:
    """Sums over the frames [start, stop) of nll [1 + dep_q, T], in which NaN means no token."""
    part = nll[:, start:stop]
    present = ~np.isnan(part)
    sums = np.where(present, part, 0.0).sum(axis=1, dtype=np.float64)
    return ChannelSums(sums, present.sum(axis=1).astype(np.float64))


def channel_group(name: str, channels: int) -> slice:
    """Channels of a group shown in curves: text, semantic or acoustic."""
    return {"text": slice(0, 1), "semantic": slice(1, 2), "acoustic": slice(2, channels)}[name]
