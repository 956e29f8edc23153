"""Negative log-likelihood of every token that the model predicts: the one quantity all other numbers reduce.

Geometry of Moshi: channel 0 is text, channels 1..dep_q are Moshi's own codebooks (semantic first), the rest is the
user, whom the model hears and never predicts. `LMModel.forward` aligns its logits with its codes, so nothing is
shifted here.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from moshi.models.lm import LMModel
from moshi.utils.compile import no_compile
from torch.nn import functional as F

from ttt_moshi.evaluation.errors import EvaluationError
from ttt_moshi.moshi import own_codebooks


@dataclass
class Scores:
    """Nats of each predicted token. `nll` is NaN wherever `mask` is false, so a careless sum shows itself."""

    nll: torch.Tensor  # [B, 1 + dep_q, T] float32
    mask: torch.Tensor  # [B, 1 + dep_q, T] bool


def frame_counts(codes: torch.Tensor, absent: int = -1) -> torch.Tensor:
    """Frames of each row up to its last one that holds any token: codes [B, K, T] -> int64 [B]."""
    present = (codes != absent).any(dim=1)
    frame_numbers = torch.arange(1, codes.shape[-1] + 1, device=codes.device)
    return (present * frame_numbers).amax(dim=1)


def valid_tokens(
    model: LMModel,
    codes: torch.Tensor,
    frames: torch.Tensor | None = None,
    prefix_lengths: torch.Tensor | None = None,
) -> torch.Tensor:
    """Which tokens of codes [B, K, T] count: text and Moshi's own codebooks, bool [B, 1 + dep_q, T].

    A codebook that is delayed by d frames has no prediction for the last d frames of a recording. A padded row does
    have logits there, because its padding supplies the missing steps; they are left out all the same, so that a
    recording is scored alike alone and in a batch. `frames` [B] are the recordings' lengths (default: up to the last
    frame with a token), `prefix_lengths` [B] the frames that were given and are not predicted.
    """
    scored = 1 + own_codebooks(model)
    if frames is None:
        frames = frame_counts(codes, model.zero_token_id)
    delays = torch.tensor(model.delays[:scored], device=codes.device)
    t = torch.arange(codes.shape[-1], device=codes.device)
    valid = t < (frames.to(codes.device)[:, None] - delays)[..., None]
    valid &= codes[:, :scored] >= 0
    if prefix_lengths is not None:
        valid &= t >= prefix_lengths.to(codes.device)[:, None, None]
    return valid


def score(
    model: LMModel,
    codes: torch.Tensor,
    frames: torch.Tensor | None = None,
    prefix_lengths: torch.Tensor | None = None,
) -> Scores:
    """Scores whole recordings codes [B, n_q + 1, T] (-1 = absent) in one forward pass, log-softmax in float32.

    See `valid_tokens` for the arguments and for what is masked. Raises `EvaluationError` when a prediction is not
    finite: such a model has no likelihood, and no average should hide it.
    """
    if prefix_lengths is not None and bool((prefix_lengths > 0).any()):
        extra: dict[str, Any] = {"prefix_lengths": prefix_lengths}
    else:
        extra = {}
    with torch.no_grad(), eager_on_cpu(model):
        output = model(codes, **extra)
    mask = valid_tokens(model, codes, frames, prefix_lengths)
    return gather_nll(output.text_logits, output.logits, codes, mask)


def eager_on_cpu(model: LMModel) -> AbstractContextManager[None]:
    """moshi compiles some of its functions on first use; on a CPU that costs half a minute and saves nothing."""
    return no_compile() if model.device.type == "cpu" else nullcontext()


def gather_nll(
    text_logits: torch.Tensor, audio_logits: torch.Tensor, codes: torch.Tensor, mask: torch.Tensor
) -> Scores:
    """NLL of codes [B, K, T] under text_logits [B, 1, T, text_card] and audio_logits [B, dep_q, T, card], aligned."""
    nll = torch.full(mask.shape, float("nan"), device=codes.device, dtype=torch.float32)
    for k in range(mask.shape[1]):
        logits = text_logits[:, 0] if k == 0 else audio_logits[:, k - 1]
        valid = mask[:, k]
        # A boolean index copies only the tokens that count, one codebook at a time.
        nll[:, k][valid] = F.cross_entropy(logits[valid].float(), codes[:, k][valid], reduction="none")
    if not bool(torch.isfinite(nll[mask]).all()):
        row, channel, frame = (int(i) for i in (mask & ~torch.isfinite(nll)).nonzero()[0])
        raise EvaluationError(
            f"the model's prediction is not finite (row {row}, channel {channel}, frame {frame}): "
            "its weights hold NaN or infinity, or its arithmetic overflows in this dtype"
        )
    return Scores(nll, mask)
