"""The block step against the per-frame definition, in every inner network and recipe, cut anywhere."""

from __future__ import annotations

import pytest
import torch

from ttt_moshi.ttt.block import Frames
from ttt_moshi.ttt.reference import reference_scan
from ttt_moshi.ttt.sequence import run_from
from ttt_moshi.ttt.state import Memory, Rows, Weights

RECIPES = [(inner, biases, reciprocal) for inner in ("mlp", "linear") for biases in (0, 1) for reciprocal in (0, 1)]


def oracle(frames, memory, norm, rule, create_graph=False):
    used = [w for w in memory.weights if w is not None]
    return reference_scan(
        *frames, used, *norm, rule.mini_batch_size, rule.update_biases, rule.reciprocal_positions, create_graph
    )


@pytest.mark.parametrize(("inner", "biases", "reciprocal"), RECIPES)
@pytest.mark.parametrize(("dtype", "bar"), [(torch.float64, 1e-12), (torch.float32, 1e-6)])
def test_block_steps_are_the_definition(make_problem, by_block_steps, max_rel, inner, biases, reciprocal, dtype, bar):
    settings = {"T": 16, "inner": inner, "update_biases": bool(biases), "reciprocal": bool(reciprocal)}
    expected, expected_weights = oracle(*make_problem(**settings))
    out, after = by_block_steps(*make_problem(**settings, dtype=dtype))
    assert out.dtype == dtype
    assert max_rel(out.double(), expected) <= bar
    for actual, wanted in zip([w for w in after.weights if w is not None], expected_weights, strict=True):
        assert max_rel(actual.double(), wanted) <= bar


@pytest.mark.parametrize("inner", ["mlp", "linear"])
def test_gradients_are_those_of_the_definition(make_problem, by_block_steps, max_rel, inner):
    frames, memory, norm, rule = make_problem(T=11, inner=inner, grad=True)
    leaves = [*frames, *(w for w in memory.weights if w is not None), *norm]
    probe = torch.randn(frames.q.shape, dtype=torch.float64)
    expected, _ = oracle(frames, memory, norm, rule, create_graph=True)
    wanted = torch.autograd.grad((expected * probe).sum(), leaves)
    out, _ = by_block_steps(frames, memory, norm, rule)
    for actual, gradient in zip(torch.autograd.grad((out * probe).sum(), leaves), wanted, strict=True):
        assert max_rel(actual, gradient) <= 1e-12


def one_stream(memory, b):
    def cut(part):
        return type(part)(*(None if t is None else t[b : b + 1] for t in part))

    return Memory(cut(memory.weights), cut(memory.rows), memory.phase[b : b + 1])


def side_by_side(memories):
    def join(parts):
        return [None if same[0] is None else torch.cat(same) for same in zip(*parts, strict=True)]

    weights, rows = Weights(*join([m.weights for m in memories])), Rows(*join([m.rows for m in memories]))
    return Memory(weights, rows, torch.cat([m.phase for m in memories]))


@pytest.mark.parametrize("seed", range(8))
def test_random_cuts_from_random_phases(make_problem, by_block_steps, max_rel, seed):
    """In 128 batches of 4 streams, 2 cuts each: 1024 random splits, every stream at a phase of its own."""
    generator = torch.Generator().manual_seed(seed)

    def pick(low, high):
        return int(torch.randint(low, high, (), generator=generator))

    for case in range(16):
        T, K, B = pick(1, 30), pick(1, 8), 4
        inner, reciprocal = ("mlp", "linear")[case % 2], case % 3 == 0
        frames, memory, norm, rule = make_problem(
            B=B, T=T + K, K=K, f=4, inner=inner, seed=100 * seed + case, reciprocal=reciprocal
        )
        starts = [pick(0, K) for _ in range(B)]
        solo, begun = [], []
        for b, start in enumerate(starts):
            own = Frames(*(t[b : b + 1, :, : start + T] for t in frames))
            solo.append(by_block_steps(own, one_stream(memory, b), norm, rule))
            before = one_stream(memory, b)
            begun.append(by_block_steps(own.between(0, start), before, norm, rule)[1] if start else before)
        here = Frames(*(torch.stack([t[b, :, start : start + T] for b, start in enumerate(starts)]) for t in frames))
        for _ in range(2):
            now, done, outputs = side_by_side(begun), 0, []
            while done < T:
                size = pick(1, T - done + 1)
                out, now = run_from(here.between(done, done + size), now, norm, rule)
                outputs.append(out)
                done += size
            got = torch.cat(outputs, dim=2)
            for b, start in enumerate(starts):
                out, after = solo[b]
                assert max_rel(got[b], out[0, :, start:]) <= 1e-12
                assert int(now.phase[b]) == int(after.phase)
                for actual, wanted in zip(now.weights, after.weights, strict=True):
                    if wanted is not None:
                        assert max_rel(actual[b], wanted[0]) <= 1e-12
