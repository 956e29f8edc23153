"""What is evaluated, taken from a checkpoint and nothing else: model, codec and tokenizer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import blake3
import torch
from moshi.models.loaders import CheckpointInfo

from ttt_moshi.checkpoint import read_document, read_manifest, verify
from ttt_moshi.config import LoraArgs, ModelPaths, TTTArgs
from ttt_moshi.data import Codec, TextStyle
from ttt_moshi.evaluation.errors import EvaluationError
from ttt_moshi.inference.speaker import Speaker
from ttt_moshi.moshi import (
    TTTMoshi,
    audio_codec,
    build_model,
    load_trained,
    text_tokenizer,
    trained_base,
    writing_delay,
)

TRAINING_CONFIG = "consolidated/training_config.json"


@dataclass
class Subject:
    """A model with everything needed to feed it.

    Args:
        facts: `checkpoint` of results.json: state_id, step, kind.
        tokenizer: a sentencepiece processor.
        style: how its text stream is written.
        base_inside: whether nothing but adapters was trained, so that the base model is in there.
        speaker: the same model as one that talks.
    """

    facts: dict[str, Any]
    model: TTTMoshi
    codec: Codec
    tokenizer: Any
    style: TextStyle
    base_inside: bool
    speaker: Speaker


def checkpoint_folder(path: Path) -> Path:
    """The checkpoint that `path` names; its `consolidated` folder names it too.

    Raises `EvaluationError` when there is none, with the checkpoints of a run when `path` is one.
    """
    folder = path.parent if path.name == "consolidated" else path
    if (folder / "manifest.json").is_file():
        return folder
    if not folder.exists():
        raise EvaluationError(
            f"{path} is not a checkpoint: there is no such folder; `ttt-moshi status` lists those that are there"
        )
    found = sorted(m.parent for m in folder.glob("**/checkpoint_*/manifest.json") if "staging" not in m.as_posix())
    hint = f"; did you mean {found[-1]}?" if found else ""
    raise EvaluationError(f"{path} is not a checkpoint: it has no manifest.json{hint}")


def check(folder: Path, progress: Callable[[int, int], None] | None = None) -> None:
    """Compares every byte of a checkpoint with its manifest. Raises `EvaluationError` with all problems."""
    report = verify(folder, progress=progress)
    if not report.ok:
        raise EvaluationError(
            f"the checkpoint is corrupt and is not evaluated: {'; '.join(report.text().splitlines())}"
        )


def training_config(folder: Path) -> dict[str, Any]:
    """The configuration that the checkpoint was trained with, as plain values."""
    return read_document(folder, TRAINING_CONFIG)


def checkpoint_facts(folder: Path) -> dict[str, Any]:
    """`Subject.facts` of a checkpoint, which is not loaded."""
    manifest = read_manifest(folder)
    return {key: manifest[key] for key in ("state_id", "step", "kind")}


def base_facts(info: CheckpointInfo) -> dict[str, Any]:
    """`Subject.facts` of a model as published, which is not loaded: its state id is the digest of its weights file."""
    digest = blake3.blake3(max_threads=blake3.blake3.AUTO).update_mmap(info.moshi_weights).hexdigest()
    return {"state_id": f"base:{digest}", "step": 0, "kind": "base"}


def from_checkpoint(folder: Path, device: str, dtype: torch.dtype, base: ModelPaths | None = None) -> Subject:
    """Model, codec and tokenizer of a checkpoint; `base` says where the base model's files are now, if they moved."""
    facts, trained = checkpoint_facts(folder), training_config(folder)
    spaceless = bool(trained["data"].get("no_whitespace_before_word", False))
    changed = trained.get("full_finetuning"), trained.get("lora", {}).get("ft_embed")
    base_inside = not any((*changed, trained["data"].get("new_text_embeddings")))
    model = load_trained(folder, device, dtype, base=base)
    return _subject(facts, model, trained_base(folder, base), device, base_inside, spaceless)


def from_base(info: CheckpointInfo, facts: dict[str, Any], device: str, dtype: torch.dtype) -> Subject:
    """A model as published, before any training here; `facts` are its `base_facts`."""
    model = build_model(info, TTTArgs(enable=False), LoraArgs(enable=False), device=device, dtype=dtype).eval()
    return _subject(facts, model, info, device, True)


def _subject(
    facts: dict[str, Any],
    model: TTTMoshi,
    info: CheckpointInfo,
    device: str,
    base_inside: bool,
    spaceless: bool = False,
) -> Subject:
    mimi, tokenizer = audio_codec(info, device), text_tokenizer(info)
    delay = writing_delay(info.raw_config)
    style = TextStyle(model.text_padding_token_id, model.end_of_text_padding_id, spaceless, delay)
    speaker = Speaker(facts["state_id"], model, mimi, tokenizer, info.model_type, info.lm_gen_config)
    return Subject(facts, model, Codec(mimi, info.mimi_config), tokenizer, style, base_inside, speaker)
