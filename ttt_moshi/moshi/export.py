"""What a checkpoint's `consolidated/` folder holds: tensors under official names, and the documents beside them.

Everything here is data and pure functions; writing files is the checkpoint store's business. Without TTT the result
loads in the unmodified official loaders; the TTT tensors sit under their own names, described by `ttt.json`.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, cast

import torch
from blake3 import blake3
from moshi.models import loaders
from moshi.models.loaders import CheckpointInfo
from moshi.modules.lora import LoRALinear
from torch import Tensor

from ttt_moshi.config import ModelPaths
from ttt_moshi.moshi.loading import storage_dtype
from ttt_moshi.moshi.model import TTTMoshi
from ttt_moshi.moshi.naming import export_name, tensor_group

Kind = Literal["adapters", "full"]

CONFIG = "config.json"
TTT = "ttt.json"
BASE_MODEL = "base_model.json"
TTT_FORMAT = 1


@dataclass(frozen=True)
class ExportTensor:
    """One tensor of an exported file.

    Args:
        name: its name in the file.
        sources: parameters it is made of: one, or a base weight W with its adapter's A and B, in this order.
        dtype: its type in the file.
        scaling: factor of the adapter: W + scaling * B @ A.
    """

    name: str
    sources: tuple[str, ...]
    dtype: torch.dtype
    scaling: float = 0.0


def export_file_name(kind: Kind) -> str:
    """The file that moshi-finetune would write: adapters alone, or the whole model."""
    return "lora.safetensors" if kind == "adapters" else "consolidated.safetensors"


def export_plan(model: TTTMoshi, kind: Kind, dtype: torch.dtype) -> list[ExportTensor]:
    """Every tensor of the exported file, sorted by name.

    Args:
        kind: "adapters": LoRA and TTT tensors and whatever else is trained; "full": every tensor, LoRA merged in.
        dtype: what the model computes in. TTT's inner tensors and gates are float32 in every case.
    """
    plan = []
    names = [name for name, _ in model.named_parameters()]
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    for name in names:
        group = tensor_group(name)
        if kind == "adapters":
            if group == "base" and name not in trained:
                continue
        elif group == "lora":
            continue
        sources: tuple[str, ...] = (name,)
        scaling = 0.0
        if kind == "full" and name.endswith(".frozen_W.weight"):
            linear = name.removesuffix(".frozen_W.weight")
            sources = (name, f"{linear}.lora_A.weight", f"{linear}.lora_B.weight")
            scaling = cast(LoRALinear, model.get_submodule(linear)).scaling
        plan.append(ExportTensor(export_name(name), sources, storage_dtype(name, dtype), scaling))
    return sorted(plan, key=lambda entry: entry.name)


def materialise(entry: ExportTensor, get: Callable[[str], Tensor]) -> Tensor:
    """One exported tensor; `get` returns a parameter by name, whole. Merging is done in float32 and rounded once."""
    if len(entry.sources) == 1:
        return get(entry.sources[0]).detach().to(entry.dtype).contiguous()
    weight, a, b = (get(name).detach().float() for name in entry.sources)
    return (weight + entry.scaling * (b @ a)).to(entry.dtype)


def export_documents(
    model: TTTMoshi, info: CheckpointInfo, base: dict[str, Any], kind: Kind = "adapters"
) -> dict[str, dict[str, Any]]:
    """The JSON files of `consolidated/`, by name.

    `config.json` is for the official loaders and has only keys that they know; `ttt.json` describes the TTT layers
    and is absent without them (its `rate_scale` follows from the rest; a reader that derives another one would compute
    another function); `base_model.json` is `base`, what `describe_base` returned.
    """
    config = copy.deepcopy(dict(loaders._lm_kwargs if info.raw_config is None else info.raw_config))
    for key in ("lora_name", "lora_rank", "lora_scaling"):
        config.pop(key, None)
    adapters = [module for module in model.modules() if isinstance(module, LoRALinear)] if kind == "adapters" else []
    config["lora"] = bool(adapters)
    if adapters:
        config |= {"lora_rank": adapters[0].rank, "lora_scaling": adapters[0].scaling}
    if kind == "full":
        config["moshi_name"] = export_file_name(kind)
    # The attention window may have been changed for training; inference must look equally far.
    config["context"] = model.context
    documents = {CONFIG: config, BASE_MODEL: base}
    if model.ttt_config is not None:
        documents[TTT] = {
            "format": TTT_FORMAT,
            "layers": model.ttt_layers,
            **asdict(model.ttt_config),
            "rate_scale": model.ttt_config.rate_scale,
        }
    return documents


def digest_of(path: Path) -> str:
    """BLAKE3 of a file's content, in hexadecimal."""
    return blake3(max_threads=blake3.AUTO).update_mmap(path).hexdigest()


def describe_base(paths: ModelPaths, info: CheckpointInfo, digest: Callable[[Path], str] = digest_of) -> dict[str, Any]:
    """What identifies the base model's files: where they were, their sizes and BLAKE3 digests.

    Args:
        digest: of a file; by default it is read, once.
    """
    local = {key: _absolute(value) for key, value in asdict(paths).items()}
    files = {"moshi": info.moshi_weights, "mimi": info.mimi_weights, "tokenizer": info.tokenizer}
    return {"moshi_paths": local, "files": {role: _describe_file(Path(path), digest) for role, path in files.items()}}


def _describe_file(path: Path, digest: Callable[[Path], str]) -> dict[str, Any]:
    return {"name": path.name, "bytes": path.stat().st_size, "blake3": digest(path)}


def _absolute(path: str | None) -> str | None:
    """A local path made independent of the working directory; the name of a repository stays as it is."""
    if path is None or path.startswith("hf://"):
        return path
    local = Path(path).expanduser()
    return str(local.absolute()) if local.exists() else path
