"""What is evaluated: anything that turns tokens into NLLs, above all a Moshi model."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Protocol

import torch
from moshi.models.lm import LMModel

from ttt_moshi.evaluation.scoring.chunked import score_in_chunks
from ttt_moshi.evaluation.scoring.quiet import undisturbed
from ttt_moshi.evaluation.scoring.sampled_text import score_with_sampled_text
from ttt_moshi.evaluation.scoring.score import Scores, score
from ttt_moshi.moshi import TTTMoshi, ablate


class Scorer(Protocol):
    """The whole interface that tasks see of a model."""

    identity: str  # equal only for scorers that give equal scores
    dep_q: int  # audio codebooks that are predicted
    window: int  # attention context in frames
    device: torch.device  # where processes exchange results

    def score(self, codes: torch.Tensor, frames: torch.Tensor) -> Scores:
        """codes int64 [B, channels, T] and true lengths int64 [B] -> nll [B, 1 + dep_q, T]."""


@dataclass(frozen=True)
class ScoringOptions:
    """How a model is run; part of its identity, because each of these changes scores."""

    chunk_frames: int = 0
    """score in chunks of so many frames with carried state; 0 reads each recording in one pass"""
    inner_lr: float | None = None
    """factor on the inner learning rate; 0 switches the memory's writes off (control)"""
    gate: float | None = None
    """factor on the TTT gates; 0 is the model without its TTT layers (control)"""
    reset_every: int | None = None
    """frames after which the TTT memory starts anew (control)"""
    sampled_texts: int = 0
    """texts drawn per recording in the text mode `sampled`; 1 takes the likeliest token instead of drawing"""
    seed: int = 0
    """seed of the drawn texts"""


class ModelScorer:
    """An official `LMModel`, TTT layers or not, as a `Scorer`. `state_id` names its weights."""

    def __init__(self, model: LMModel, state_id: str, options: ScoringOptions | None = None):
        self.model = model
        self.options = options or ScoringOptions()
        self.dep_q, self.window = model.dep_q, model.context or 0
        self.device = model.device
        dtype = str(model.dtype).removeprefix("torch.")
        facts = {"state": state_id, "dtype": dtype, "window": self.window, **asdict(self.options)}
        self.identity = json.dumps(facts, sort_keys=True)

    def score(self, codes: torch.Tensor, frames: torch.Tensor) -> Scores:
        codes, frames = codes.to(self.model.device), frames.to(self.model.device)
        with undisturbed(self.model), self._ablated():
            if self.options.sampled_texts:
                return score_with_sampled_text(self.model, codes, frames, self.options.sampled_texts, self.options.seed)
            if 0 < self.options.chunk_frames < codes.shape[-1]:
                return score_in_chunks(self.model, codes, frames, self.options.chunk_frames)
            return score(self.model, codes, frames)

    @contextmanager
    def _ablated(self) -> Iterator[None]:
        changes = {
            name: getattr(self.options, name)
            for name in ("inner_lr", "gate", "reset_every")
            if getattr(self.options, name) is not None
        }
        if not changes:
            yield
            return
        assert isinstance(self.model, TTTMoshi)
        with ablate(self.model, **changes):
            yield
