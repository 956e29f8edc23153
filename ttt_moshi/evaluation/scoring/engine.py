"""Scores examples: tokens, batches, cache, several processes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import numpy as np
import torch

from ttt_moshi.evaluation.errors import EvaluationStopped
from ttt_moshi.evaluation.examples import Example
from ttt_moshi.evaluation.scoring.batches import plan
from ttt_moshi.evaluation.scoring.nll_cache import NLLCache, sequence_key
from ttt_moshi.evaluation.scoring.ranks import Ranks
from ttt_moshi.evaluation.scoring.recordings import as_batch
from ttt_moshi.evaluation.scoring.scorer import Scorer

Progress = Callable[[str, int, int], None]  # what is done, frames done, frames in all
ShouldStop = Callable[[], bool]  # asked between batches; where it answers yes, the evaluation ends


def never() -> bool:
    """Nobody asks the evaluation to stop."""
    return False


class Tokens(Protocol):
    """Where an example's tokens come from; `Recordings` is one."""

    def prepare(self, examples: Sequence[Example], progress: Callable[[int, int], None], ranks: Ranks) -> None:
        """Makes `tokens` of these examples quick, on all ranks. `progress(done, total)` counts recordings."""

    def tokens(self, example: Example) -> np.ndarray:
        """int32 [channels, T]."""

    def digest(self, examples: list[Example]) -> str:
        """Identity of the data set."""


@dataclass(frozen=True)
class BatchPolicy:
    """Upper bounds of one forward pass."""

    max_frames: int = 6000
    max_rows: int = 64


class Engine:
    """Everything that a task needs in order to have its examples scored.

    With several ranks each one computes its share of the batches, all make the same number of forward passes, and all
    end with all results.
    """

    def __init__(
        self,
        scorer: Scorer,
        tokens: Tokens,
        cache: NLLCache,
        policy: BatchPolicy | None = None,
        progress: Progress | None = None,
        ranks: Ranks | None = None,
        should_stop: ShouldStop = never,
    ):
        self.scorer, self.tokens = scorer, tokens
        self._cache, self._policy = cache, policy or BatchPolicy()
        self._progress = progress or (lambda what, done, total: None)
        self._ranks = ranks or Ranks()
        self._should_stop = should_stop
        self.forward_passes = 0  # made by this process: none when everything was in the cache

    def nll(self, examples: Sequence[Example], what: str = "scoring") -> dict[str, np.ndarray]:
        """NLL float32 [1 + dep_q, T] of every example, by its id.

        Batches are those of the whole list, whatever part of it is in the cache already; a batch that is partly there
        is made again as a whole. So a continued evaluation computes exactly the numbers of an uninterrupted one.

        Raises `EvaluationStopped` on all ranks when `should_stop` of one of them says so between two batches; what was
        scored before is in the cache.
        """
        sequences: dict[str, np.ndarray] = {}
        keys: dict[str, str] = {}

        def encoded(done: int, total: int) -> None:
            self._progress(f"{what}: encoding", done, total)
            if self._should_stop():
                raise EvaluationStopped

        self.tokens.prepare(examples, encoded, self._ranks)
        for example in examples:
            codes = self.tokens.tokens(example)
            keys[example.id] = sequence_key(codes)
            sequences[keys[example.id]] = codes
        names = sorted(sequences)
        lengths = [sequences[name].shape[-1] for name in names]
        batches = plan(lengths, names, self._policy.max_frames, self._policy.max_rows)
        lacking = {n for n, batch in enumerate(batches) if any(names[i] not in self._cache for i in batch)}
        todo = [batches[n] for n in sorted(set().union(*self._ranks.gather(lacking)))]
        total = sum(lengths[i] for batch in batches for i in batch)
        done = total - sum(lengths[i] for batch in todo for i in batch)
        self._progress(what, done, total)
        for first in range(0, len(todo), self._ranks.size):
            self._ranks.stop_if(self._should_stop())
            turn = todo[first : first + self._ranks.size]
            # A rank without a batch of its own repeats another's: sharded models need every rank in every forward.
            mine = [sequences[names[i]] for i in turn[min(self._ranks.rank, len(turn) - 1)]]
            scored = self._ranks.together(partial(self._score, mine))
            self._share([[(names[i], lengths[i]) for i in batch] for batch in turn], scored)
            done += sum(lengths[i] for batch in turn for i in batch)
            self._progress(what, done, total)
        values = self._cache.read(names)
        return {example.id: values[keys[example.id]] for example in examples}

    def _score(self, sequences: list[np.ndarray]) -> list[np.ndarray]:
        self.forward_passes += 1
        codes, frames = as_batch(sequences)
        nll = self.scorer.score(codes, frames).nll.float().cpu()
        return [row[:, :length].numpy() for row, length in zip(nll, frames.tolist(), strict=True)]

    def _share(self, turn: list[list[tuple[str, int]]], scored: list[np.ndarray]) -> None:
        """Puts the results of one turn, one batch per rank, into every rank's cache."""
        if self._ranks.size == 1:
            self._cache.add({name: value for (name, _), value in zip(turn[0], scored, strict=True)})
            return
        channels = 1 + self.scorer.dep_q
        for rank, batch in enumerate(turn):
            size = sum(length for _, length in batch) * channels
            flat = (
                np.concatenate([v.ravel() for v in scored]) if rank == self._ranks.rank else np.zeros(size, np.float32)
            )
            # One rank has the values and the others zeros: the sum is exact, and NaN stays NaN.
            shared = torch.from_numpy(flat).to(self.scorer.device)
            torch.distributed.all_reduce(shared)
            values = torch.split(shared.cpu(), [length * channels for _, length in batch])
            self._cache.add(
                {name: v.view(channels, -1).numpy().copy() for (name, _), v in zip(batch, values, strict=True)}
            )
