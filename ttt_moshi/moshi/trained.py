"""Models from checkpoints: built from the checkpoint's own documents, never from a configuration given today."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from moshi.models.loaders import CheckpointInfo
from torch import Tensor

from ttt_moshi.config import LoraArgs, ModelPaths
from ttt_moshi.moshi.errors import MoshiError
from ttt_moshi.moshi.export import BASE_MODEL, CONFIG, TTT, TTT_FORMAT, digest_of, export_file_name
from ttt_moshi.moshi.loading import (
    assign,
    describe,
    empty_model,
    load_base,
    own_depth_steps,
    read_base,
    read_tensors,
    require,
    storage_dtype,
)
from ttt_moshi.moshi.model import TTTMoshi
from ttt_moshi.moshi.naming import Group, tensor_group
from ttt_moshi.moshi.paths import read_json, resolve_model
from ttt_moshi.moshi.supported import REPOSITORY_KEYS, Purpose, check_supported, without_user_steps
from ttt_moshi.ttt import TTTConfig


def load_trained(
    checkpoint_dir: Path | str,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.bfloat16,
    *,
    base: ModelPaths | None = None,
    tensors: Mapping[str, Tensor] | None = None,
    purpose: Purpose = "evaluate",
) -> TTTMoshi:
    """The model of a checkpoint, ready for evaluation and inference (`eval()` mode).

    Args:
        checkpoint_dir: `checkpoint_N`, its `consolidated` folder, or a folder of moshi-finetune's with the same files.
        base: where the base model is now, if not where the checkpoint recorded it.
        tensors: content of the exported file, if the caller has read (and verified) it already.
        purpose: what the model is for.

    Raises:
        MoshiError: a file is missing, does not fit, the base model is not the one that was trained on, or the model is
            of a kind that cannot be used for `purpose`.
    """
    folder = consolidated_folder(checkpoint_dir)
    kind, path = _exported_file(folder)
    config = read_json(folder / CONFIG)
    check_supported(config, purpose, str(folder / CONFIG))
    ttt = read_json(folder / TTT) if (folder / TTT).is_file() else None
    base_tensors = None
    if kind == "adapters":
        info = trained_base(folder, base, purpose)
        _check_base(folder, Path(info.moshi_weights))
        base_tensors = read_base(info)
    if tensors is None:
        tensors = read_tensors(path)
    if base_tensors is not None:
        # Trained tensors of the base may have another shape than those they came from (a new tokenizer).
        base_tensors |= {name: tensor for name, tensor in tensors.items() if name in base_tensors}
    own = without_user_steps(config)
    if own is not None and own["dep_q"] != config.get("dep_q"):
        # Trained to predict the user too; whoever asks the model something has a user to hear.
        tensors, config = own_depth_steps(tensors, own["dep_q"], own["n_q"]), own
    return build_from_documents(config, ttt, tensors, base_tensors, device=device, dtype=dtype, source=str(path))


def build_from_documents(
    config: Mapping[str, Any],
    ttt: Mapping[str, Any] | None,
    tensors: Mapping[str, Tensor],
    base_tensors: Mapping[str, Tensor] | None = None,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.bfloat16,
    source: str = "the exported file",
) -> TTTMoshi:
    """A model from the content of `consolidated/`.

    Args:
        config, ttt: `config.json` and `ttt.json` (None without TTT layers).
        tensors: the exported file: the whole model, or adapters if `base_tensors` are given.
        source: what to call the exported file in errors.

    Raises:
        MoshiError: the tensors are not exactly those that the documents describe.
    """
    lora = None
    # moshi-finetune says `lora: true` beside merged weights too.
    merged = base_tensors is None and all(tensor_group(name) != "lora" for name in tensors)
    if config.get("lora") and not merged:
        lora = LoraArgs(enable=True, rank=config["lora_rank"], scaling=config["lora_scaling"])
    layers, ttt_config = (None, None) if ttt is None else _parse_ttt(ttt)
    geometry = {key: value for key, value in config.items() if key not in REPOSITORY_KEYS}
    model = empty_model(geometry, dtype, lora=lora, ttt_layers=layers, ttt_config=ttt_config)
    device = torch.device(device)
    names = set(model.state_dict())
    required = names
    if base_tensors is not None:
        load_base(model, base_tensors, dtype, device, "the base model")
        required = {name for name in names if tensor_group(name) != "base"}
    loaded = assign(model, {n: t.to(device, storage_dtype(n, dtype)) for n, t in tensors.items()}, source)
    require(source, lacks=required - loaded)
    return model.eval()


def trained_base(
    checkpoint_dir: Path | str, base: ModelPaths | None = None, purpose: Purpose = "evaluate"
) -> CheckpointInfo:
    """Where the base model of a checkpoint is: its Mimi and tokenizer, and the weights that adapters belong to."""
    folder = consolidated_folder(checkpoint_dir)
    if base is None:
        recorded = _recorded_base(folder)
        if recorded is None:
            raise MoshiError(f"{folder} has no {BASE_MODEL}, so it does not say what its base model is: pass its paths")
        base = ModelPaths(**recorded["moshi_paths"])
    try:
        info = resolve_model(base, purpose)
    except MoshiError as error:
        raise MoshiError(f"the base model of {folder} cannot be used: {error}") from error
    if info.raw_config is not None:
        # A model with new text embeddings has those of the tokenizer that it was trained with.
        info.raw_config["text_card"] = read_json(folder / CONFIG).get("text_card", info.raw_config["text_card"])
    return info


def consolidated_folder(checkpoint_dir: Path | str) -> Path:
    """The folder with `config.json`: the given one, or `consolidated` inside of it."""
    given = Path(checkpoint_dir)
    for folder in (given / "consolidated", given):
        if (folder / CONFIG).is_file():
            return folder
    raise MoshiError(f"{given} is not a checkpoint: there is no consolidated/{CONFIG} in it, nor {CONFIG}")


@dataclass(frozen=True)
class InitialWeights:
    """What came from a file and what kept its start value: names of parameters, sorted."""

    loaded: list[str]
    kept: list[str]


def load_initial_weights(
    model: TTTMoshi, tensors: Mapping[str, Tensor], source: str = "the starting checkpoint"
) -> InitialWeights:
    """Starts a run from exported weights, of ours or of moshi-finetune: full models, LoRA, TTT, or embedding tables.

    LoRA and TTT come whole or not at all: a file without TTT starts a TTT run whose layers are new, but a file with
    some of the model's TTT layers, or with others, is refused. The model must not be sharded yet.

    Raises:
        MoshiError: a tensor is unknown, of another shape, or its group is incomplete; the message lists which.
    """
    loaded = assign(model, tensors, source, replace=False)
    groups: dict[Group, set[str]] = {"base": set(), "lora": set(), "ttt": set()}
    for name, _ in model.named_parameters():
        groups[tensor_group(name)].add(name)
    tables = {name for name in groups["base"] if _is_table(model, name)}
    if not loaded & groups["base"] <= tables:
        require(source, lacks=groups["base"] - loaded)
    for group in ("lora", "ttt"):
        if loaded & groups[group] and not groups[group] <= loaded:
            raise MoshiError(
                f"{source} has {len(loaded & groups[group])} of the model's {len(groups[group])} {group} tensors; it "
                + describe("lacks", sorted(groups[group] - loaded))
            )
    if not loaded:
        raise MoshiError(f"{source} holds no tensor of this model")
    return InitialWeights(sorted(loaded), sorted(set().union(*groups.values()) - loaded))


def _is_table(model: TTTMoshi, name: str) -> bool:
    return isinstance(model.get_submodule(name.rsplit(".", 1)[0]), torch.nn.Embedding)


def _recorded_base(folder: Path) -> dict[str, Any] | None:
    """What `describe_base` wrote; None in a folder of moshi-finetune's."""
    path = folder / BASE_MODEL
    if not path.is_file():
        return None
    document = read_json(path)
    known = {field.name for field in fields(ModelPaths)}
    try:
        complete = set(document["moshi_paths"]) <= known and document["files"]["moshi"]["blake3"]
    except (KeyError, TypeError):
        complete = False
    if not complete:
        raise MoshiError(f"{path} does not describe a base model")
    return document


def _check_base(folder: Path, weights: Path) -> None:
    """Refuses base weights other than those that the adapters in `folder` were trained on."""
    recorded = _recorded_base(folder)
    if recorded is None:  # moshi-finetune records nothing; whoever loads it has named the base model
        return
    wanted, found = recorded["files"]["moshi"], digest_of(weights)
    if found != wanted["blake3"]:
        raise MoshiError(
            f"the adapters in {folder} were trained on another base model: {weights} has BLAKE3 {found}, recorded is "
            f"{wanted['blake3']} ({wanted['name']}, {wanted['bytes']:,} bytes)"
        )


def _exported_file(folder: Path) -> tuple[str, Path]:
    found = [(kind, folder / export_file_name(kind)) for kind in ("full", "adapters")]
    present = [(kind, path) for kind, path in found if path.is_file()]
    if len(present) != 1:
        names = " nor ".join(path.name for _, path in found)
        problem = f"holds neither {names}" if not present else "holds both a full model and adapters"
        raise MoshiError(f"{folder} {problem}: expected one of them")
    return present[0]


def _parse_ttt(document: Mapping[str, Any]) -> tuple[list[int], TTTConfig]:
    values = dict(document)
    if values.pop("format", None) != TTT_FORMAT:
        raise MoshiError(f"{TTT} has format {document.get('format')!r}, this version reads {TTT_FORMAT}")
    try:
        rate_scale, layers = values.pop("rate_scale"), list(values.pop("layers"))
        config = TTTConfig(**values)
    except KeyError as error:
        raise MoshiError(f"{TTT} does not describe TTT layers: it lacks {error}") from error
    except (TypeError, ValueError) as error:
        raise MoshiError(f"{TTT} does not describe TTT layers: {error}") from error
    if config.rate_scale != rate_scale:
        raise MoshiError(
            f"these TTT layers were trained with inner steps of {rate_scale:.6g}, and this version derives "
            f"{config.rate_scale:.6g} from the same settings: use the version that trained them"
        )
    return layers, config
