"""Random inputs of the scan, at the geometry of one layer of a 7B model unless told otherwise."""

from __future__ import annotations

import torch

from ttt_moshi.ttt.block import Frames, Norm, Rule
from ttt_moshi.ttt.state import Memory, Rows, Weights


def make(
    T: int, K: int, H: int = 32, f: int = 128, seed: int = 0, device: str = "cpu", grad: bool = True
) -> tuple[Frames, Memory, Norm, Rule]:
    """Frames, memory of nothing heard, norm and rule of the speech recipe, MLP, one stream."""
    generator = torch.Generator().manual_seed(seed)
    h = 4 * f

    def random(*shape: int, scale: float = 1.0) -> torch.Tensor:
        return (torch.randn(shape, generator=generator) * scale).to(device).requires_grad_(grad)

    def zeros(*shape: int) -> torch.Tensor:
        return torch.zeros(shape, device=device)

    lam = (torch.rand(1, H, T, generator=generator) * 2 / h).to(device).requires_grad_(grad)
    frames = Frames(random(1, H, T, f), random(1, H, T, f), random(1, H, T, f), lam)
    weights = Weights(
        random(1, H, f, h, scale=f**-0.5),
        random(1, H, 1, h, scale=0.0),
        random(1, H, h, f, scale=h**-0.5),
        random(1, H, 1, f, scale=0.0),
    )
    rows = Rows(zeros(1, H, K, f), zeros(1, H, K, h), zeros(1, H, K, h), zeros(1, H, K, f), zeros(1, H, K))
    gamma, beta = zeros(H, 1, f).add_(1).requires_grad_(grad), zeros(H, 1, f).requires_grad_(grad)
    phase = torch.zeros(1, dtype=torch.int64, device=device)
    return frames, Memory(weights, rows, phase), Norm(gamma, beta), Rule(K, False, False)


def leaves(frames: Frames, memory: Memory, norm: Norm) -> list[torch.Tensor]:
    """Everything that gets a gradient."""
    return [*frames, *(w for w in memory.weights if w is not None), *norm]
