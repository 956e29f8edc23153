"""A tiny model of the official class, in the folder layout of a Moshi repository, and things built from it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from moshi.models.lm import LMModel
from moshi.utils.compile import no_compile
from safetensors.torch import save_file

from ttt_moshi.config import LoraArgs, ModelPaths, TTTArgs
from ttt_moshi.moshi import TTTMoshi, build_model, resolve_model, tensor_group

TINY = {
    "dim": 32,
    "text_card": 40,
    "existing_text_padding_id": 3,
    "n_q": 6,
    "dep_q": 3,
    "card": 24,
    "num_heads": 2,
    "num_layers": 4,
    "hidden_scale": 2,
    "causal": True,
    "layer_scale": None,
    "context": 10,
    "max_period": 10000,
    "gating": "silu",
    "norm": "rms_norm_f32",
    "positional_embedding": "rope",
    "depformer_dim": 16,
    "depformer_dim_feedforward": 32,
    "depformer_num_heads": 2,
    "depformer_num_layers": 2,
    "depformer_layer_scale": None,
    "depformer_multi_linear": True,
    "depformer_context": 3,
    "depformer_max_period": 10000,
    "depformer_gating": "silu",
    "depformer_pos_emb": "none",
    "depformer_weights_per_step": True,
    "delays": [0, 0, 1, 1, 0, 1, 1],
}


@pytest.fixture(autouse=True)
def uncompiled():
    """The official model compiles its norms even on a CPU, which takes longer than all the tests."""
    with no_compile():
        yield


def write_base(folder: Path, **changes) -> Path:
    """Saves a tiny official model with random weights as a repository folder."""
    folder.mkdir(parents=True, exist_ok=True)
    config = {**TINY, **changes}
    torch.manual_seed(7)
    model = LMModel(device="cpu", dtype=torch.float32, **config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    save_file(model.state_dict(), folder / "model.safetensors")
    (folder / "mimi.safetensors").write_bytes(b"codec")
    (folder / "tokenizer.model").write_bytes(b"tokenizer")
    names = {"mimi_name": "mimi.safetensors", "tokenizer_name": "tokenizer.model", "model_type": "moshi"}
    (folder / "config.json").write_text(json.dumps({**config, **names}))
    return folder


@pytest.fixture
def make_base():
    """Writes a repository folder, which may then be changed."""
    return write_base


@pytest.fixture(scope="session")
def base_folder(tmp_path_factory) -> Path:
    """The tiny model's repository folder. Read-only."""
    return write_base(tmp_path_factory.mktemp("base") / "tiny-moshi")


@pytest.fixture(scope="session")
def info(base_folder):
    """Where the tiny model is."""
    return resolve_model(ModelPaths(hf_repo_id=str(base_folder)))


@pytest.fixture
def make_model(info):
    """The tiny model as a run builds it; `perturbed` moves every adapter tensor away from its initial value."""

    def make(
        layers: str = "1,2",
        lora: bool = False,
        perturbed: bool = True,
        dtype: torch.dtype = torch.float32,
        full_finetuning: bool = False,
        gradient_checkpointing: bool = False,
        seed: int = 0,
        **ttt,
    ) -> TTTMoshi:
        args = TTTArgs(**{"enable": layers != "none", "layers": layers, "mini_batch_size": 4, **ttt})
        model = build_model(
            info,
            args,
            LoraArgs(enable=lora, rank=2, scaling=2.0),
            full_finetuning=full_finetuning,
            gradient_checkpointing=gradient_checkpointing,
            dtype=dtype,
            seed=seed,
        )
        if perturbed:
            perturb(model)
        return model

    return make


def perturb(model: torch.nn.Module, seed: int = 1) -> None:
    """Moves every adapter tensor, so that nothing is invisible by being zero."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if tensor_group(name) != "base":
                parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))


@pytest.fixture
def make_codes():
    """Random codes [B, K, T] of the tiny model, some of them absent."""

    def make(B: int = 2, T: int = 20, seed: int = 0) -> torch.Tensor:
        generator = torch.Generator().manual_seed(seed)
        codes = torch.randint(0, TINY["card"], (B, len(TINY["delays"]), T), generator=generator)
        absent = torch.rand(codes.shape, generator=generator) < 0.05
        return torch.where(absent, -1, codes)

    return make
