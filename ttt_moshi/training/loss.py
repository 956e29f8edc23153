"""The training loss of moshi-finetune, reported per component.

Every mean is taken over the whole optimizer step: all micro-batches of all ranks share one denominator, so neither the
number of micro-batches nor the world size changes the loss or its gradient.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

ZERO_TOKEN = -1


@dataclass(frozen=True)
class LossWeights:
    """Weights of the training objective.

    Args:
        first_codebook: weight of the semantic codebook beside 1 for each acoustic one.
        text_padding: weight of frames whose text token is PAD or EPAD beside 1 for the others.
        text_padding_ids: token ids of PAD and EPAD.
        semantic: the semantic codebooks' places among the predicted streams, text being 0.
    """

    first_codebook: float
    text_padding: float
    text_padding_ids: tuple[int, ...]
    semantic: tuple[int, ...] = (1,)


def target_mask(codes: Tensor, delays: Sequence[int], dep_q: int, prefix_lengths: Tensor | None = None) -> Tensor:
    """Which codes are predicted: present, not cut off by their delay, and not part of a given prefix.

    Args:
        codes: int64 [B, K, T]; -1 where there is none.
        delays: frames by which each of the K streams is delayed.
        dep_q: audio codebooks that the model predicts.
        prefix_lengths: int64 [B], frames at the start of each row that are given.

    Returns:
        bool [B, 1 + dep_q, T], text first.
    """
    T = codes.shape[-1]
    predicted = codes[:, : 1 + dep_q]
    frame = torch.arange(T, device=codes.device)
    reach = torch.tensor([T - d for d in delays[: 1 + dep_q]], device=codes.device)
    mask = (predicted != ZERO_TOKEN) & (frame < reach[:, None])
    if prefix_lengths is not None:
        mask &= frame >= prefix_lengths[:, None, None]
    return mask


def target_weights(codes: Tensor, mask: Tensor, weights: LossWeights) -> Tensor:
    """Weight of every predicted code in the objective: float32 [B, 1 + dep_q, T], 0 outside of `mask`."""
    result = mask.float()
    padding = torch.isin(codes[:, 0], torch.tensor(weights.text_padding_ids, device=codes.device))
    result[:, 0] = torch.where(padding, result[:, 0] * weights.text_padding, result[:, 0])
    result[:, list(weights.semantic)] *= weights.first_codebook
    return result


def nll_per_token(text_logits: Tensor, audio_logits: Tensor, codes: Tensor, mask: Tensor) -> Tensor:
    """Negative log-likelihood of every predicted code in nats, float32 [B, 1 + dep_q, T], 0 outside of `mask`.

    Args:
        text_logits: [B, 1, T, text_card], aligned with `codes`.
        audio_logits: [B, dep_q, T, card], aligned with `codes`.
    """
    dep_q = audio_logits.shape[1]
    targets = torch.where(mask, codes[:, : 1 + dep_q], 0)
    text = cross_entropy(text_logits[:, 0].transpose(1, 2).float(), targets[:, 0], reduction="none")[:, None]
    audio = cross_entropy(audio_logits.permute(0, 3, 1, 2).float(), targets[:, 1:], reduction="none")
    # `where`, not a product: logits beyond a stream's delay are NaN.
    return torch.where(mask, torch.cat([text, audio], dim=1), 0.0)


def objective(nll: Tensor, weights: Tensor, text_total: Tensor, audio_total: Tensor) -> Tensor:
    """This micro-batch's share of the weighted text mean plus the weighted audio mean (a scalar)."""
    weighted = nll * weights
    return weighted[:, 0].sum() / text_total + weighted[:, 1:].sum() / audio_total


def component_names(dep_q: int, own: int | None = None) -> list[str]:
    """Names of the reported components, in the order of `component_sums`.

    Args:
        own: codebooks of Moshi; those after them are the user's. None: all.
    """
    audio = ["semantic", *(f"acoustic_{k}" for k in range(2, (own or dep_q) + 1))][:dep_q]
    user = [f"user_{name}" for name in audio] if own is not None and own < dep_q else []
    return ["text_words", "text_padding", *audio, *user]


def component_sums(values: Tensor, codes: Tensor, weights: LossWeights) -> Tensor:
    """Sums of a per-token quantity over each component, float64 [2 + dep_q].

    Args:
        values: [B, 1 + dep_q, T], 0 where nothing is predicted.
    """
    padding = torch.isin(codes[:, 0], torch.tensor(weights.text_padding_ids, device=codes.device))
    values = values.double()
    text = values[:, 0]
    words = torch.where(padding, 0.0, text).sum()
    pads = torch.where(padding, text, 0.0).sum()
    return torch.stack([words, pads, *values[:, 1:].sum(dim=(0, 2)).unbind()])
