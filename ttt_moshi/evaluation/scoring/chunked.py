"""Recordings too long for one pass: scored in chunks that carry attention and memory, equal to the whole."""

from __future__ import annotations

from itertools import pairwise

import torch
from moshi.models.lm import LMModel

from ttt_moshi.evaluation.errors import EvaluationError
from ttt_moshi.evaluation.scoring.score import Scores, eager_on_cpu, gather_nll, valid_tokens
from ttt_moshi.moshi import TTTMoshi, own_codebooks
from ttt_moshi.moshi.sink import attention_window


def score_in_chunks(
    model: LMModel,
    codes: torch.Tensor,
    frames: torch.Tensor,
    chunk_frames: int,
    prefix_lengths: torch.Tensor | None = None,
) -> Scores:
    """`score` of codes [B, n_q + 1, T] in chunks of `chunk_frames`, in memory that does not grow with T.

    Every token is scored exactly once. A chunk predicts the delayed codebooks of earlier frames, so its results are
    moved back to their own frames; what is masked is what `score` masks. The first chunk holds the longest prefix
    whole, since a prefix is also read backwards.
    """
    T = codes.shape[-1]
    first = chunk_frames
    if prefix_lengths is not None:
        first = max(first, int(prefix_lengths.max()) + 1)
    return _read(model, codes, frames, [0, *range(first, T, chunk_frames), T], prefix_lengths)


def score_with_swapped_memory(
    model: LMModel, codes: torch.Tensor, frames: torch.Tensor, others: torch.Tensor, every: int, chunk_frames: int
) -> Scores:
    """A control: at every multiple of `every` frames each row's memory becomes that of another recording there.

    The other recordings `others` [B, n_q + 1, T] are read side by side; attention and codes stay each row's own. So
    what a row remembers at frame t is the other recording up to the last multiple of `every`, and its own since then.
    """
    T = codes.shape[-1]
    edges = sorted({*range(0, T, every), *range(0, T, chunk_frames or T), T})
    return _read(model, codes, frames, edges, others=others, every=every)


def _read(
    model: LMModel,
    codes: torch.Tensor,
    frames: torch.Tensor,
    edges: list[int],
    prefix_lengths: torch.Tensor | None = None,
    others: torch.Tensor | None = None,
    every: int = 0,
) -> Scores:
    if not isinstance(model, TTTMoshi):
        raise EvaluationError(f"{type(model).__name__} cannot read a recording in chunks; score it in one pass")
    scored = 1 + own_codebooks(model)
    stream = strange = model.start_stream(len(codes))
    assert model.context is not None  # or no stream would have started
    window = model.context
    delayed = torch.full((len(codes), scored, codes.shape[-1]), float("nan"), device=codes.device)
    with torch.no_grad(), eager_on_cpu(model):
        for start, stop in pairwise(edges):
            if others is not None and start and start % every == 0:
                stream = stream.with_memory_of(strange)
            # A window that is wider than what was heard would look at nothing, at the price of looking. One more than
            # that, since a window of n frames carries n - 1 into the next chunk.
            seen = min(window, stop + 1)
            with attention_window(model, seen):
                chunk = model.forward_chunk(
                    codes[..., start:stop], stream.seen_through(seen), prefix_lengths=prefix_lengths
                )
                stream = chunk.stream
                if others is not None:
                    strange = model.forward_chunk(others[..., start:stop], strange.seen_through(seen)).stream
            known = torch.cat([chunk.output.text_mask, chunk.output.mask], dim=1)[:, :scored]
            part = gather_nll(chunk.output.text_logits, chunk.output.logits, chunk.targets, known)
            delayed[..., start:stop] = part.nll
    mask = valid_tokens(model, codes, frames, prefix_lengths)
    nll = torch.full_like(delayed, float("nan"))
    for k, delay in enumerate(model.delays[:scored]):
        nll[:, k, : codes.shape[-1] - delay] = delayed[:, k, delay:]
    return Scores(nll.masked_fill(~mask, float("nan")), mask)
