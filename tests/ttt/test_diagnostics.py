"""Diagnostics against the definition, and their absence when nobody watches."""

from __future__ import annotations

import pytest
import torch

from ttt_moshi.ttt import StreamLosses, TTTConfig, TTTLayer, watch
from ttt_moshi.ttt.reference import predict, reference_scan


@pytest.mark.parametrize(("preset", "inner"), [("speech", "mlp"), ("video_causal", "linear"), ("paper_lm", "mlp")])
def test_figures_are_those_of_the_definition(make_layer, preset, inner):
    layer = make_layer(preset=preset, inner=inner)
    K, net = layer.config.mini_batch_size, layer.inner
    x = torch.randn(2, 3 * K, 32)
    with watch({"one": layer}) as found:
        y, _ = layer(x)
    (got,) = found["one"]
    # The frames of the call, taken from the module's own arguments.
    kept = []
    handle = net.register_forward_hook(lambda module, arguments, output: kept.append(arguments))
    layer(x)
    handle.remove()
    with torch.no_grad():
        frames, norm = net.frames(*kept[0][:5], torch.zeros(2, dtype=torch.int64))
        start = [w.expand(2, *w.shape) for w in (net.W1, net.b1, net.W2, net.b2) if w is not None]
        weights, before, after = start, [], []
        rule = net.rule
        for n in range(3):
            part = frames.between(n * K, (n + 1) * K)
            before.append((predict(weights, part.k, *norm) - part.target).square().mean((0, 2, 3)))
            _, weights = reference_scan(*part, weights, *norm, K, rule.update_biases, rule.reciprocal_positions)
            after.append((predict(weights, part.k, *norm) - part.target).square().mean((0, 2, 3)))
        initial = (predict(start, frames.k, *norm) - frames.target).square().mean((0, 2, 3))
    torch.testing.assert_close(got.loss_initial, initial, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(got.loss_before, torch.stack(before).mean(0), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(got.loss_after, torch.stack(after).mean(0), rtol=1e-4, atol=1e-6)
    moved = sum((w - s).square().sum((-2, -1)) for w, s in zip(weights[::2], start[::2], strict=True))
    size = sum(s.square().sum((-2, -1)) for s in start[::2])
    torch.testing.assert_close(got.drift, (moved / size).sqrt().mean(0).detach(), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(got.gate_contribution, ((y - x).norm() / x.norm()).detach())
    assert set(got.summary()) == set(vars(got))


def test_write_strength_is_the_share_of_the_residual_that_a_small_write_removes(make_layer):
    """By finite differences: every frame alone, as a mini-batch of one, at a hundredth of its step size."""
    layer = make_layer()
    net = layer.inner
    x = torch.randn(1, 6, 32)
    kept = []
    handle = net.register_forward_hook(lambda module, arguments, output: kept.append(arguments))
    with watch({"one": layer}) as found:
        layer(x)
    handle.remove()
    with torch.no_grad():
        frames, norm = net.frames(*kept[0][:5], torch.zeros(1, dtype=torch.int64))
        frames = type(frames)(*(t.double() for t in frames))
        norm = type(norm)(*(t.double() for t in norm))
        start = [w.double()[None] for w in (net.W1, net.b1, net.W2, net.b2)]
        shares = []
        for t in range(6):
            part = frames.between(t, t + 1)
            loss = (predict(start, part.k, *norm) - part.target).square().sum(-1)
            _, moved = reference_scan(part.q, part.k, part.target, part.lam * 1e-3, start, *norm, 1, False, False)
            shares.append((loss - (predict(moved, part.k, *norm) - part.target).square().sum(-1)) / loss / 2e-3)
    measured = torch.stack(shares).mean((0, 1, 3)).float()
    torch.testing.assert_close(found["one"][0].write_strength, measured, rtol=2e-2, atol=1e-6)


@pytest.mark.parametrize(("inner", "head_dim"), [("mlp", 32), ("mlp", 128), ("linear", 64)])
def test_one_frame_writes_about_its_whole_residual_at_base_lr_one(inner, head_dim):
    torch.manual_seed(0)
    layer = TTTLayer(TTTConfig(dim=4 * head_dim, num_heads=4, inner=inner))
    with watch({"one": layer}) as found:
        layer(torch.randn(2, 64, 4 * head_dim))
    assert 0.5 <= found["one"][0].summary()["write_strength"] <= 1.5


def test_nothing_is_left_behind(make_layer):
    layer = make_layer()
    x = torch.randn(2, 9, 32)
    y, _ = layer(x)
    with watch({"one": layer}) as found:
        watched, state = layer(x, prefix_lengths=torch.tensor([3, 0]))
        layer(x=x, state=state)
    assert len(found["one"]) == 2
    assert torch.equal(watched[1], y[1])
    for module in layer.modules():
        assert not module._forward_hooks
    layer(x)
    assert len(found["one"]) == 2


@pytest.mark.parametrize("inner", ["mlp", "linear", "delta"])
def test_streams_sum_up_their_losses(make_layer, inner):
    """Of two streams, one of which pauses: the losses of a whole call, each over the frames of its own since asked."""
    layer = make_layer(inner=inner)
    x = torch.randn(2, 12, 32)
    losses = StreamLosses({7: layer}, 2)
    state = layer.init_state(2)
    asked = []
    for t in range(12):
        layer.stream(x[:, t : t + 1], state, torch.tensor([True, t < 6]))
        if t == 7:
            asked.append(losses.take(1))
    asked += [losses.take(0), losses.take(1)]
    losses.pause()
    layer.stream(x[:, :1], state)
    assert bool(losses.take(0).isnan().all()) and losses.layers == (7,)
    for got, frames in zip(asked[:2], (x[1:, :6], x[:1]), strict=True):
        torch.testing.assert_close(got, expected_losses(layer, frames)[None], rtol=1e-4, atol=1e-6)
    assert bool(asked[2].isnan().all()), "it has heard nothing since"


def expected_losses(layer, x):
    """At the initial weights and at those that each frame finds, [2], in one call over all frames."""
    kept = []
    handle = layer.inner.register_forward_hook(lambda module, arguments, output: kept.append(arguments))
    with watch({"one": layer}) as found:
        layer(x)
    handle.remove()
    if layer.config.inner != "delta":
        return torch.stack([found["one"][0].loss_initial.mean(), found["one"][0].loss_before.mean()])
    normed, _, k, v = kept[0][:4]
    start, before, _ = layer.inner.losses(normed, k, v)  # half of the sums of squares
    return torch.stack([start.mean(), before.mean()]).detach() * 2 / layer.config.head_dim


def test_streams_look_at_every_few_frames_if_asked(make_layer):
    layer = make_layer()
    x = torch.randn(1, 9, 32)
    losses = StreamLosses({0: layer}, 1, every=4)
    state = layer.init_state(1)
    for t in range(9):
        layer.stream(x[:, t : t + 1], state)
    looked_at = torch.cat([expected_losses(layer, x[:, : t + 1])[None] * (t + 1) for t in range(9)])
    single = looked_at.diff(dim=0, prepend=looked_at.new_zeros(1, 2))
    torch.testing.assert_close(losses.take(0)[0], single[[0, 4, 8]].mean(0), rtol=1e-3, atol=1e-5)
