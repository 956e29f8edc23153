"""Weights of a checkpoint to start a new run from (`checkpoint.init_state_dir`): read, and compared with the run."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from moshi.models.loaders import CheckpointInfo
from torch import Tensor

from ttt_moshi.checkpoint import iter_tensors, read_document
from ttt_moshi.config import ConfigError
from ttt_moshi.moshi import TTTMoshi, export_documents, load_initial_weights
from ttt_moshi.moshi.export import CONFIG, TTT
from ttt_moshi.moshi.loading import read_tensors
from ttt_moshi.moshi.naming import export_name
from ttt_moshi.moshi.paths import read_json
from ttt_moshi.ttt import TTTConfig

# What computes with the weights, by the key of the configuration that says it.
_KEYS_OF_CONFIG = {"context": "train.context_frames", "lora_scaling": "lora.scaling"}
_KEYS_OF_TTT = ("base_lr", "preset", "mini_batch_size", "half_life_frames", "forget", "target", "bidirectional_prefix")

logger = logging.getLogger(__name__)


def start_from(model: TTTMoshi, info: CheckpointInfo, folder: Path) -> None:
    """Weights only, from the consolidated part of a checkpoint of ours or of moshi-finetune.

    What the run computes with them otherwise than they were trained for is said: it may well be meant.

    Raises:
        UserError: no checkpoint, one that cannot be read, or weights that do not fit the model.
    """
    consolidated = folder if folder.name == "consolidated" else folder / "consolidated"
    files = [consolidated / name for name in ("lora.safetensors", "consolidated.safetensors")]
    found = [path for path in files if path.is_file()]
    if not found:
        raise ConfigError(
            f"`checkpoint.init_state_dir`: {folder} has neither consolidated/lora.safetensors nor "
            "consolidated/consolidated.safetensors"
        )
    ours = (consolidated.parent / "manifest.json").is_file()
    if ours:
        tensors = dict(iter_tensors(consolidated.parent, f"consolidated/{found[0].name}"))
    else:
        logger.warning("%s has no manifest (it was not made here): its content cannot be verified", consolidated.parent)
        tensors = read_tensors(found[0])
    _refuse_another_base(model, tensors, found[0])
    documents = {name: _document(consolidated, name, ours) for name in (CONFIG, TTT)}
    changes = list(_changes(documents, export_documents(model, info, {})))
    for key, was, now in changes:
        if key == "ttt.inner":
            raise ConfigError(
                f"`checkpoint.init_state_dir`: the TTT layers of {found[0]} are `ttt.inner: {was}` and those of this "
                f"run {now}, which have other weights: set `ttt.inner: {was}`"
            )
    loaded = load_initial_weights(model, tensors, str(found[0]))
    logger.info(
        "starting from %s: %d tensors loaded, %d keep their start values",
        found[0],
        len(loaded.loaded),
        len(loaded.kept),
    )
    for key, was, now in changes:
        logger.warning("`%s` is %s, and what was loaded was trained with %s", key, now, was)


def _document(consolidated: Path, name: str, ours: bool) -> dict[str, Any] | None:
    """A JSON file beside the weights; None where there is none."""
    if not (consolidated / name).is_file():
        return None
    return read_document(consolidated.parent, f"consolidated/{name}") if ours else read_json(consolidated / name)


def _changes(before: dict[str, Any], now: dict[str, dict[str, Any]]) -> Iterator[tuple[str, Any, Any]]:
    """Keys of the configuration that compute otherwise with the same weights: before, and now."""
    was, config = before[CONFIG] or {}, now[CONFIG]
    for name, key in _KEYS_OF_CONFIG.items():
        if name in was and name in config and was[name] != config[name]:
            yield key, was[name], config[name]
    if before[TTT] is None or TTT not in now:
        return
    # As JSON has it; what an earlier version did not write down is what was done then.
    ttt = json.loads(json.dumps(now[TTT]))
    old = {**asdict(TTTConfig(ttt["dim"], ttt["num_heads"])), **before[TTT]}
    if old["inner"] != ttt["inner"]:
        yield "ttt.inner", old["inner"], ttt["inner"]
        return
    for name in _KEYS_OF_TTT:
        applies = name != "mini_batch_size" or ttt["inner"] != "delta"
        if applies and old[name] != ttt[name]:
            yield f"ttt.{name}", old[name], ttt[name]


def _refuse_another_base(model: TTTMoshi, tensors: dict[str, Tensor], path: Path) -> None:
    """What is frozen is not saved, so neither a resumed run nor an evaluation would find it again."""
    for name, parameter in model.named_parameters():
        given = None if parameter.requires_grad else tensors.get(export_name(name))
        if given is not None and not torch.equal(given.to(parameter.device, parameter.dtype), parameter):
            raise ConfigError(
                f"`checkpoint.init_state_dir`: {path} holds other base weights ({name}), which this run does not train "
                "and so does not save: name that file as `moshi_paths.moshi_path` instead"
            )
