"""Perplexity over a fixed set of clips: token-weighted, one number per component, in nats.

`ppl = exp(sum of NLL / number of tokens)` over the whole set. The training weights (100 on the semantic codebook, 0.5
on text padding) play no part, so runs with different weights can be compared.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from moshi.models.lm import LMModel

from ttt_moshi.evaluation.errors import EvaluationError
from ttt_moshi.evaluation.quiet import undisturbed
from ttt_moshi.evaluation.score import Scores, score
from ttt_moshi.evaluation.statistics import Interval, bootstrap_ratio

FRAME_RATE = 12.5


class ClipBatch(Protocol):
    """What evaluation needs of a batch of clips; `ttt_moshi.data.Batch` is one."""

    codes: torch.Tensor  # int64 [B, K, T], -1 = absent
    sample_ids: list[str]
    prefix_lengths: torch.Tensor  # int64 [B]
    valid_frames: torch.Tensor  # int64 [B]


class ClipSet(Protocol):
    """A fixed list of clips that gives the same answer whenever it is asked; `ttt_moshi.data.EvalSet` is one."""

    fingerprint: str

    @property
    def clips(self) -> Sequence[Any]:
        """In order; the `id` of a clip is the same on every machine."""

    def __len__(self) -> int: ...

    def batches(self, batch_size: int, rank: int, world_size: int) -> Iterator[ClipBatch]:
        """Beginning anew with every call: batch number `step * world_size + rank` of the list cut into batches. Every
        rank gets equally many; one that has none left gets a clip without audio."""


@dataclass
class Component:
    """One kind of token: how many there were and how well they were predicted."""

    tokens: int
    nll: float  # nats per token
    ci95: Interval  # of nll; clips are the resampled units

    @property
    def ppl(self) -> float:
        return math.exp(self.nll)


@dataclass
class Perplexity:
    """The result of one pass. A kind of token that does not occur in the set is missing from `components`."""

    components: dict[str, Component]
    bits_per_second: float  # of Moshi's audio
    seconds: float
    clips: int
    data_digest: str
    samples: list[
        dict[str, Any]
    ]  # one per clip: `id`, `score` (minus its mean audio NLL), `nll` and `tokens` by component


def component_names(dep_q: int) -> list[str]:
    """Every component, in the order of the tables."""
    acoustic = [f"acoustic_{k}" for k in range(2, dep_q + 1)]
    return ["text_words", "text_pad", "text_epad", "semantic", *acoustic, "text", "acoustic", "audio"]


def component_masks(model: LMModel, codes: torch.Tensor, mask: torch.Tensor) -> dict[str, torch.Tensor]:
    """For every component the tokens that belong to it: bool [B, 1 + dep_q, T] each, a part of `mask`."""
    text = codes[:, 0]
    pad, epad = text == model.text_padding_token_id, text == model.end_of_text_padding_id

    def channels(start: int, stop: int) -> torch.Tensor:
        chosen = torch.zeros_like(mask)
        chosen[:, start:stop] = mask[:, start:stop]
        return chosen

    text_mask = channels(0, 1)
    masks = {
        "text_words": text_mask & ~(pad | epad)[:, None],
        "text_pad": text_mask & pad[:, None],
        "text_epad": text_mask & epad[:, None],
        "semantic": channels(1, 2),
    }
    for k in range(2, model.dep_q + 1):
        masks[f"acoustic_{k}"] = channels(k, k + 1)
    masks |= {
        "text": text_mask,
        "acoustic": channels(2, 1 + model.dep_q),
        "audio": channels(1, 1 + model.dep_q),
    }
    return masks


def clip_sums(model: LMModel, codes: torch.Tensor, scores: Scores) -> torch.Tensor:
    """Per clip and component the sum of NLL and the number of tokens: float64 [B, components, 2].

    Summed in float64 within the clip, so that the other clips of the batch have no part in it.
    """
    values = torch.where(scores.mask, scores.nll, 0.0).double()
    columns = []
    for mask in component_masks(model, codes, scores.mask).values():
        columns.append(torch.stack([(values * mask).sum(dim=(1, 2)), mask.sum(dim=(1, 2)).double()], dim=-1))
    return torch.stack(columns, dim=1)


def evaluate_perplexity(
    model: LMModel,
    clips: ClipSet,
    batch_size: int = 1,
    rank: int = 0,
    world_size: int = 1,
    progress: Callable[[int, int], None] | None = None,
) -> Perplexity:
    """Perplexity of `model` over all of `clips`, from the first clip, whatever was evaluated before.

    The model may be in training, sharded (FSDP2) or streaming: mode, random generators and streaming state are put
    back afterwards. With `world_size` ranks each one scores every `world_size`-th batch, all ranks make the same
    number of forward passes (sharded models need that), and all return the same result. `progress(done, total)`
    counts this rank's batches.

    Raises `EvaluationError` when the set is empty or a prediction is not finite.
    """
    if not len(clips):
        raise EvaluationError("the evaluation set holds no clips, so there is no perplexity")
    # One row per clip, filled by the rank that scored it; the other ranks add exact zeros.
    table = torch.zeros(len(clips), len(component_names(model.dep_q)) + 1, 2, dtype=torch.float64)
    steps = math.ceil(len(clips) / (batch_size * world_size))
    with undisturbed(model):
        for step, batch in enumerate(clips.batches(batch_size, rank, world_size)):
            codes = batch.codes.to(model.device)
            scores = score(model, codes, batch.valid_frames, batch.prefix_lengths)
            start = (step * world_size + rank) * batch_size
            if start < len(clips):
                table[start : start + len(codes), :-1] = clip_sums(model, codes, scores).cpu()
                table[start : start + len(codes), -1, 0] = scores.mask[:, 1].sum(dim=1).cpu()
            if progress is not None:
                progress(step + 1, steps)
    if world_size > 1:
        shared = table.to(model.device)
        torch.distributed.all_reduce(shared)
        table = shared.cpu()
    return _summarise(component_names(model.dep_q), table.numpy(), clips)


def _summarise(names: list[str], table: np.ndarray, clips: ClipSet) -> Perplexity:
    components = {}
    for i, name in enumerate(names):
        sums, counts = table[:, i, 0], table[:, i, 1]
        tokens = int(counts.sum())
        if tokens:
            # fsum is exact, so neither the order of clips nor the number of ranks matters.
            components[name] = Component(tokens, math.fsum(sums) / tokens, bootstrap_ratio(sums, counts))
    seconds = float(table[:, -1, 0].sum()) / FRAME_RATE
    if "audio" not in components:
        raise EvaluationError(
            "the evaluation set holds no audio token of Moshi's own stream, so there is no perplexity"
        )
    audio_nats = math.fsum(table[:, names.index("audio"), 0])
    samples = [_sample(name, names, row) for name, row in zip((clip.id for clip in clips.clips), table, strict=True)]
    bits = audio_nats / math.log(2) / seconds
    return Perplexity(components, bits, seconds, len(table), clips.fingerprint, samples)


def _sample(clip: str, names: list[str], row: np.ndarray) -> dict[str, Any]:
    nll = {name: row[i, 0] / row[i, 1] for i, name in enumerate(names) if row[i, 1]}
    tokens = {name: int(row[i, 1]) for i, name in enumerate(names) if row[i, 1]}
    return {"id": clip, "score": -nll["audio"] if "audio" in nll else None, "nll": nll, "tokens": tokens}


def as_task(result: Perplexity) -> dict[str, Any]:
    """The result as an entry of `results.json`: its value is exp(mean NLL) over Moshi's audio tokens."""
    audio = result.components["audio"]
    return {
        "status": "ok",
        "metric": "exp(mean NLL in nats) of Moshi's audio tokens, all codebooks alike",
        "better": "lower",
        "value": audio.ppl,
        "ci95": [math.exp(audio.ci95[0]), math.exp(audio.ci95[1])],
        "n": result.clips,
        "unit_of_n": "clips",
        "bits_per_second": result.bits_per_second,
        "seconds": result.seconds,
        "components": {
            name: {"nll": c.nll, "ci95": list(c.ci95), "ppl": c.ppl, "tokens": c.tokens}
            for name, c in result.components.items()
        },
    }
