"""A small untrained Moshi in the layout of a hub repository, for tasks of two codebooks a speaker."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from moshi.models.loaders import get_mimi
from safetensors.torch import save_file

from benchmarks.memory.recall import CARD, CODEBOOKS
from ttt_moshi.data.speech.small_mimi import MimiSize, mimi_config, save_mimi
from ttt_moshi.data.speech.small_moshi import new_lm, write_config
from ttt_moshi.data.speech.tokenizer import train_tokenizer

DIM = 96
HEADS = 4
LAYERS = 2
DELAYS = [0, 0, 1, 0, 1]
CONTEXT = 4096
"""attention window of the base model in frames: longer than any recording here"""

EMBEDDING_SCALE = 10.0
BRANCH_SCALE = 0.3
"""Factors on the official initialisation. With them a frame's own codes outweigh what the attention before a TTT layer
mixes in from its neighbours. Otherwise all keys of a short stretch resemble one another, and the TTT layer needs
several times as many steps before it can tell them apart."""


def reach(context: int) -> int:
    """How many frames back a code can influence a prediction through attention alone, the delay of codes included."""
    return LAYERS * (context - 1) + 1 + max(DELAYS)


def write_base_model(folder: Path, seed: int) -> Path:
    """Random weights that depend on `seed` alone.

    Mimi and the tokenizer belong to the layout. Recordings that come encoded use neither.
    """
    folder.mkdir(parents=True)
    tokenizer = train_tokenizer(["nothing", "is", "said"], folder / "tokenizer.model", vocabulary=128)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        mimi = get_mimi(None, mimi_config(MimiSize()), num_codebooks=CODEBOOKS)
    save_mimi(mimi, MimiSize(), folder / "mimi.safetensors", folder / "mimi_config.json")
    config = _lm_config(tokenizer.vocab_size())
    model = new_lm(config, seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.startswith("emb."):
                parameter.mul_(EMBEDDING_SCALE)
            if name.startswith("transformer.") and ("out_projs" in name or "linear_out" in name):
                parameter.mul_(BRANCH_SCALE)
    save_file({name: tensor.contiguous() for name, tensor in model.state_dict().items()}, folder / "model.safetensors")
    names = {
        "moshi_name": "model.safetensors",
        "mimi_name": "mimi.safetensors",
        "mimi_config_name": "mimi_config.json",
        "tokenizer_name": "tokenizer.model",
    }
    write_config(folder / "config.json", config, names)
    return folder


def _lm_config(text_card: int) -> dict[str, Any]:
    """The arguments of the official `LMModel`: Moshi 7B's, with smaller numbers."""
    return {
        "dim": DIM,
        "text_card": text_card,
        "existing_text_padding_id": 3,
        "n_q": 2 * CODEBOOKS,
        "dep_q": CODEBOOKS,
        "card": CARD,
        "num_heads": HEADS,
        "num_layers": LAYERS,
        "hidden_scale": 2,
        "causal": True,
        "layer_scale": None,
        "context": CONTEXT,
        "max_period": 10000,
        "gating": "silu",
        "norm": "rms_norm_f32",
        "positional_embedding": "rope",
        "depformer_dim": 32,
        "depformer_dim_feedforward": 64,
        "depformer_num_heads": 2,
        "depformer_num_layers": 1,
        "depformer_layer_scale": None,
        "depformer_multi_linear": True,
        "depformer_context": CODEBOOKS,
        "depformer_max_period": 10000,
        "depformer_gating": "silu",
        "depformer_pos_emb": "none",
        "depformer_weights_per_step": True,
        "delays": DELAYS,
    }
