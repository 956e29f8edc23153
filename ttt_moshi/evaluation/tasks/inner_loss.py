"""Does the memory learn? The inner loss of every frame under three sets of fast weights, for each TTT layer.

    start   l(W0; x_t)     the trained initial weights, never updated
    before  l(W-; x_t)     the weights at the start of the frame's mini-batch
    after   l(Wt; x_t)     the weights after this frame's own write

with l = 0.5 |LN(g_W(k)) - target|^2, averaged over heads and recordings (figure 5 of arXiv 2407.04620). A memory that
works has after < before, and before < start with growing t. All three are taken on the same inputs; W0 comes from the
parameters, and no parameter is written.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ttt_moshi.evaluation.controls import Controls
from ttt_moshi.evaluation.errors import EvaluationError
from ttt_moshi.evaluation.examples import Example
from ttt_moshi.evaluation.outcome import Outcome
from ttt_moshi.evaluation.scoring.engine import Engine
from ttt_moshi.evaluation.scoring.recordings import as_batch
from ttt_moshi.evaluation.scoring.score import eager_on_cpu
from ttt_moshi.evaluation.scoring.scorer import ModelScorer
from ttt_moshi.evaluation.statistics import mean_and_interval
from ttt_moshi.moshi import TTTMoshi
from ttt_moshi.ttt.delta_network import DeltaNetwork
from ttt_moshi.ttt.functional import gelu, layer_norm, standardise
from ttt_moshi.ttt.inner import InnerNetwork
from ttt_moshi.ttt.mini_batch import MiniBatchNetwork

CURVES = ("start", "before", "after")
SMOOTHING = 10  # frames, as in the paper's figure


@dataclass(frozen=True)
class InnerLoss:
    """The three curves over the given recordings, all cut to the length of the shortest."""

    examples: list[Example]
    name: str = "inner"

    def run(self, engine: Engine) -> Outcome:
        scorer = engine.scorer if isinstance(engine.scorer, ModelScorer) else None
        if scorer is None or not isinstance(scorer.model, TTTMoshi) or not scorer.model.ttt_layers:
            raise EvaluationError("the model has no TTT layers, so it has no inner loss")
        engine.tokens.prepare(self.examples, engine.encoding(self.name), engine.ranks)
        sequences = [engine.tokens.tokens(example) for example in self.examples]
        frames = min(sequence.shape[-1] for sequence in sequences)
        # One recording at a time: what stays is three numbers a frame, what is computed is not small.
        per_recording = []
        for sequence in sequences:
            engine.stop_if_asked()
            per_recording.append(inner_losses(scorer, as_batch([sequence[:, :frames]])[0]))
        layers: dict[str, dict[str, Any]] = {}
        for layer in per_recording[0]:
            curves = np.stack([values[layer] for values in per_recording])  # [N, 3, T]
            layers[str(layer)] = {name: _smooth(curves[:, i].mean(axis=0)) for i, name in enumerate(CURVES)}
            layers[str(layer)]["mean"] = {name: float(curves[:, i].mean()) for i, name in enumerate(CURVES)}
        gains = np.array([np.mean([v[1] - v[0] for v in values.values()]) for values in per_recording])
        entry: dict[str, Any] = {
            "status": "ok",
            "metric": "inner loss at the start of the frame's mini-batch minus at the initial weights, mean of layers",
            "better": "lower",
            "chance": 0.0,
            **mean_and_interval(gains),
            "n": len(gains),
            "unit_of_n": "recordings",
            "frames": frames,
            "smoothing": SMOOTHING,
            "layers": layers,
        }
        samples = [{"id": e.id, "score": -float(gain)} for e, gain in zip(self.examples, gains, strict=True)]
        return Outcome(entry, samples, data_digest=engine.tokens.digest(self.examples))


def cannot_apply(controls: Controls) -> str | None:
    """Why the inner loss cannot be had with these options."""
    kind = controls.ttt.partition(":")[0]
    if kind == "off":
        return "`--ttt off` is the model without its memory, which then has no inner loss"
    if kind == "swapped":
        return f"`--ttt {controls.ttt}` gives a memory what another learned: its inner loss is of another recording"
    if controls.text == "sampled":
        return "`--text sampled` changes what is predicted; the inner loss is of what is heard"
    return None


def inner_losses(scorer: ModelScorer, codes: Tensor) -> dict[int, np.ndarray]:
    """For every TTT layer the curves `CURVES` of one recording, codes [1, n_q + 1, T]: float64 [3, T].

    The model runs as the scorer's options say.
    """
    model = scorer.model
    assert isinstance(model, TTTMoshi)
    heard: dict[int, list[tuple[Tensor, ...]]] = {i: [] for i in model.ttt_layers}
    inner: dict[int, Any] = {i: model.layers[i].ttt.inner for i in model.ttt_layers}  # type: ignore[union-attr]
    hooks = [module.register_forward_pre_hook(_listener(heard[i])) for i, module in inner.items()]
    try:
        scorer.score(codes, torch.tensor([codes.shape[-1]]))
    finally:
        for hook in hooks:
            hook.remove()  # the curves run the same modules
    with scorer.as_asked(), eager_on_cpu(model):
        return {i: _curves(module, heard[i], scorer.options.reset_every) for i, module in inner.items()}


def _listener(calls: list[tuple[Tensor, ...]]) -> Any:
    def listen(module: torch.nn.Module, args: tuple[Any, ...]) -> None:
        x, _, k, v, valid = args[:5]
        calls.append((x, k, v, valid))

    return listen


def _curves(inner: InnerNetwork, calls: list[tuple[Tensor, ...]], reset_every: int | None) -> np.ndarray:
    """The losses of one recording under the scorer's options: float64 [3, T].

    Args:
        calls: x, k, v and valid of consecutive stretches of the recording.
        reset_every: frames after which the memory starts anew.
    """
    x, valid = (torch.cat([call[i] for call in calls], dim=1) for i in (0, 3))
    k, v = (torch.cat([call[i] for call in calls], dim=2) for i in (1, 2))
    T = x.shape[1]
    parts = []
    for start in range(0, T, reset_every or T):
        span = slice(start, start + (reset_every or T))
        x_, k_, v_, valid_ = x[:, span], k[:, :, span], v[:, :, span], valid[:, span]
        if isinstance(inner, DeltaNetwork):  # its loss is taken without a norm, and every frame is a mini-batch
            losses = torch.stack(inner.losses(x_, k_, v_))  # [3, B, H, T]
            parts.append(losses.mean(dim=(1, 2)))
        else:
            assert isinstance(inner, MiniBatchNetwork)
            parts += _of_mini_batches(inner, x_, k_, v_, valid_)
    return torch.cat(parts, dim=1).double().cpu().numpy()


def _of_mini_batches(inner: MiniBatchNetwork, x: Tensor, k: Tensor, v: Tensor, valid: Tensor) -> list[Tensor]:
    """Reads each mini-batch with its own keys as queries: a frame's output is then k + LN(g_Wt(k)). [3, <= K] each."""
    K = inner.config.mini_batch_size
    initial = state = inner.initial_state(len(x))
    gamma, beta = inner.ttt_norm_weight[:, None], inner.ttt_norm_bias[:, None]
    parts = []
    for first in range(0, x.shape[1], K):
        span = slice(first, first + K)
        assert state.phase is not None
        key, _ = inner._normalised(k[:, :, span], k[:, :, span], state.phase)
        target = v[:, :, span] - key
        if inner.config.recipe.normalised_target:
            target = gamma * standardise(target) + beta
        start, before = (_predict(inner, weights, key, gamma, beta) for weights in (initial, state))
        out, state = inner(x[:, span], k[:, :, span], k[:, :, span], v[:, :, span], valid[:, span], state)
        losses = [0.5 * (prediction - target).square().sum(-1) for prediction in (start, before, out - key)]
        parts.append(torch.stack([loss.mean(dim=(0, 1)) for loss in losses]))
    return parts


def _predict(inner: MiniBatchNetwork, state: Any, key: Tensor, gamma: Tensor, beta: Tensor) -> Tensor:
    """LN(g_W(key)) with the weights of a state at the start of a mini-batch."""
    z = key @ state.W1 + (inner.b1 if state.b1 is None else state.b1)
    if inner.W2 is not None:
        z = gelu(z) @ state.W2 + (inner.b2 if state.b2 is None else state.b2)
    return layer_norm(z, gamma, beta)


def _smooth(curve: np.ndarray) -> list[float]:
    """Means over consecutive windows of `SMOOTHING` frames; an incomplete last one is left out, if there is another."""
    count = max(1, len(curve) // SMOOTHING)
    return [float(part.mean()) for part in np.array_split(curve[: max(count * SMOOTHING, 1)], count)]
