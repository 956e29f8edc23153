"""Scores examples: tokens, batches, cache, several processes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Protocol

import numpy as np
import torch
from blake3 import blake3

from ttt_moshi.evaluation.errors import EvaluationError, EvaluationStopped
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


@dataclass(frozen=True)
class _Sequence:
    """What is scored: int32 [channels, T], how many first frames are given, and another recording of that length."""

    codes: np.ndarray
    prefix_frames: int
    other: np.ndarray | None


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
        self.told = progress or (lambda what, done, total: None)
        self.ranks = ranks or Ranks()
        self._should_stop = should_stop
        self.forward_passes = 0  # made by this process: none when everything was in the cache

    def reading(self, tokens: Tokens) -> Engine:
        """This engine with other tokens: the same scorer, cache, batches and processes."""
        other = copy(self)
        other.tokens = tokens
        return other

    def counting(self, what: str, total: int | None = None) -> Callable[[int], None]:
        """What is called with so many more that are done, again and again, and tells of all of them; of a total never
        more than that. None: nobody knows how many there will be."""
        done = 0

        def count(more: int) -> None:
            nonlocal done
            done += more
            self.told(what, done if total is None else min(done, total), done if total is None else total)

        return count

    def varied(self, **changes: Any) -> Engine:
        """This engine with the model run under other `ScoringOptions`; its scores are another model's to the cache."""
        other = copy(self)
        other.scorer = self.scorer.varied(**changes)
        other._cache = self._cache.of(other.scorer.identity)
        return other

    def alone(self) -> Engine:
        """This engine with every sequence in a forward pass of its own: what does not differ gives equal bits."""
        other = copy(self)
        other._policy = replace(self._policy, max_rows=1)
        return other

    def nll(self, examples: Sequence[Example], what: str = "scoring") -> dict[str, np.ndarray]:
        """NLL float32 [1 + dep_q, T] of every example, by its id.

        Batches are those of the whole list, whatever part of it is in the cache already; a batch that is partly there
        is made again as a whole. So a continued evaluation computes exactly the numbers of an uninterrupted one.

        Raises `EvaluationStopped` on all ranks when `should_stop` of one of them says so between two batches; what was
        scored before is in the cache.
        """
        self.tokens.prepare(examples, self.encoding(what), self.ranks)
        keys, sequences = self.ranks.together(lambda: self._sequences(examples))
        names = sorted(sequences)
        lengths = [sequences[name].codes.shape[-1] for name in names]
        batches = plan(lengths, names, self._policy.max_frames, self._policy.max_rows)
        lacking = {n for n, batch in enumerate(batches) if any(names[i] not in self._cache for i in batch)}
        todo = [batches[n] for n in sorted(set().union(*self.ranks.gather(lacking)))]
        total = sum(lengths[i] for batch in batches for i in batch)
        done = total - sum(lengths[i] for batch in todo for i in batch)
        self.told(what, done, total)
        for first in range(0, len(todo), self.ranks.size):
            self.stop_if_asked()
            turn = todo[first : first + self.ranks.size]
            # A rank without a batch of its own repeats another's: sharded models need every rank in every forward.
            own = [sequences[names[i]] for i in turn[min(self.ranks.rank, len(turn) - 1)]]
            scored = self.ranks.together(partial(self._score, own))
            self._share([[(names[i], lengths[i]) for i in batch] for batch in turn], scored)
            done += sum(lengths[i] for batch in turn for i in batch)
            self.told(what, done, total)
        values = self._cache.read(names)
        return {example.id: values[keys[example.id]] for example in examples}

    def stop_if_asked(self) -> None:
        """Raises `EvaluationStopped` on all ranks when one of them was asked to stop. Call it on all ranks."""
        self.ranks.stop_if(self._should_stop())

    def encoding(self, what: str) -> Callable[[int, int], None]:
        """The progress of encoding what the task `what` needs; it raises `EvaluationStopped` when asked to stop."""

        def report(done: int, total: int) -> None:
            self.told(f"{what}: encoding", done, total)
            if self._should_stop():
                raise EvaluationStopped

        return report

    def _sequences(self, examples: Sequence[Example]) -> tuple[dict[str, str], dict[str, _Sequence]]:
        """The key of every example by its id, and the sequences by their keys; equal ones are scored once."""
        codes = {example.id: self.tokens.tokens(example) for example in examples}
        keys = {example.id: sequence_key(codes[example.id], example.prefix_frames) for example in examples}
        others: dict[str, Example] = {}
        if self.scorer.swaps:
            others = _others(examples, {id: tokens.shape[-1] for id, tokens in codes.items()})
            keys = {id: blake3(f"{key} {keys[others[id].id]}".encode()).hexdigest()[:40] for id, key in keys.items()}
        sequences = {}
        for example in examples:
            tokens = codes[example.id]
            other = None
            if self.scorer.swaps:
                # A shorter one is heard again from its beginning.
                stranger = codes[others[example.id].id]
                other = np.take(stranger, np.arange(tokens.shape[-1]) % stranger.shape[-1], axis=-1)
            sequences[keys[example.id]] = _Sequence(tokens, example.prefix_frames, other)
        return keys, sequences

    def _score(self, batch: list[_Sequence]) -> list[np.ndarray]:
        self.forward_passes += 1
        codes, frames = as_batch([sequence.codes for sequence in batch])
        extra = {}
        if any(sequence.prefix_frames for sequence in batch):
            extra["prefix_lengths"] = torch.tensor([sequence.prefix_frames for sequence in batch])
        if self.scorer.swaps:
            extra["others"] = as_batch([sequence.other for sequence in batch if sequence.other is not None])[0]
        nll = self.scorer.score(codes, frames, **extra).nll.float().cpu()
        return [row[:, :length].numpy() for row, length in zip(nll, frames.tolist(), strict=True)]

    def _share(self, turn: list[list[tuple[str, int]]], scored: list[np.ndarray]) -> None:
        """Puts the results of one turn, one batch per rank, into every rank's cache."""
        if self.ranks.size == 1:
            self._cache.add({name: value for (name, _), value in zip(turn[0], scored, strict=True)})
            return
        channels = 1 + self.scorer.dep_q
        for rank, batch in enumerate(turn):
            size = sum(length for _, length in batch) * channels
            flat = (
                np.concatenate([v.ravel() for v in scored]) if rank == self.ranks.rank else np.zeros(size, np.float32)
            )
            # One rank has the values and the others zeros: the sum is exact, and NaN stays NaN.
            shared = torch.from_numpy(flat).to(self.scorer.device)
            torch.distributed.all_reduce(shared)
            values = torch.split(shared.cpu(), [length * channels for _, length in batch])
            self._cache.add(
                {name: v.view(channels, -1).numpy().copy() for (name, _), v in zip(batch, values, strict=True)}
            )


def _others(examples: Sequence[Example], lengths: dict[str, int]) -> dict[str, Example]:
    """For each example, by its id, the longest one that hears none of its files: whose memory it is given.

    Raises `EvaluationError` where there is none.
    """
    by_length = sorted(examples, key=lambda example: (-lengths[example.id], example.id))
    found = {}
    for example in examples:
        stranger = next((other for other in by_length if not other.files & example.files), None)
        if stranger is None:
            raise EvaluationError(f"`--ttt swapped` needs another recording than that of {example.id}: there is none")
        found[example.id] = stranger
    return found
