"""A memory that fades: the definition, the fast scan, streaming, and how long half of it lasts."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from ttt_moshi.ttt import TTTConfig, TTTLayer
from ttt_moshi.ttt.block import block_step
from ttt_moshi.ttt.reference import reference_scan
from ttt_moshi.ttt.scan import scan
from ttt_moshi.ttt.sequence import run_fresh, run_from
from ttt_moshi.ttt.state import Weights

RECIPES = [(inner, biases, reciprocal) for inner in ("mlp", "linear") for biases in (0, 1) for reciprocal in (0, 1)]


def fading(problem, half_lives, grad=False):
    """The problem with a memory that fades to weights of its own, equal for all streams."""
    frames, memory, norm, rule = problem
    torch.manual_seed(7)
    start = Weights(*(None if w is None else (w[0].detach() + 0.1).requires_grad_(grad) for w in memory.weights))
    return frames, memory._replace(start=start), norm, dataclasses.replace(rule, half_lives=half_lives)


def left_after(frames, half_lives, heads):
    """Share of each head, by hand: half-lives are a geometric series."""
    shortest, longest = half_lives
    ratio = longest / shortest
    lives = [shortest * ratio ** (h / (heads - 1)) for h in range(heads)]
    return torch.tensor([0.5 ** (frames / life) for life in lives], dtype=torch.float64)[:, None, None]


def leaves_of(frames, memory, norm):
    return [*frames, *(w for w in (*memory.weights, *memory.start) if w is not None), *norm]


@pytest.mark.parametrize(("inner", "biases", "reciprocal"), RECIPES)
def test_block_steps_are_the_definition(make_problem, by_block_steps, max_rel, inner, biases, reciprocal):
    frames, memory, norm, rule = fading(
        make_problem(T=23, K=4, inner=inner, update_biases=bool(biases), reciprocal=bool(reciprocal), grad=True),
        half_lives=(8.0, 20.0),
        grad=True,
    )
    retain = left_after(4, (8.0, 20.0), heads=2)
    leaves = leaves_of(frames, memory, norm)
    weights, start = ([w for w in side if w is not None] for side in (memory.weights, memory.start))
    expected, _ = reference_scan(
        *frames, weights, *norm, 4, bool(biases), bool(reciprocal), create_graph=True, retain=retain, start=start
    )
    out, _ = by_block_steps(frames, memory, norm, rule)
    assert max_rel(out, expected) <= 1e-12
    probe = torch.randn_like(expected)
    wanted = torch.autograd.grad((expected * probe).sum(), leaves, allow_unused=True, materialize_grads=True)
    for actual, value in zip(
        torch.autograd.grad((out * probe).sum(), leaves, allow_unused=True, materialize_grads=True), wanted, strict=True
    ):
        assert max_rel(actual, value) <= 1e-10
    plain, _ = by_block_steps(frames, memory._replace(start=None), norm, dataclasses.replace(rule, half_lives=None))
    assert max_rel(plain, expected) > 1e-3


# The weights can be found backwards, and only step by step; one half-life, and another in every head.
@pytest.mark.parametrize("half_lives", [(54.0, 54.0), (54.0, 500.0), (4 / 3, 4 / 3), (4 / 3, 100.0)])
@pytest.mark.parametrize("policy", ["rebuild", "checkpoint"])
@pytest.mark.parametrize(("inner", "biases", "reciprocal"), RECIPES)
def test_the_scan_is_the_block_steps(
    make_problem, by_block_steps, max_rel, inner, biases, reciprocal, policy, half_lives
):
    frames, memory, norm, rule = fading(
        make_problem(T=28, K=4, H=5, inner=inner, update_biases=bool(biases), reciprocal=bool(reciprocal), grad=True),
        half_lives,
        grad=True,
    )
    leaves = leaves_of(frames, memory, norm)
    torch.manual_seed(5)
    out, after = by_block_steps(frames, memory, norm, rule)
    expected = [out, *(w for w in after.weights if w is not None)]
    probes = [torch.randn_like(t) for t in expected]

    def gradients(tensors):
        total = sum((t * p).sum() for t, p in zip(tensors, probes, strict=True))
        return torch.autograd.grad(total, leaves, allow_unused=True, materialize_grads=True)

    wanted = gradients(expected)
    out, weights = scan(frames, memory.weights, norm, rule, policy, memory.start)
    got = [out, *(w for w in weights if w is not None)]
    for actual, value in zip(got, expected, strict=True):
        assert max_rel(actual, value) <= 1e-12
    for actual, value in zip(gradients(got), wanted, strict=True):
        assert max_rel(actual, value) <= 1e-10


@pytest.mark.parametrize("inner", ["mlp", "linear"])
def test_frame_by_frame_and_from_any_phase(make_problem, max_rel, inner):
    frames, memory, norm, rule = fading(make_problem(T=30, K=4, inner=inner), half_lives=(12.0, 60.0))
    expected, end = run_fresh(frames, memory, norm, rule)
    first, now = run_fresh(frames.between(0, 3), memory, norm, rule)
    second, now = run_from(frames.between(3, 30), now, norm, rule)
    assert (
        max_rel(torch.cat([first, second], 2), expected) <= 1e-12 and max_rel(now.weights.W1, end.weights.W1) <= 1e-12
    )
    streamed, now = [], memory._replace(weights=Weights(*(None if w is None else w.clone() for w in memory.weights)))
    for t in range(30):
        out, now = block_step(frames.between(t, t + 1), now, norm, rule, in_place=True)
        streamed.append(out)
    assert max_rel(torch.cat(streamed, 2), expected) <= 1e-12
    assert max_rel(now.weights.W1, end.weights.W1) <= 1e-12


def test_other_streams_do_not_fade(make_problem):
    frames, memory, norm, rule = fading(make_problem(B=2, T=8, K=4), half_lives=(4.0, 4.0))
    take = torch.tensor([4, 0])
    _, after = block_step(frames.between(0, 4), memory, norm, rule, take=take)
    assert torch.equal(after.weights.W1[1], memory.weights.W1[1])
    assert not torch.equal(after.weights.W1[0], memory.weights.W1[0])


@pytest.mark.parametrize("preset", ["speech", "paper_lm"])
def test_half_of_what_was_written_is_left_after_half_a_life(preset):
    """Once the step sizes are zero nothing is written any more, and the distance halves every 32 frames."""
    config = TTTConfig(dim=32, num_heads=2, mini_batch_size=8, preset=preset, half_life_frames=32)
    torch.manual_seed(0)
    layer = TTTLayer(config)
    state = layer.init_state(1)
    start = layer.init_state(1)
    with torch.no_grad():
        _, state = layer(torch.randn(1, 64, 32), state)
        written = {name: state.tensors()[name] - start.tensors()[name] for name in ("W1", "W2")}
        layer.inner.learnable_ttt_lr_bias.fill_(-torch.inf)
        for frames in (32, 64):
            state = layer(torch.randn(1, 32, 32), state)[1]
            for name, before in written.items():
                left = state.tensors()[name] - start.tensors()[name]
                torch.testing.assert_close(left, before * 0.5 ** (frames / 32), rtol=1e-4, atol=1e-6)


def test_each_head_has_a_half_life_of_its_own():
    """Three heads from 16 to 64 frames: 16, 32 and 64."""
    torch.manual_seed(0)
    layer = TTTLayer(TTTConfig(dim=48, num_heads=3, mini_batch_size=8, half_life_frames=[16, 64]))
    start, (_, state) = layer.init_state(1).W1, layer(torch.randn(1, 64, 48))
    with torch.no_grad():
        layer.inner.learnable_ttt_lr_bias.fill_(-torch.inf)
        after = layer(torch.randn(1, 64, 48), state)[1]
        left = (after.W1 - start).norm(dim=(2, 3)) / (state.W1 - start).norm(dim=(2, 3))
    torch.testing.assert_close(left[0], torch.tensor([0.5**4, 0.5**2, 0.5]), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("half_life", [10, (4, 30)])
@pytest.mark.parametrize("inner", ["mlp", "linear"])
def test_a_stream_with_resets_is_the_layer_on_whole_samples(max_rel, inner, half_life):
    config = TTTConfig(dim=32, num_heads=2, mini_batch_size=4, inner=inner, half_life_frames=half_life)
    torch.manual_seed(0)
    layer = TTTLayer(config)
    torch.nn.init.normal_(layer.wo.weight, std=0.2)
    x = torch.randn(2, 45, 32)
    state = layer.init_state(2)
    with torch.no_grad():
        streamed = []
        for t in range(45):
            if t == 13:
                state.reset_(torch.tensor([False, True]), layer.init_state(1))
            streamed.append(layer.stream(x[:, t : t + 1], state))
        expected = layer(x)[0]
        expected[1] = torch.cat([layer(x[1:, :13])[0], layer(x[1:, 13:])[0]], dim=1)[0]
    assert max_rel(torch.cat(streamed, dim=1), expected) <= 2e-6


def test_impossible_half_lives_are_refused():
    for value in (
        0.0,
        -1.0,
        float("inf"),
        float("nan"),
        5.3,
        (5.3, 64),
        (64, 16),
        (16, float("inf")),
        (16,),
        (16, 32, 64),
    ):
        with pytest.raises(ValueError, match="half_life_frames"):
            TTTConfig(dim=32, num_heads=2, half_life_frames=value)
