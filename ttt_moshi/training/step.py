"""One optimizer step: micro-batches in, updated parameters and the step's metrics out."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from blake3 import blake3
from torch.distributed.fsdp import FSDPModule

from ttt_moshi.config import TrainArgs
from ttt_moshi.data import Batch
from ttt_moshi.moshi import TTTMoshi, own_codebooks
from ttt_moshi.training import loss as objective
from ttt_moshi.training import random_state
from ttt_moshi.training.distill import Teacher, lessons
from ttt_moshi.training.distributed import World
from ttt_moshi.training.feed import Feed, Targets
from ttt_moshi.training.loss import LossWeights
from ttt_moshi.training.optimizer import clip_gradients


@dataclass(frozen=True)
class StepResult:
    """What one step measured, equal on all ranks.

    Args:
        metrics: loss, losses per component (nats) of which there was something to predict, gradient norms.
        finite: whether the loss and every gradient norm were finite; if not, nothing was updated and nothing kept.
        votes: what some rank voted for.
        tokens: predicted codes of the step over all ranks.
    """

    metrics: dict[str, Any]
    finite: bool
    votes: frozenset[str]
    tokens: int


# What a rank may ask of all of them; they agree in the step's own collective, so that no request splits a step.
VOTES = ("SIGTERM", "SIGINT", "SIGHUP", "save", "give up")


def loss_weights(model: TTTMoshi, args: TrainArgs) -> LossWeights:
    """The configured weights with the model's padding ids."""
    return LossWeights(
        first_codebook=args.first_codebook_weight_multiplier,
        text_padding=args.text_padding_weight,
        text_padding_ids=(model.text_padding_token_id, model.end_of_text_padding_id),
        semantic=(1, 1 + own_codebooks(model)) if own_codebooks(model) < model.dep_q else (1,)[: model.dep_q],
    )


def train_step(
    model: TTTMoshi,
    optimizer: torch.optim.Optimizer,
    feed: Feed,
    work: Sequence[Sequence[Batch]],
    world: World,
    weights: LossWeights,
    max_norm: float,
    votes: Collection[str] = (),
    restart: bool = False,
    teacher: Teacher | None = None,
    inherit: bool = False,
) -> StepResult:
    """Runs forward and backward over every micro-batch and updates the parameters once.

    The two collectives of a step carry everything the ranks must agree on: the first the loss denominators, the
    second the measured sums and the votes.

    Args:
        work: for each micro-batch its clips, one after another.
        votes: what this rank asks for, of `VOTES`.
        restart: whether carried recordings begin anew with this step.
        teacher: whose distributions the objective draws to as well.
        inherit: whether recordings that begin in this step find the memory that the one before them left.
    """
    device = world.device
    put_back = random_state.remember()
    feed.begin(model, restart, inherit)
    if teacher is not None:
        teacher.begin(model, restart)
    targets = [feed.targets(model, micro, clips, device) for micro, clips in enumerate(work)]
    totals, counts = _totals(targets, weights, model.dep_q, device)
    totals = world.sum(totals)
    # A step may hold no text at all, and models that only write predict no audio: 0 of the objective, not 0 / 0.
    text_total, audio_total = totals.clamp(min=1e-30).float()

    optimizer.zero_grad(set_to_none=True)
    sums = torch.zeros(len(counts) + 2, dtype=torch.float64, device=device)
    taught = torch.zeros(1, dtype=torch.float64, device=device)
    for micro, clips in enumerate(work):
        share = torch.zeros((), device=device)
        for batch, target in zip(clips, targets[micro], strict=True):
            known = None if teacher is None else teacher.predict(model, micro, batch, device)
            logits = feed.predict(model, micro, batch, device)
            nll = objective.nll_per_token(*logits, target.codes, target.mask)
            weight = objective.target_weights(target.codes, target.mask, weights)
            share = share + objective.objective(nll, weight, text_total, audio_total)
            if teacher is not None and known is not None:
                lesson = objective.objective(lessons(logits, known, target), weight, text_total, audio_total)
                share = share + teacher.weight * lesson
                taught += lesson.detach()
            weighted = (nll.detach() * weight).double()
            sums[:-2] += objective.component_sums(nll.detach(), target.codes, weights)
            sums[-2:] += torch.stack([weighted[:, 0].sum(), weighted[:, 1:].sum()])
        # Sharded gradients are averaged over the ranks; the objective is a sum over them.
        (share * world.size).backward()
    cast = torch.tensor([float(vote in votes) for vote in VOTES], dtype=torch.float64, device=device)
    parts = (sums, counts, cast, taught)
    sums, counts, cast, taught = world.sum(torch.cat(parts)).split([len(part) for part in parts])

    norms = clip_gradients(optimizer, max_norm)
    measured = torch.cat([sums, torch.stack([n.double() for n in norms.values()])]).tolist()
    shares = zip(("text_loss", "audio_loss"), measured[len(counts) : len(sums)], totals.tolist(), strict=True)
    losses = {name: part / total for name, part, total in shares if total > 0}
    lesson_loss = {} if teacher is None else {"distill_loss": taught.item()}
    grad_norms = dict(zip(norms, measured[len(sums) :], strict=True))
    measures = (*losses.values(), *lesson_loss.values(), *grad_norms.values())
    finite = all(math.isfinite(value) for value in measures)
    if finite:
        optimizer.step()
        feed.keep()
        if teacher is not None:
            teacher.feed.keep()
    else:
        put_back()
    optimizer.zero_grad(set_to_none=True)
    return StepResult(
        metrics={
            "loss": sum(losses.values()),
            **losses,
            **lesson_loss,
            "nll": _mean_nll(model, measured[: len(counts)], counts.tolist()),
            "grad_norm": grad_norms,
        },
        finite=finite,
        votes=frozenset(vote for vote, count in zip(VOTES, cast.tolist(), strict=True) if count > 0),
        tokens=int(counts.sum().item()),
    )


def _totals(
    targets: Sequence[Sequence[Targets]], weights: LossWeights, dep_q: int, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """Of this rank: the sums of its targets' weights [2] (text, audio), and how many each component has [2 + dep_q]."""
    totals = torch.zeros(2, dtype=torch.float64, device=device)
    counts = torch.zeros(2 + dep_q, dtype=torch.float64, device=device)
    for target in chain.from_iterable(targets):
        weight = objective.target_weights(target.codes, target.mask, weights)
        totals += torch.stack([weight[:, 0].double().sum(), weight[:, 1:].double().sum()])
        counts += objective.component_sums(target.mask.float(), target.codes, weights)
    return totals, counts


def _mean_nll(model: TTTMoshi, sums: Sequence[float], counts: Sequence[float]) -> dict[str, float]:
    """Nats per target of each component. One without a single target has no loss; 0.0 would be a lie."""
    names = objective.component_names(model.dep_q, own_codebooks(model))
    return {n: s / c for n, s, c in zip(names, sums, counts, strict=True) if c > 0}


def forward_is_finite(
    model: TTTMoshi,
    feed: Feed,
    work: Sequence[Sequence[Batch]],
    world: World,
    restart: bool = False,
    inherit: bool = False,
) -> bool:
    """Whether the model as it is predicts a step's clips with finite losses, on all ranks. Leaves no trace."""
    put_back = random_state.remember()
    feed.begin(model, restart, inherit)
    total = torch.zeros((), dtype=torch.float64, device=world.device)
    with torch.no_grad():
        for micro, clips in enumerate(work):
            targets = feed.targets(model, micro, clips, world.device)
            for batch, target in zip(clips, targets, strict=True):
                text_logits, audio_logits = feed.predict(model, micro, batch, world.device)
                total += objective.nll_per_token(text_logits, audio_logits, target.codes, target.mask).double().sum()
    put_back()
    feed.begin(model, restart=False)
    # The root unit stays whole after a forward, in expectation of a backward that never comes; the optimizer and the
    # checkpoint know its shards only.
    assert isinstance(model, FSDPModule)
    model.reshard()
    return math.isfinite(world.sum(total).item())


def digest(clip_ids: Sequence[str]) -> str:
    """A short fingerprint of which clips a step saw, in order."""
    return blake3("\n".join(clip_ids).encode()).hexdigest(length=8)
