"""Small official models and recordings made of random tokens."""

import os
from dataclasses import dataclass

# Tests that call the official modules directly would wait for torch.compile.
os.environ["NO_TORCH_COMPILE"] = "1"

import pytest
import torch
from moshi.models.lm import LMModel

DELAYS = [0] + [0] + [1] * 7 + [0] + [1] * 7
CARD, TEXT_CARD = 24, 40


def build_model(seed: int = 0, **changes) -> LMModel:
    """An official LMModel of Moshi's 17-channel geometry, a few thousand times smaller."""
    torch.manual_seed(seed)
    options = {
        "delays": DELAYS,
        "n_q": 16,
        "dep_q": 8,
        "card": CARD,
        "text_card": TEXT_CARD,
        "dim": 32,
        "num_heads": 2,
        "num_layers": 2,
        "hidden_scale": 2,
        "context": 64,
        "norm": "rms_norm_f32",
        "gating": "silu",
        "positional_embedding": "rope",
        "depformer_dim": 16,
        "depformer_num_heads": 2,
        "depformer_num_layers": 1,
        "depformer_dim_feedforward": 32,
        "depformer_multi_linear": True,
        "depformer_pos_emb": "none",
        "depformer_weights_per_step": True,
    }
    return LMModel(**(options | changes)).eval()


def random_codes(batch: int, frames: int, seed: int = 0) -> torch.Tensor:
    """codes [batch, 17, frames]; about half of the text is PAD."""
    g = torch.Generator().manual_seed(seed)
    audio = torch.randint(0, CARD, (batch, 16, frames), generator=g)
    text = torch.randint(0, TEXT_CARD, (batch, 1, frames), generator=g)
    text = torch.where(torch.rand(text.shape, generator=g) < 0.5, torch.full_like(text, 3), text)
    return torch.cat([text, audio], dim=1)


@dataclass
class Clips:
    """A fixed evaluation set held in memory: rows of codes [N, 17, T], padded with -1."""

    codes: torch.Tensor
    valid_frames: torch.Tensor
    prefix_lengths: torch.Tensor
    fingerprint: str = "clips"

    def __len__(self) -> int:
        return len(self.codes)

    def batch(self, start: int, size: int) -> "Clips":
        rows = slice(start, start + size)
        return Clips(self.codes[rows], self.valid_frames[rows], self.prefix_lengths[rows])

    @property
    def sample_ids(self) -> list[str]:
        return [f"clip{i}" for i in range(len(self))]


def make_clips(lengths: list[int], seed: int = 0) -> Clips:
    codes = random_codes(len(lengths), max(lengths), seed)
    for row, length in zip(codes, lengths, strict=True):
        row[:, length:] = -1
    return Clips(codes, torch.tensor(lengths), torch.zeros(len(lengths), dtype=torch.long))


@pytest.fixture(scope="session")
def model() -> LMModel:
    return build_model()


@pytest.fixture
def new_model():
    return build_model


@pytest.fixture
def new_codes():
    return random_codes


@pytest.fixture
def new_clips():
    return make_clips
