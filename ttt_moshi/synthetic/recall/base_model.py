"""Small untrained Moshis in the layout of a hub repository: one that reads made-up codes, one that reads speech."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from moshi.models.compression import MimiModel
from moshi.models.loaders import get_mimi
from safetensors.torch import save_file

from ttt_moshi.synthetic.material import FILE_NAMES, fitting_speech
from ttt_moshi.synthetic.recall.task import CARD, CODEBOOKS
from ttt_moshi.synthetic.small_mimi import CODEBOOKS as SPEECH_CODEBOOKS
from ttt_moshi.synthetic.small_mimi import MimiSize, fit_mimi, mimi_config, save_mimi
from ttt_moshi.synthetic.small_moshi import new_lm, write_config
from ttt_moshi.synthetic.tokenizer import train_tokenizer

DIM = 96
HEADS = 4
LAYERS = 2
DELAY = 1
"""of the acoustic codebooks, in frames"""
CONTEXT = 4096
"""attention window of the base model in frames: longer than any recording here"""

EMBEDDING_SCALE = 10.0
BRANCH_SCALE = 0.3
"""Factors on the official initialisation. With them a frame's own codes outweigh what the attention before a TTT layer
mixes in from its neighbours. Otherwise all keys of a short stretch resemble one another, and the TTT layer needs
several times as many steps before it can tell them apart."""

SPEECH_MIMI = MimiSize(bins=64, components=16)
FITTING_SENTENCES = 120


def reach(context: int) -> int:
    """How many frames back a code can influence a prediction through attention alone, the delay of codes included."""
    return LAYERS * (context - 1) + 1 + DELAY


def write_base_model(folder: Path, seed: int) -> Path:
    """Random weights that depend on `seed` alone, for pre-tokenized recordings of two codebooks a speaker.

    Mimi belongs to the layout and is never used.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        mimi = get_mimi(None, mimi_config(MimiSize()), num_codebooks=CODEBOOKS)
    return _write(folder, seed, mimi, MimiSize(), CODEBOOKS, CARD)


def write_speech_model(folder: Path, seed: int, codebooks: int = SPEECH_CODEBOOKS, words: Sequence[str] = ()) -> Path:
    """Random weights that depend on `seed` alone, and a Mimi fitted on speech that is the same for all seeds.

    Args:
        codebooks: of each side that the model reads, the first ones of Mimi's.
        words: that the model reads and writes, a token each.
    """
    mimi = fit_mimi(fitting_speech(0, FITTING_SENTENCES), SPEECH_MIMI)
    return _write(folder, seed, mimi, SPEECH_MIMI, codebooks, SPEECH_MIMI.bins, words)


def _write(
    folder: Path, seed: int, mimi: MimiModel, size: MimiSize, codebooks: int, card: int, words: Sequence[str] = ()
) -> Path:
    folder.mkdir(parents=True)
    # Where no text is ever heard, a tokenizer belongs to the layout all the same.
    corpus, vocabulary = (words, 192) if words else (["nothing", "is", "said"], 128)
    tokenizer = train_tokenizer(corpus, folder / FILE_NAMES["tokenizer_name"], vocabulary)
    save_mimi(mimi, size, folder / FILE_NAMES["mimi_name"], folder / FILE_NAMES["mimi_config_name"])
    config = _lm_config(tokenizer.vocab_size(), codebooks, card)
    model = new_lm(config, seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.startswith(("emb.", "text_emb.") if words else "emb."):
                parameter.mul_(EMBEDDING_SCALE)
            if name.startswith("transformer.") and ("out_projs" in name or "linear_out" in name):
                parameter.mul_(BRANCH_SCALE)
    tensors = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    save_file(tensors, folder / FILE_NAMES["moshi_name"])
    write_config(folder / "config.json", config, FILE_NAMES)
    return folder


def _lm_config(text_card: int, codebooks: int, card: int) -> dict[str, Any]:
    """The arguments of the official `LMModel`: Moshi 7B's, with smaller numbers."""
    return {
        "dim": DIM,
        "text_card": text_card,
        "existing_text_padding_id": 3,
        "n_q": 2 * codebooks,
        "dep_q": codebooks,
        "card": card,
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
        "depformer_context": codebooks,
        "depformer_max_period": 10000,
        "depformer_gating": "silu",
        "depformer_pos_emb": "none",
        "depformer_weights_per_step": True,
        "delays": [0] + 2 * ([0] + [DELAY] * (codebooks - 1)),
    }
