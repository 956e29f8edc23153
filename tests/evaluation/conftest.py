"""Small official models and recordings made of random tokens."""

import importlib.util
import os
from dataclasses import dataclass

# Tests that call the official modules directly would wait for torch.compile.
os.environ["NO_TORCH_COMPILE"] = "1"

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
import torch
from moshi.models.lm import LMModel

from ttt_moshi.evaluation.examples import Example, Source
from ttt_moshi.evaluation.scoring.engine import BatchPolicy, Engine
from ttt_moshi.evaluation.scoring.nll_cache import NLLCache
from ttt_moshi.evaluation.scoring.score import Scores, valid_tokens
from ttt_moshi.moshi import TTTMoshi
from ttt_moshi.ttt import TTTConfig

DELAYS = [0] + [0] + [1] * 7 + [0] + [1] * 7
CARD, TEXT_CARD = 24, 40


def build_model(seed: int = 0, **changes) -> LMModel:
    """An official LMModel of Moshi's 17-channel geometry, a few thousand times smaller."""
    torch.manual_seed(seed)
    return LMModel(**(GEOMETRY | changes)).eval()


def build_ttt_model(inner: str = "mlp", preset: str = "speech", mini_batch_size: int = 4, seed: int = 0, **changes):
    """The same model with TTT layers that matter: `wo` and the gates are far from zero."""
    torch.manual_seed(seed)
    config = TTTConfig(dim=32, num_heads=2, mini_batch_size=mini_batch_size, inner=inner, preset=preset)
    model = TTTMoshi(ttt_layers=[0, 1], ttt_config=config, **(GEOMETRY | changes)).eval()
    for name, parameter in model.named_parameters():
        if ".ttt.wo." in name:
            torch.nn.init.normal_(parameter, std=0.3)
        elif "gating_alpha" in name:
            torch.nn.init.constant_(parameter, 0.5)
    return model


GEOMETRY = {
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

    def rows(self, start: int, size: int) -> "Clips":
        rows = slice(start, start + size)
        return Clips(self.codes[rows], self.valid_frames[rows], self.prefix_lengths[rows])

    def batches(self, batch_size: int, rank: int, world_size: int):
        for first in range(0, len(self), batch_size * world_size):
            mine = self.rows(first + rank * batch_size, batch_size)
            nothing = torch.zeros(1, dtype=torch.long)
            yield mine if len(mine) else Clips(torch.full_like(self.codes[:1], -1), nothing, nothing)

    @property
    def clips(self) -> list[SimpleNamespace]:
        return [SimpleNamespace(id=name) for name in self.sample_ids]

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
def new_ttt_model():
    return build_ttt_model


@pytest.fixture
def new_codes():
    return random_codes


@pytest.fixture
def new_clips():
    return make_clips


class ToyTokens:
    """Stands where `Recordings` stands, with a codec that a person can compute: a sound file holds one 16-bit sample
    per frame, and the codes of a frame whose sample is s are s, s + 1, ..., s + 7 (modulo the card)."""

    def __init__(self, card: int = CARD):
        self.card = card

    def prepare(self, examples, progress, ranks) -> None:
        """Nothing is to be made quick."""

    def tokens(self, example: Example) -> np.ndarray:
        parts = [self.samples(piece.source)[piece.start : piece.stop] for piece in example.pieces]
        samples = np.concatenate(parts).astype(np.int32)
        moshi = (samples[None] + np.arange(8)[:, None]) % self.card
        absent = np.full_like(samples, -1)[None]
        return np.concatenate([absent, moshi, np.zeros_like(moshi)])

    def samples(self, source: Source) -> np.ndarray:
        parts = []
        for segment in source.segments:
            samples, rate = soundfile.read(segment.path, dtype="int16")
            stop = None if segment.end_sec is None else round(segment.end_sec * rate)
            parts.append(samples[round(segment.start_sec * rate) : stop])
        return np.concatenate(parts)

    def frames(self, example: Example) -> int:
        return self.tokens(example).shape[-1]

    def digest(self, examples: list[Example]) -> str:
        return f"{len(examples)} examples"


class TableScorer:
    """An oracle: the NLL of a token follows from its channel, value and frame, so any score can be had by hand."""

    dep_q, n_q, window, device = 8, 16, 32, torch.device("cpu")
    delays = DELAYS
    zero_token_id = -1
    text_padding, swaps = (3, 0), False

    def __init__(self, rule, identity: str = "oracle"):
        self.rule, self.identity, self.calls = rule, identity, 0

    def score(self, codes: torch.Tensor, frames: torch.Tensor) -> Scores:
        self.calls += 1
        mask = valid_tokens(self, codes, frames)
        nll = torch.full(mask.shape, float("nan"))
        for b, k, t in mask.nonzero().tolist():
            nll[b, k, t] = self.rule(k, int(codes[b, k, t]), t)
        return Scores(nll, mask)


def write_toy(path: Path, samples: list[int], rate: int = 12500) -> Path:
    """A sound file that `ToyTokens` reads; one sample a frame."""
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, np.array(samples, np.int16), rate, subtype="PCM_16")
    return path


@pytest.fixture
def toy():
    return write_toy


@pytest.fixture
def oracle():
    """An engine around `TableScorer`: the default rule is nll = value of the token."""

    def build(rule=lambda k, value, t: float(value), folder: Path | None = None, **policy) -> Engine:
        scorer = TableScorer(rule)
        return Engine(scorer, ToyTokens(), NLLCache(folder, scorer.identity), BatchPolicy(**policy))

    return build


@pytest.fixture(scope="session")
def kit() -> SimpleNamespace:
    """The same makers, for fixtures that live longer than a test."""
    return SimpleNamespace(
        clips=make_clips, model=build_model, ttt_model=build_ttt_model, tokens=ToyTokens, write_toy=write_toy
    )


@pytest.fixture(scope="session")
def bench(tmp_path_factory) -> Path:
    """Spoken benchmarks in the official layouts; read-only."""
    spec = importlib.util.spec_from_file_location("speech_benchmarks", Path(__file__).with_name("speech_benchmarks.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.make(tmp_path_factory.mktemp("bench"))
