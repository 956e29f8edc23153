"""What is evaluated: anything that turns tokens into NLLs, above all a Moshi model."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from typing import Any, Protocol

import torch
from moshi.models.lm import LMModel

from ttt_moshi.evaluation.errors import EvaluationError
from ttt_moshi.evaluation.results import versions
from ttt_moshi.evaluation.scoring.chunked import score_in_chunks, score_with_swapped_memory
from ttt_moshi.evaluation.scoring.quiet import undisturbed
from ttt_moshi.evaluation.scoring.sampled_text import score_with_sampled_text
from ttt_moshi.evaluation.scoring.score import Scores, score
from ttt_moshi.moshi import TTTMoshi, ablate, own_codebooks
from ttt_moshi.moshi.ablation import without_adapters
from ttt_moshi.moshi.sink import attention_sink, attention_window


class Scorer(Protocol):
    """The whole interface that tasks see of a model."""

    identity: str  # equal only for scorers that give equal scores
    dep_q: int  # audio codebooks that are predicted
    window: int  # attention context in frames
    device: torch.device  # where processes exchange results
    text_padding: tuple[int, int]  # ids of PAD and EPAD
    swaps: bool  # whether `score` needs another recording for each row
    layers: int  # of the temporal transformer
    delay: int  # frames by which the most delayed codebook lags
    has_memory: bool  # TTT layers

    def varied(self, **changes: Any) -> Scorer:
        """The same model under other `ScoringOptions`. Raises `EvaluationError` for what it cannot do."""

    def score(
        self,
        codes: torch.Tensor,
        frames: torch.Tensor,
        prefix_lengths: torch.Tensor | None = None,
        others: torch.Tensor | None = None,
    ) -> Scores:
        """codes int64 [B, channels, T] and true lengths int64 [B] -> nll [B, 1 + dep_q, T].

        Args:
            prefix_lengths: int64 [B], leading frames that are given and not predicted; None where no row has any.
            others: int64 [B, channels, T], another recording for each row, where `swaps`.
        """


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
    swap_every: int | None = None
    """frames after which the TTT memory becomes that of another recording (control)"""
    sampled_texts: int = 0
    """texts drawn per recording in the text mode `sampled`; 1 takes the likeliest token instead of drawing"""
    seed: int = 0
    """seed of the drawn texts"""
    sink: int = 0
    """first positions of a recording that stay in the attention window (control)"""
    window: int | None = None
    """attention window in frames, instead of the model's own (control)"""
    base: bool = False
    """the base model: gates closed and LoRA without effect"""


class ModelScorer:
    """An official `LMModel`, TTT layers or not, as a `Scorer`. `state_id` names its weights.

    Args:
        base_inside: whether nothing but LoRA and TTT layers was trained, so that the base model is in there.

    Raises:
        EvaluationError: options about a memory that the model does not have, or about a base that is not there.
    """

    def __init__(self, model: LMModel, state_id: str, options: ScoringOptions | None = None, base_inside: bool = True):
        self.model, self._state_id, self._base_inside = model, state_id, base_inside
        self.options = options or ScoringOptions()
        self.dep_q, self.window = own_codebooks(model), self.options.window or model.context or 0
        self.layers, self.delay = len(model.transformer.layers), max(model.delays)
        self.has_memory = isinstance(model, TTTMoshi) and bool(model.ttt_layers)
        self.device = model.device
        self.text_padding = (model.text_padding_token_id, model.end_of_text_padding_id)
        self.swaps = self.options.swap_every is not None
        self._ablations = {
            name: value
            for name in ("inner_lr", "gate", "reset_every")
            if (value := getattr(self.options, name)) is not None
        }
        if (self._ablations or self.swaps) and not self.has_memory:
            raise EvaluationError("the model has no TTT layers, so `--ttt` can only be `on`")
        if self.options.sink >= self.window > 0:
            raise EvaluationError(f"`--sink {self.options.sink}` does not fit into a window of {self.window} frames")
        if self.options.base and not base_inside:
            raise EvaluationError("all weights were trained, so the base model is not in this checkpoint")
        dtype = str(model.dtype).removeprefix("torch.")
        facts = {**asdict(self.options), "state": state_id, "dtype": dtype, "window": self.window}
        facts |= {"device": model.device.type, "versions": versions()}
        self.identity = json.dumps(facts, sort_keys=True)

    def varied(self, **changes: Any) -> ModelScorer:
        """The same model under other options."""
        return ModelScorer(self.model, self._state_id, replace(self.options, **changes), self._base_inside)

    def score(
        self,
        codes: torch.Tensor,
        frames: torch.Tensor,
        prefix_lengths: torch.Tensor | None = None,
        others: torch.Tensor | None = None,
    ) -> Scores:
        options, device = self.options, self.model.device
        codes, frames = codes.to(device), frames.to(device)
        if prefix_lengths is not None:
            prefix_lengths = prefix_lengths.to(device)
            if self.swaps or options.sampled_texts:
                what = "`--ttt swapped`" if self.swaps else "`--text sampled`"
                raise EvaluationError(f"{what} cannot be applied to recordings that begin with a prefix")
        with self.as_asked():
            if options.sampled_texts:
                return score_with_sampled_text(self.model, codes, frames, options.sampled_texts, options.seed)
            if options.swap_every is not None:
                assert others is not None
                return score_with_swapped_memory(
                    self.model, codes, frames, others.to(device), options.swap_every, options.chunk_frames
                )
            if 0 < options.chunk_frames < codes.shape[-1]:
                return score_in_chunks(self.model, codes, frames, options.chunk_frames, prefix_lengths)
            return score(self.model, codes, frames, prefix_lengths)

    @contextmanager
    def as_asked(self) -> Iterator[None]:
        """Inside, the model is in evaluation mode and works as the options say."""
        with ExitStack() as stack:
            stack.enter_context(undisturbed(self.model))
            if self.options.base:
                stack.enter_context(without_adapters(self.model))
            if self.options.window is not None:
                stack.enter_context(attention_window(self.model, self.options.window))
            if self._ablations:
                assert isinstance(self.model, TTTMoshi)
                stack.enter_context(ablate(self.model, **self._ablations))  # type: ignore[arg-type]
            if self.options.sink:
                stack.enter_context(attention_sink(self.model, self.options.sink))
            yield
