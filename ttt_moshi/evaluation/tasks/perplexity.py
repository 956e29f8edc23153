"""Perplexity over a fixed set of clips: token-weighted, one number per component, in nats.

`ppl = exp(sum of NLL / number of tokens)` over the whole set. The training weights (100 on the semantic codebook, 0.5
on text padding) play no part, so runs with different weights can be compared.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise, product
from typing import Any, Protocol

import numpy as np
import torch
from moshi.models.lm import LMModel

from ttt_moshi.evaluation.errors import EvaluationError
from ttt_moshi.evaluation.scoring.engine import ShouldStop, never
from ttt_moshi.evaluation.scoring.quiet import undisturbed
from ttt_moshi.evaluation.scoring.ranks import Ranks
from ttt_moshi.evaluation.scoring.reductions import channel_group
from ttt_moshi.evaluation.scoring.score import Scores, score
from ttt_moshi.evaluation.statistics import Interval, bootstrap_ratio
from ttt_moshi.frames import frames_to_seconds

FIRST_BIN = 8  # frames
GROUPS = ("text", "semantic", "acoustic")


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
class Bin:
    """Tokens of one group in frames [start, stop) of the clips."""

    start: int
    stop: int
    tokens: int
    nll: float
    ci95: Interval


@dataclass
class Perplexity:
    """The result of one pass. A kind of token that does not occur in the set is missing from `components`."""

    components: dict[str, Component]
    bits_per_second: float  # of Moshi's audio
    seconds: float
    clips: int
    data_digest: str
    positions: dict[str, list[Bin]]  # by group: text, semantic, acoustic; bins without tokens are left out
    samples: list[dict[str, Any]]  # one per clip: `id`, `score` = - mean audio NLL, `nll` and `tokens` by component


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


def position_edges(frames: int) -> list[int]:
    """Edges of the position bins of a clip: 0, 8, 16, 32, ... up to the first that is not below `frames`."""
    edges = [0, FIRST_BIN]
    while edges[-1] < frames:
        edges.append(2 * edges[-1])
    return edges


def position_sums(scores: Scores) -> torch.Tensor:
    """Like `clip_sums` for every group of channels and bin of positions: float64 [B, groups * bins, 2]."""
    values = torch.where(scores.mask, scores.nll, 0.0).double()
    columns = []
    for group in GROUPS:
        channels = channel_group(group, scores.nll.shape[1])
        for start, stop in pairwise(position_edges(scores.nll.shape[2])):
            total, count = (x[:, channels, start:stop].sum(dim=(1, 2)).double() for x in (values, scores.mask))
            columns.append(torch.stack([total, count], dim=-1))
    return torch.stack(columns, dim=1)


def evaluate_perplexity(
    model: LMModel,
    clips: ClipSet,
    batch_size: int = 1,
    rank: int = 0,
    world_size: int = 1,
    progress: Callable[[int, int], None] | None = None,
    should_stop: ShouldStop = never,
) -> Perplexity:
    """Perplexity of `model` over all of `clips`, from the first clip, whatever was evaluated before.

    The model may be in training, sharded (FSDP2) or streaming: mode, random generators and streaming state are put
    back afterwards. With `world_size` ranks each one scores every `world_size`-th batch, all ranks make the same
    number of forward passes (sharded models need that), and all return the same result. `progress(done, total)`
    counts this rank's batches.

    Raises `EvaluationError` when the set is empty or a prediction is not finite, and `EvaluationStopped` on all ranks
    when `should_stop` of one of them says so between two batches.
    """
    if not len(clips):
        raise EvaluationError("the evaluation set holds no clips, so there is no perplexity")
    # One row per clip, filled by the rank that scored it; the other ranks add exact zeros.
    table = torch.zeros(0)
    failure = None
    steps = math.ceil(len(clips) / (batch_size * world_size))
    with undisturbed(model):
        for step, batch in enumerate(clips.batches(batch_size, rank, world_size)):
            Ranks(rank, world_size).stop_if(should_stop())
            codes = batch.codes.to(model.device)
            try:
                scores = score(model, codes, batch.valid_frames, batch.prefix_lengths)
            except EvaluationError as error:
                if world_size == 1:
                    raise
                # The other ranks go on, and need this one in every forward pass.
                failure = failure or error
                continue
            rows = torch.cat([clip_sums(model, codes, scores), position_sums(scores)], dim=1).cpu()
            if not len(table):
                table = torch.zeros(len(clips), *rows.shape[1:], dtype=torch.float64)
            start = (step * world_size + rank) * batch_size
            if start < len(clips):
                table[start : start + len(rows)] = rows
            if progress is not None:
                progress(step + 1, steps)
    Ranks(rank, world_size).together(lambda: _raise_if(failure))
    if world_size > 1:
        shared = table.to(model.device)
        torch.distributed.all_reduce(shared)
        table = shared.cpu()
    return _summarise(component_names(model.dep_q), table.numpy(), clips)


def _raise_if(failure: EvaluationError | None) -> None:
    if failure is not None:
        raise failure


def _summarise(names: list[str], table: np.ndarray, clips: ClipSet) -> Perplexity:
    components = {}
    for i, name in enumerate(names):
        sums, counts = table[:, i, 0], table[:, i, 1]
        tokens = int(counts.sum())
        if tokens:
            # fsum is exact, so neither the order of clips nor the number of ranks matters.
            components[name] = Component(tokens, math.fsum(sums) / tokens, bootstrap_ratio(sums, counts))
    seconds = frames_to_seconds(float(table[:, names.index("semantic"), 1].sum()))
    if "audio" not in components:
        raise EvaluationError(
            "the evaluation set holds no audio token of Moshi's own stream, so there is no perplexity"
        )
    audio_nats = math.fsum(table[:, names.index("audio"), 0])
    samples = [_sample(name, names, row) for name, row in zip((clip.id for clip in clips.clips), table, strict=True)]
    bits = audio_nats / math.log(2) / seconds
    positions = _positions(table[:, len(names) :])
    return Perplexity(components, bits, seconds, len(table), clips.fingerprint, positions, samples)


def _positions(table: np.ndarray) -> dict[str, list[Bin]]:
    """The bins of every group from their sums and counts [N, groups * bins, 2]."""
    count = table.shape[1] // len(GROUPS)
    edges = [0, *(FIRST_BIN * 2**i for i in range(count))]
    found: dict[str, list[Bin]] = {}
    for i, (group, (start, stop)) in enumerate(product(GROUPS, pairwise(edges))):
        sums, counts = table[:, i, 0], table[:, i, 1]
        if tokens := int(counts.sum()):
            bin = Bin(start, stop, tokens, math.fsum(sums) / tokens, bootstrap_ratio(sums, counts))
            found.setdefault(group, []).append(bin)
    return found


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
        "positions": {
            group: [asdict(b) | {"ci95": list(b.ci95)} for b in bins] for group, bins in result.positions.items()
        },
    }
