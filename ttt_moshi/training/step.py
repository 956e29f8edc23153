"""One optimizer step: micro-batches in, updated parameters and the step's metrics out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from blake3 import blake3

from ttt_moshi.config import TrainArgs
from ttt_moshi.data import Batch
from ttt_moshi.moshi import TTTMoshi
from ttt_moshi.training import loss as objective
from ttt_moshi.training.distributed import World
from ttt_moshi.training.feed import Feed
from ttt_moshi.training.loss import LossWeights
from ttt_moshi.training.optimizer import clip_gradients


@dataclass(frozen=True)
class StepResult:
    """What one step measured, equal on all ranks.

    Args:
        metrics: loss, losses per component (nats), gradient norms.
        finite: whether the loss and every gradient norm were finite; if not, nothing was updated.
        stop: whether some rank was asked to stop.
        save: whether some rank was asked for a checkpoint.
        tokens: predicted codes of the step over all ranks.
    """

    metrics: dict[str, Any]
    finite: bool
    stop: bool
    save: bool
    tokens: int


def loss_weights(model: TTTMoshi, args: TrainArgs) -> LossWeights:
    """The configured weights with the model's padding ids."""
    return LossWeights(
        first_codebook=args.first_codebook_weight_multiplier,
        text_padding=args.text_padding_weight,
        text_padding_ids=(model.text_padding_token_id, model.end_of_text_padding_id),
    )


def train_step(
    model: TTTMoshi,
    optimizer: torch.optim.Optimizer,
    feed: Feed,
    work: Sequence[Sequence[Batch]],
    world: World,
    weights: LossWeights,
    max_norm: float,
    stop_requested: bool = False,
    save_requested: bool = False,
) -> StepResult:
    """Runs forward and backward over every micro-batch and updates the parameters once.

    The two collectives of a step carry everything the ranks must agree on: the first the loss denominators, the
    second the measured sums and whether anyone was asked to stop or to save.

    Args:
        work: for each micro-batch its clips, one after another.
    """
    device, size = world.device, world.size
    targets = [feed.targets(model, micro, clips, device) for micro, clips in enumerate(work)]
    totals = torch.zeros(2, dtype=torch.float64, device=device)
    counts = torch.zeros(2 + model.dep_q, dtype=torch.float64, device=device)
    for target in chain.from_iterable(targets):
        weight = objective.target_weights(target.codes, target.mask, weights)
        totals += torch.stack([weight[:, 0].double().sum(), weight[:, 1:].double().sum()])
        counts += objective.component_sums(target.mask.float(), target.codes, weights)
    # A step may hold no text at all; its text loss is then exactly 0 rather than 0 / 0.
    text_total, audio_total = world.sum(totals).clamp(min=1e-30).float()

    sums = torch.zeros(len(counts) + 4, dtype=torch.float64, device=device)
    optimizer.zero_grad(set_to_none=True)
    for micro, clips in enumerate(work):
        share = torch.zeros((), device=device)
        for batch, target in zip(clips, targets[micro], strict=True):
            text_logits, audio_logits = feed.predict(model, micro, batch, device)
            nll = objective.nll_per_token(text_logits, audio_logits, target.codes, target.mask)
            weight = objective.target_weights(target.codes, target.mask, weights)
            share = share + objective.objective(nll, weight, text_total, audio_total)
            weighted = (nll.detach() * weight).double()
            sums[:-4] += objective.component_sums(nll.detach(), target.codes, weights)
            sums[-4:-2] += torch.stack([weighted[:, 0].sum(), weighted[:, 1:].sum()])
        # Sharded gradients are averaged over the ranks; the objective is a sum over them.
        (share * size).backward()
    feed.end_step()
    sums[-2:] = torch.tensor([float(stop_requested), float(save_requested)])
    merged = world.sum(torch.cat([sums, counts]))
    sums, counts = merged[: len(sums)], merged[len(sums) :]

    norms = clip_gradients(optimizer, max_norm)
    measured = torch.cat([sums, torch.stack([n.double() for n in norms.values()])]).tolist()
    text_loss, audio_loss = measured[len(counts)] / text_total.item(), measured[len(counts) + 1] / audio_total.item()
    grad_norms = dict(zip(norms, measured[len(sums) :], strict=True))
    finite = all(math.isfinite(value) for value in (text_loss, audio_loss, *grad_norms.values()))
    if finite:
        optimizer.step()
    optimizer.zero_grad(set_to_none=True)

    names = objective.component_names(model.dep_q)
    # A component without a single target has no loss; 0.0 would be a lie.
    losses = {n: s / c for n, s, c in zip(names, measured[: len(counts)], counts.tolist(), strict=True) if c > 0}
    return StepResult(
        metrics={
            "loss": text_loss + audio_loss,
            "text_loss": text_loss,
            "audio_loss": audio_loss,
            "nll": losses,
            "grad_norm": grad_norms,
        },
        finite=finite,
        stop=measured[len(sums) - 2] > 0,
        save=measured[len(sums) - 1] > 0,
        tokens=int(counts.sum().item()),
    )


def digest(clip_ids: Sequence[str]) -> str:
    """A short fingerprint of which clips a step saw, in order."""
    return blake3("\n".join(clip_ids).encode()).hexdigest(length=8)
