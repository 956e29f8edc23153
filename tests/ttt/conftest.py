"""Layers and inputs that several test files of this folder build alike."""

from __future__ import annotations

import pytest
import torch

from ttt_moshi.ttt import TTTConfig, TTTLayer
from ttt_moshi.ttt.block import Frames, Norm, Rule, block_step
from ttt_moshi.ttt.state import Memory, Rows, Weights


@pytest.fixture
def make_layer():
    """A layer whose every tensor differs from its initial value (so that nothing is invisible by being zero)."""

    def make(seed: int = 0, **settings) -> TTTLayer:
        torch.manual_seed(seed)
        size = {} if settings.get("inner") == "delta" else {"mini_batch_size": 4}
        layer = TTTLayer(TTTConfig(**{"dim": 32, "num_heads": 2, **size, **settings}))
        with torch.no_grad():
            for parameter in layer.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.05)
        return layer

    return make


@pytest.fixture
def make_problem():
    """Random arguments of the scan functions: frames, memory (nothing heard), norm, rule."""

    def make(
        B=2,
        H=2,
        T=11,
        f=6,
        K=4,
        inner="mlp",
        update_biases=True,
        reciprocal=False,
        dtype=torch.float64,
        seed=0,
        grad=False,
    ):
        torch.manual_seed(seed)
        h = 4 * f if inner == "mlp" else f

        def random(*shape, scale=1.0):
            return (torch.randn(*shape, dtype=torch.float64) * scale).to(dtype).requires_grad_(grad)

        inputs = [random(B, H, T, f) for _ in range(3)]
        lam = (torch.rand(B, H, T, dtype=torch.float64) * (2.0 / h)).to(dtype).requires_grad_(grad)
        weights = Weights(
            random(B, H, f, h, scale=f**-0.5),
            random(B, H, 1, h, scale=0.1),
            random(B, H, h, f, scale=h**-0.5) if inner == "mlp" else None,
            random(B, H, 1, f, scale=0.1) if inner == "mlp" else None,
        )
        gamma = (1 + 0.2 * torch.randn(H, 1, f, dtype=torch.float64)).to(dtype).requires_grad_(grad)
        beta = random(H, 1, f, scale=0.2)
        rows = Rows(
            torch.zeros(B, H, K, f, dtype=dtype),
            torch.zeros(B, H, K, h, dtype=dtype) if inner == "mlp" else None,
            torch.zeros(B, H, K, h, dtype=dtype),
            torch.zeros(B, H, K, f, dtype=dtype) if inner == "mlp" else None,
            torch.zeros(B, H, K, dtype=dtype),
        )
        phase = torch.zeros(B, dtype=torch.int64)
        return (
            Frames(*inputs, lam),
            Memory(weights, rows, phase),
            Norm(gamma, beta),
            Rule(K, update_biases, reciprocal),
        )

    return make


@pytest.fixture
def max_rel():
    """Largest difference, relative to the largest expected magnitude."""

    def compare(actual: torch.Tensor, expected: torch.Tensor) -> float:
        actual, expected = actual.detach(), expected.detach()
        scale = expected.abs().max().clamp(min=torch.finfo(expected.dtype).tiny)
        return float((actual - expected).abs().max() / scale)

    return compare


@pytest.fixture
def by_block_steps():
    """All frames from the start of a mini-batch, through nothing but block steps: out and the new memory."""

    def run(frames, memory, norm, rule):
        outputs = []
        for start in range(0, frames.q.shape[2], rule.mini_batch_size):
            out, memory = block_step(frames.between(start, start + rule.mini_batch_size), memory, norm, rule)
            outputs.append(out)
        return torch.cat(outputs, dim=2), memory

    return run
