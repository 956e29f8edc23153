"""Perplexity over a fixed set of clips: token-weighted, one number per component, in nats.

`ppl = exp(sum of NLL / number of tokens)` over the whole set. The training weights (100 on the semantic codebook, 0.5
on text padding) play no part, so runs with different weights can be compared.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from itertools import pairwise, product
from typing import Any

import numpy as np
from moshi.models.lm import LMModel

from ttt_moshi.evaluation.errors import EvaluationError
from ttt_moshi.evaluation.outcome import Outcome
from ttt_moshi.evaluation.recorded import Encode
from ttt_moshi.evaluation.scoring.clips import ClipSet, ClipTokens
from ttt_moshi.evaluation.scoring.engine import BatchPolicy, Engine, ShouldStop, never
from ttt_moshi.evaluation.scoring.nll_cache import NLLCache
from ttt_moshi.evaluation.scoring.ranks import Ranks
from ttt_moshi.evaluation.scoring.reductions import channel_group
from ttt_moshi.evaluation.scoring.scorer import ModelScorer
from ttt_moshi.evaluation.statistics import Interval, bootstrap_ratio
from ttt_moshi.frames import frames_to_seconds

FIRST_BIN = 8  # frames
OF_TEXT = "each text token is as uncertain as a choice among so many; lower is better"

GROUPS = ("text", "semantic", "acoustic")


@dataclass
class Component:
    """One kind of token: how many there were and how well they were predicted."""

    tokens: int
    nll: float  # nats per token
    ci95: Interval  # of nll; clips are the resampled units

    @property
    def ppl(self) -> float:
        return _exp(self.nll)


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
    bits_per_second: float  # of Moshi's audio, or of the text of a model that only writes
    seconds: float
    clips: int
    data_digest: str
    positions: dict[str, list[Bin]]  # by group: text, semantic, acoustic; bins without tokens are left out
    samples: list[dict[str, Any]]  # one per clip: `id`, `score` = - mean NLL of `main`, `nll` and `tokens` by component
    main: str = "audio"  # the component that the value of the task is of


def _exp(nll: float) -> float:
    """Raises `EvaluationError` where no float holds it."""
    try:
        return math.exp(nll)
    except OverflowError:
        raise EvaluationError(f"{nll:.0f} nats a token: the model has diverged") from None


def component_names(dep_q: int) -> list[str]:
    """Every component, in the order of the tables; a model that only writes has those of the text."""
    audio = ["semantic", *(f"acoustic_{k}" for k in range(2, dep_q + 1))] if dep_q else []
    return ["text_words", "text_pad", "text_epad", *audio, "text", *(["acoustic", "audio"] if dep_q else [])]


def main_component(dep_q: int) -> str:
    """What the value of the task is of; a model that only writes has no audio of its own."""
    return "audio" if dep_q else "text"


def component_masks(codes: np.ndarray, present: np.ndarray, padding: tuple[int, int]) -> dict[str, np.ndarray]:
    """For every component the tokens that belong to it: bool [1 + dep_q, T] each, a part of `present`.

    Args:
        codes: int [channels, T], text first.
        padding: ids of PAD and EPAD in the text.
    """
    pad, epad = codes[0] == padding[0], codes[0] == padding[1]

    def channels(start: int, stop: int) -> np.ndarray:
        chosen = np.zeros_like(present)
        chosen[start:stop] = present[start:stop]
        return chosen

    text = channels(0, 1)
    scored = len(present)
    masks = {
        "text_words": text & ~(pad | epad),
        "text_pad": text & pad,
        "text_epad": text & epad,
        "semantic": channels(1, 2),
        **{f"acoustic_{k}": channels(k, k + 1) for k in range(2, scored)},
        "text": text,
        "acoustic": channels(2, scored),
        "audio": channels(1, scored),
    }
    return {name: masks[name] for name in component_names(scored - 1)}


def clip_sums(codes: np.ndarray, nll: np.ndarray, padding: tuple[int, int]) -> np.ndarray:
    """Per component the sum of NLL and the number of tokens of one clip: float64 [components, 2]."""
    present = ~np.isnan(nll)
    values = np.where(present, nll, 0.0).astype(np.float64)
    masks = component_masks(codes, present, padding).values()
    return np.array([[(values * mask).sum(), mask.sum()] for mask in masks], np.float64)


def position_edges(frames: int) -> list[int]:
    """Edges of the position bins of a clip: 0, 8, 16, 32, ... up to the first that is not below `frames`."""
    edges = [0, FIRST_BIN]
    while edges[-1] < frames:
        edges.append(2 * edges[-1])
    return edges


def position_sums(nll: np.ndarray, edges: list[int]) -> np.ndarray:
    """Like `clip_sums` for every group of channels and bin of positions: float64 [groups * bins, 2]."""
    present = ~np.isnan(nll)
    values = np.where(present, nll, 0.0).astype(np.float64)
    rows = []
    for group in GROUPS:
        channels = channel_group(group, len(nll))
        for start, stop in pairwise(edges):
            rows.append([part[channels, start:stop].sum() for part in (values, present)])
    return np.array(rows, np.float64)


@dataclass(frozen=True)
class PerplexityTask:
    """Perplexity as a task among tasks.

    Args:
        tokens: the clips.
        encode: makes them quick to read, each rank its share, and reports its progress; None where they are.
    """

    tokens: ClipTokens
    encode: Encode | None = None
    name: str = "perplexity"

    def run(self, engine: Engine) -> Outcome:
        result = self.measure(engine)
        return Outcome(as_task(result), result.samples, data_digest=result.data_digest)

    def measure(self, engine: Engine) -> Perplexity:
        """Perplexity over all clips, from the first one, whatever was evaluated before.

        Raises `EvaluationError` when the set is empty or a prediction is not finite.
        """
        if self.encode is not None:
            self.encode(engine.ranks, engine.encoding(self.name))
        examples = engine.ranks.together(self.tokens.examples)
        nll = engine.reading(self.tokens).nll(examples, self.name)
        edges = position_edges(max((values.shape[1] for values in nll.values()), default=1))
        table = np.stack(
            [
                np.concatenate(
                    [
                        clip_sums(self.tokens.tokens(example), nll[example.id], engine.scorer.text_padding),
                        position_sums(nll[example.id], edges),
                    ]
                )
                for example in examples
            ]
        )
        return _summarise(
            engine.scorer.dep_q, table, [example.id for example in examples], self.tokens.digest(examples)
        )


def evaluate_perplexity(
    model: LMModel,
    clips: ClipSet,
    batch_size: int = 1,
    rank: int = 0,
    world_size: int = 1,
    progress: Callable[[int, int], None] | None = None,
    should_stop: ShouldStop = never,
) -> Perplexity:
    """Perplexity of `model` over all of `clips`, as recorded; the same as the task, for a model in training.

    The model may be in training, sharded (FSDP2) or streaming: mode, random generators and streaming state are put
    back afterwards. With `world_size` ranks each one scores every `world_size`-th batch, all ranks make the same
    number of forward passes (sharded models need that), and all return the same result. `progress(done, total)`
    counts frames.

    Raises `EvaluationError` when the set is empty or a prediction is not finite, and `EvaluationStopped` on all ranks
    when `should_stop` of one of them says so between two batches.
    """
    scorer = ModelScorer(model, "in training")
    tokens = ClipTokens(clips)
    report = None if progress is None else lambda what, done, total: progress(done, total)
    engine = Engine(
        scorer,
        tokens,
        NLLCache(None, scorer.identity),
        BatchPolicy(max_frames=2**31, max_rows=batch_size),
        report,
        Ranks(rank, world_size),
        should_stop,
    )
    return PerplexityTask(tokens).measure(engine)


def _summarise(dep_q: int, table: np.ndarray, ids: list[str], digest: str) -> Perplexity:
    """From the sums and counts [clips, components and bins, 2]."""
    names, main = component_names(dep_q), main_component(dep_q)
    components = {}
    for i, name in enumerate(names):
        sums, counts = table[:, i, 0], table[:, i, 1]
        tokens = int(counts.sum())
        if tokens:
            # fsum is exact, so neither the order of clips nor the number of ranks matters.
            components[name] = Component(tokens, math.fsum(sums) / tokens, bootstrap_ratio(sums, counts))
    if main not in components:
        raise EvaluationError(
            f"the evaluation set holds no {main} token of Moshi's own stream, so there is no perplexity"
        )
    a_token_a_frame = names.index("semantic" if main == "audio" else main)
    seconds = frames_to_seconds(float(table[:, a_token_a_frame, 1].sum()))
    samples = [_sample(id, names, row, main) for id, row in zip(ids, table, strict=True)]
    bits = math.fsum(table[:, names.index(main), 0]) / math.log(2) / seconds
    positions = _positions(table[:, len(names) :])
    return Perplexity(components, bits, seconds, len(table), digest, positions, samples, main)


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


def _sample(clip: str, names: list[str], row: np.ndarray, main: str) -> dict[str, Any]:
    nll = {name: row[i, 0] / row[i, 1] for i, name in enumerate(names) if row[i, 1]}
    tokens = {name: int(row[i, 1]) for i, name in enumerate(names) if row[i, 1]}
    return {"id": clip, "score": -nll[main] if main in nll else None, "nll": nll, "tokens": tokens}


def as_task(result: Perplexity) -> dict[str, Any]:
    """The result as an entry of `results.json`: its value is exp(mean NLL) over Moshi's audio tokens, or over the text
    where it has none."""
    main = result.components[result.main]
    of = "Moshi's audio tokens, all codebooks alike" if result.main == "audio" else "the text tokens, padding included"
    means = {} if result.main == "audio" else {"means": OF_TEXT}
    return {
        "status": "ok",
        **means,
        "metric": f"exp(mean NLL in nats) of {of}",
        "better": "lower",
        "value": main.ppl,
        "ci95": [_exp(main.ci95[0]), _exp(main.ci95[1])],
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
