"""The inner-loss curves against a loop that does what the formula says, one frame and one weight at a time."""

import numpy as np
import pytest
import torch

from ttt_moshi.evaluation import EvaluationError
from ttt_moshi.evaluation.examples import Example
from ttt_moshi.evaluation.scoring.scorer import ModelScorer
from ttt_moshi.evaluation.tasks.inner_loss import InnerLoss, inner_losses


def by_definition(ttt, x: torch.Tensor) -> np.ndarray:
    """l(W0), l(W at the mini-batch's start) and l(W after the frame) for x [1, T, D], with autograd's gradients."""
    config, inner = ttt.config, ttt.inner
    H, f, K = config.num_heads, config.head_dim, config.mini_batch_size
    normed = x[0] / torch.sqrt((x[0] ** 2).mean(-1, keepdim=True) + 1e-6)
    k, v = ((normed @ p.weight.T + p.bias).view(-1, H, f) for p in (ttt.wk, ttt.wv))
    if config.recipe.qk_norm == "rms":
        k = k / torch.sqrt((k**2).mean(-1, keepdim=True) + 1e-6)
    out = np.zeros((3, x.shape[1]))
    for h in range(H):
        names = ["W1", "b1"] + (["W2", "b2"] if inner.W2 is not None else [])
        initial = [getattr(inner, n)[h].detach().clone() for n in names]
        gamma, beta = inner.ttt_norm_weight[h], inner.ttt_norm_bias[h]

        def loss(weights, t, h=h, gamma=gamma, beta=beta):
            z = k[t, h][None] @ weights[0] + weights[1]
            if len(weights) == 4:
                z = torch.nn.functional.gelu(z, approximate="tanh") @ weights[2] + weights[3]
            z = (z - z.mean()) / torch.sqrt(z.var(correction=0) + 1e-6) * gamma + beta
            target = v[t, h] - k[t, h]
            if config.recipe.normalised_target:
                target = gamma * (target - target.mean()) / torch.sqrt(target.var(correction=0) + 1e-6) + beta
            return 0.5 * ((z - target) ** 2).sum()

        start, current = initial, initial
        for t in range(x.shape[1]):
            if t % K == 0:
                start, sums = current, [torch.zeros_like(w) for w in initial]
            leaves = [w.detach().requires_grad_() for w in start]
            before = loss(leaves, t)
            gradients = torch.autograd.grad(before, leaves)
            gate = torch.sigmoid(normed[t] @ inner.learnable_ttt_lr_weight[h, 0] + inner.learnable_ttt_lr_bias[h, 0])
            sums = [s + config.rate_scale * gate.item() * g for s, g in zip(sums, gradients, strict=True)]
            tau = 1 / (t % K + 1) if config.recipe.reciprocal_positions else 1.0
            current = [
                w if i % 2 and not config.recipe.update_biases else w - tau * s
                for i, (w, s) in enumerate(zip(start, sums, strict=True))
            ]
            out[:, t] += [loss(initial, t).item() / H, before.item() / H, loss(current, t).item() / H]
    return out


def test_curves_of_the_delta_rule(new_ttt_model, new_codes):
    """At the start all is as it was; each frame lowers its own loss; what was heard before helps when it returns."""
    model = new_ttt_model("delta", "speech")
    codes = new_codes(1, 14)
    for layer in inner_losses(ModelScorer(model, "s"), codes.repeat(1, 1, 2)).values():
        start, before, after = layer
        assert layer.shape == (3, 28) and start[0] == pytest.approx(before[0], rel=1e-4)
        assert (after < before).all()
        assert before[15:].mean() < 0.9 * start[15:].mean()


@pytest.mark.parametrize(("inner", "preset"), [("mlp", "speech"), ("linear", "speech")])
def test_curves_equal_the_definition(new_ttt_model, new_codes, inner, preset):
    model = new_ttt_model(inner, preset)
    codes = new_codes(1, 14)
    seen = {}
    hooks = [
        model.transformer.layers[i].ttt.register_forward_pre_hook(
            lambda module, args, i=i: seen.update({i: args[0].detach()})
        )
        for i in model.ttt_layers
    ]
    found = inner_losses(ModelScorer(model, "s"), codes)
    for hook in hooks:
        hook.remove()
    for i in model.ttt_layers:
        expected = by_definition(model.transformer.layers[i].ttt, seen[i].float())
        np.testing.assert_allclose(found[i], expected, rtol=2e-4)
        assert (found[i][2] < found[i][1]).mean() > 0.9  # writing a frame makes that frame easier


def test_initial_weights_are_those_of_the_parameters_whatever_was_heard_before(new_ttt_model, new_codes):
    model = new_ttt_model()
    codes = new_codes(1, 12)
    first = inner_losses(ModelScorer(model, "s"), codes)
    inner_losses(ModelScorer(model, "s"), new_codes(1, 12, seed=8))
    again = inner_losses(ModelScorer(model, "s"), codes)
    for i in first:
        np.testing.assert_array_equal(first[i], again[i])
        assert (first[i][0, :4] == first[i][1, :4]).all()  # nothing written before the first mini-batch ends


def test_the_entry_averages_over_recordings(new_ttt_model, oracle, toy, tmp_path):
    model = new_ttt_model()
    engine = oracle()
    engine.scorer = ModelScorer(model, "s")
    examples = [
        Example.file(f"e{i}", toy(tmp_path / f"{i}.wav", np.random.default_rng(i).integers(0, 20, n).tolist()))
        for i, n in enumerate((30, 24))
    ]
    outcome = InnerLoss(examples).run(engine)
    entry = outcome.entry
    assert entry["frames"] == 24 and entry["n"] == 2 and set(entry["layers"]) == {"0", "1"}
    one = entry["layers"]["0"]
    assert len(one["start"]) == len(one["after"]) == 2  # 24 frames, smoothed by ten
    gains = [one["mean"]["before"] - one["mean"]["start"] for one in entry["layers"].values()]
    assert entry["value"] == pytest.approx(np.mean(gains))


def test_a_model_without_a_memory_has_no_curves(model, oracle, toy, tmp_path):
    engine = oracle()
    engine.scorer = ModelScorer(model, "s")
    with pytest.raises(EvaluationError, match="no TTT layers"):
        InnerLoss([Example.file("e", toy(tmp_path / "e.wav", [1] * 9))]).run(engine)
