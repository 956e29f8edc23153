"""The fast scan against autograd through the block steps: values, final weights and every gradient."""

from __future__ import annotations

import pytest
import torch

from ttt_moshi.ttt.block import Frames, Norm
from ttt_moshi.ttt.functional import gelu, gelu_curvature, gelu_rate, gelu_sigmoid, gelu_slope
from ttt_moshi.ttt.scan import scan
from ttt_moshi.ttt.sequence import run_fresh, run_from
from ttt_moshi.ttt.state import Weights

RECIPES = [(inner, biases, reciprocal) for inner in ("mlp", "linear") for biases in (0, 1) for reciprocal in (0, 1)]


@pytest.mark.parametrize("policy", ["rebuild", "checkpoint"])
@pytest.mark.parametrize(("inner", "biases", "reciprocal"), RECIPES)
def test_values_and_all_gradients(make_problem, by_block_steps, max_rel, inner, biases, reciprocal, policy):
    frames, memory, norm, rule = make_problem(
        T=28, K=4, H=5, inner=inner, update_biases=bool(biases), reciprocal=bool(reciprocal), grad=True
    )
    leaves = [*frames, *(w for w in memory.weights if w is not None), *norm]
    torch.manual_seed(5)
    out, after = by_block_steps(frames, memory, norm, rule)
    expected = [out, *(w for w in after.weights if w is not None)]
    probes = [torch.randn_like(t) for t in expected]
    wanted = torch.autograd.grad(sum((t * p).sum() for t, p in zip(expected, probes, strict=True)), leaves)
    out, weights = scan(frames, memory.weights, norm, rule, policy)
    got = [out, *(w for w in weights if w is not None)]
    for actual, value in zip(got, expected, strict=True):
        assert max_rel(actual, value) <= 1e-12
    gradients = torch.autograd.grad(sum((t * p).sum() for t, p in zip(got, probes, strict=True)), leaves)
    for actual, value in zip(gradients, wanted, strict=True):
        assert max_rel(actual, value) <= 1e-10


def test_slopes_of_gelu():
    z = torch.linspace(-6, 6, 401, dtype=torch.float64, requires_grad=True)
    s, rate = gelu_sigmoid(z.detach()), gelu_rate(z.detach())
    value = z.detach() * s
    slope, curvature = gelu_slope(z.detach(), s, rate), gelu_curvature(z.detach(), value, s, rate)
    torch.testing.assert_close(value, gelu(z.detach()), rtol=1e-13, atol=1e-13)
    (first,) = torch.autograd.grad(gelu(z).sum(), z, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), z)
    torch.testing.assert_close(slope, first.detach(), rtol=1e-12, atol=1e-13)
    torch.testing.assert_close(curvature, second, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("policy", ["rebuild", "checkpoint"])
@pytest.mark.parametrize(("inner", "biases", "reciprocal"), RECIPES)
def test_gradients_of_ragged_lengths_from_any_phase(
    make_problem, by_block_steps, max_rel, inner, biases, reciprocal, policy
):
    """27 frames after 3 others: they fill a mini-batch, go on whole, leave a rest; the state carries gradients."""
    frames, memory, norm, rule = make_problem(
        T=30, K=4, inner=inner, update_biases=bool(biases), reciprocal=bool(reciprocal), grad=True
    )
    leaves = [*frames, *(w for w in memory.weights if w is not None), *norm]
    expected, _ = by_block_steps(frames, memory, norm, rule)
    probe = torch.randn(expected.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    wanted = torch.autograd.grad((expected * probe).sum(), leaves)
    first, between = run_fresh(frames.between(0, 3), memory, norm, rule, policy)
    second, _ = run_from(frames.between(3, 30), between, norm, rule, policy)
    out = torch.cat([first, second], dim=2)
    assert max_rel(out, expected) <= 1e-12
    for actual, value in zip(torch.autograd.grad((out * probe).sum(), leaves), wanted, strict=True):
        assert max_rel(actual, value) <= 1e-10


@pytest.mark.parametrize("inner", ["mlp", "linear"])
def test_gradcheck(make_problem, inner):
    frames, memory, norm, rule = make_problem(B=1, H=1, T=4, K=2, f=3, inner=inner, reciprocal=True, grad=True)
    weights = [w for w in memory.weights if w is not None]

    def run(*inputs):
        given = Weights(*inputs[4:-2], *[None] * (4 - len(weights)))
        out, after = scan(Frames(*inputs[:4]), given, Norm(*inputs[-2:]), rule)
        return out, *(w for w in after if w is not None)

    assert torch.autograd.gradcheck(run, [*frames, *weights, *norm])


def test_a_part_of_a_mini_batch_is_refused(make_problem):
    frames, memory, norm, rule = make_problem(T=7, K=4)
    with pytest.raises(ValueError, match="whole mini-batches of 4 frames, got 7"):
        scan(frames, memory.weights, norm, rule)
