"""Everything that talks, taken from a checkpoint and nothing else: model, codec and tokenizer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from moshi.models import MimiModel

from ttt_moshi.checkpoint import read_manifest
from ttt_moshi.config import ModelPaths
from ttt_moshi.moshi import TTTMoshi, load_trained, trained_base


@dataclass(frozen=True)
class Speaker:
    """What a conversation is made with.

    Args:
        state_id: identity of the checkpoint.
        model: in `eval()` mode.
        mimi: codec, float32, with as many codebooks as Moshi speaks and hears.
        tokenizer: a sentencepiece processor.
        model_type: as the base model's configuration names it, normally "moshi".
        generation: settings of the official generator that the base model recommends.
    """

    state_id: str
    model: TTTMoshi
    mimi: MimiModel
    tokenizer: Any
    model_type: str
    generation: Mapping[str, Any]


def open_checkpoint(
    folder: Path, device: torch.device | str, dtype: torch.dtype, base: ModelPaths | None = None
) -> Speaker:
    """Loads a checkpoint for talking; whoever wants its bytes checked verifies it before.

    Args:
        dtype: of the frozen weights; fast weights are float32 in every case.
        base: where the base model is now, if not where the checkpoint recorded it.

    Raises:
        MoshiError: a file is missing or does not fit.
    """
    info = trained_base(folder, base, "talk")
    return Speaker(
        state_id=read_manifest(folder)["state_id"],
        model=load_trained(folder, device, dtype, base=base, purpose="talk"),
        mimi=info.get_mimi(device),
        tokenizer=info.get_text_tokenizer(),
        model_type=info.model_type,
        generation=info.lm_gen_config,
    )
