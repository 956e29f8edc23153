"""Recordings too long for one pass: scored in chunks that carry attention and memory, equal to the whole."""

from __future__ import annotations

import torch
from moshi.models.lm import LMModel

from ttt_moshi.evaluation.errors import EvaluationError
from ttt_moshi.evaluation.scoring.score import Scores, eager_on_cpu, gather_nll, valid_tokens
from ttt_moshi.moshi import TTTMoshi


def score_in_chunks(model: LMModel, codes: torch.Tensor, frames: torch.Tensor, chunk_frames: int) -> Scores:
    """`score` of codes [B, n_q + 1, T] in chunks of `chunk_frames`, in memory that does not grow with T.

    Every token is scored exactly once. A chunk predicts the delayed codebooks of earlier frames, so its results are
    moved back to their own frames; what is masked is what `score` masks.
    """
    if not isinstance(model, TTTMoshi):
        raise EvaluationError(f"{type(model).__name__} cannot read a recording in chunks; score it in one pass")
    scored = 1 + model.dep_q
    stream = model.start_stream(len(codes))
    delayed = torch.full((len(codes), scored, codes.shape[-1]), float("nan"), device=codes.device)
    with torch.no_grad(), eager_on_cpu(model):
        for start in range(0, codes.shape[-1], chunk_frames):
            chunk = model.forward_chunk(codes[..., start : start + chunk_frames], stream)
            stream = chunk.stream
            known = torch.cat([chunk.output.text_mask, chunk.output.mask], dim=1)
            part = gather_nll(chunk.output.text_logits, chunk.output.logits, chunk.targets, known)
            delayed[..., start : start + chunk_frames] = part.nll
    mask = valid_tokens(model, codes, frames)
    nll = torch.full_like(delayed, float("nan"))
    for k, delay in enumerate(model.delays[:scored]):
        nll[:, k, : codes.shape[-1] - delay] = delayed[:, k, delay:]
    return Scores(nll.masked_fill(~mask, float("nan")), mask)
