"""Everything that talks, taken from a checkpoint and nothing else: model, codec and tokenizer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from moshi.models import MimiModel
from moshi.models.loaders import CheckpointInfo

from ttt_moshi.checkpoint import read_manifest
from ttt_moshi.config import LoraArgs, ModelPaths, TTTArgs
from ttt_moshi.moshi import (
    TTTMoshi,
    audio_codec,
    build_model,
    export_file_name,
    first_silence,
    load_trained,
    resolve_model,
    text_tokenizer,
    trained_base,
    writing_delay,
)
from ttt_moshi.moshi.export import digest_of
from ttt_moshi.moshi.trained import consolidated_folder


@dataclass(frozen=True)
class Speaker:
    """What a conversation is made with.

    Args:
        state_id: identity of the weights; sessions belong to it.
        model: in `eval()` mode.
        mimi: codec, float32, with as many codebooks as Moshi speaks and hears.
        tokenizer: a sentencepiece processor.
        model_type: as the base model's configuration names it, normally "moshi".
        generation: settings of the official generator that the base model recommends.
        delay: frames after which a word is written that is heard; 0 of models that speak.
        silence: frames of silence that the model should hear first.
        conditions: text conditions by name, where they are not the usual ones (Hibiki).
        cfg: strength of classifier-free guidance towards the conditions; 1 is none.
        sink: so many first positions of a conversation stay in the attention window for good (StreamingLLM).
    """

    state_id: str
    model: TTTMoshi
    mimi: MimiModel
    tokenizer: Any
    model_type: str
    generation: Mapping[str, Any]
    delay: int = 0
    silence: int = 0
    conditions: Mapping[str, str] = field(default_factory=dict)
    cfg: float = 1.0
    sink: int = 0

    @property
    def dtype(self) -> str:
        """Type of the frozen weights, as `--dtype` names it; the same weights in another say something else."""
        return str(self.model.dtype).removeprefix("torch.")

    @property
    def translates(self) -> bool:
        """Whether the model is told when a recording ends, and says when it has finished (Hibiki)."""
        return self.model_type == "hibiki"

    @property
    def speaks(self) -> bool:
        """Whether the model says anything; if not, it writes what it hears (speech to text)."""
        return self.model.dep_q > 0


def open_checkpoint(
    folder: Path, device: torch.device | str, dtype: torch.dtype, base: ModelPaths | None = None
) -> Speaker:
    """Loads a checkpoint for talking; whoever wants its bytes checked verifies it before.

    Args:
        dtype: of the frozen weights; fast weights are float32 in every case.
        base: where the base model is now, if not where the checkpoint recorded it.

    Raises:
        MoshiError: a file is missing or does not fit, or the model is of a kind that cannot talk.
        MoshiError: the tokenizer is another model's.
    """
    info = trained_base(folder, base, "talk")
    model = load_trained(folder, device, dtype, base=base, purpose="talk")
    return _speaker(read_manifest(folder)["state_id"], model, info, device)


def open_exported(
    folder: Path, device: torch.device | str, dtype: torch.dtype, base: ModelPaths | None = None
) -> Speaker:
    """The same from a folder with exported weights, of ours or of moshi-finetune; nothing vouches for its bytes."""
    info = trained_base(folder, base, "talk")
    model = load_trained(folder, device, dtype, base=base, purpose="talk")
    kinds = (export_file_name("full"), export_file_name("adapters"))
    (weights,) = (path for name in kinds if (path := consolidated_folder(folder) / name).is_file())
    return _speaker(f"export:{digest_of(weights)}", model, info, device)


def open_base(paths: ModelPaths, device: torch.device | str, dtype: torch.dtype) -> Speaker:
    """A model as published, before any training here."""
    info = resolve_model(paths, "talk")
    model = build_model(info, TTTArgs(enable=False), LoraArgs(enable=False), device=device, dtype=dtype).eval()
    return _speaker(f"base:{digest_of(Path(info.moshi_weights))}", model, info, device)


def _speaker(state_id: str, model: TTTMoshi, info: CheckpointInfo, device: torch.device | str) -> Speaker:
    tokenizer = text_tokenizer(info)
    mimi = audio_codec(info, device)
    delay, silence = writing_delay(info.raw_config), first_silence(info.raw_config)
    return Speaker(state_id, model, mimi, tokenizer, info.model_type, info.lm_gen_config, delay, silence)
