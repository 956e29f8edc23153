"""Building a model: geometry from its configuration, base weights from a file, the rest freshly initialised."""

from __future__ import annotations

import copy
import hashlib
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from moshi.models import loaders
from moshi.models.loaders import CheckpointInfo
from moshi.modules.lora import replace_all_linear_with_lora
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from ttt_moshi.config import LoraArgs, TTTArgs
from ttt_moshi.moshi.errors import MoshiError
from ttt_moshi.moshi.from_attention import start_from_attention
from ttt_moshi.moshi.layer import keep_rows_together
from ttt_moshi.moshi.model import TTTMoshi
from ttt_moshi.moshi.naming import is_fp32, tensor_group
from ttt_moshi.moshi.remade import ALL_STEPS, DEPTH_STEP, TEXT_TENSORS, new_text_tensors, user_depth_steps
from ttt_moshi.moshi.supported import HIBIKI_CONDITIONS
from ttt_moshi.moshi.trainable import parse_layers, select_trainable
from ttt_moshi.ttt import TTTConfig
from ttt_moshi.ttt.config import DEFAULT_MINI_BATCH


def build_model(
    info: CheckpointInfo,
    ttt: TTTArgs,
    lora: LoraArgs,
    *,
    full_finetuning: bool = False,
    gradient_checkpointing: bool = False,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.bfloat16,
    load_weights: bool = True,
    new_text_embeddings: bool = False,
    seed: int = 0,
) -> TTTMoshi:
    """The model of a training run, with `requires_grad` set; at step 0 its logits are the base model's, bit for bit,
    unless `ttt.init` is "attention" and the gates are open.

    Frozen parameters are in `dtype` and trained ones in float32. Where the two meet in one layer, sharding
    (`parallel.shard`) brings them to one type for the forward pass.

    Args:
        info: where the base model is, from `resolve_model`.
        device: "meta" together with `load_weights=False` builds the geometry alone, without memory.
        load_weights: whether to read the base weights; if not, they are initialised as the official model does.
        new_text_embeddings: whether text embeddings and head are made anew, and trained, for the tokenizer whose number
            of pieces the configuration has (`remade.take_vocabulary`).
        seed: of the TTT and LoRA tensors. Each depends on the seed and its own name alone, so neither the number of
            ranks nor the choice of other layers changes it; the global random state is left alone.

    Raises:
        MoshiError: the configuration does not fit, or the file's tensors are not exactly the base model's.
    """
    if info.lora_weights is not None:
        raise MoshiError(
            f"the base model names LoRA weights of its own ({info.lora_weights}): merge them first, or start from them "
            "with `checkpoint.init_state_dir`"
        )
    device = torch.device(device)
    ttt_config, layers = ttt_from_args(ttt, geometry(info.lm_config))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(_seed_for(seed, "base"))
        model = empty_model(
            info.lm_config,
            dtype,
            lora=lora if lora.enable else None,
            ttt_layers=layers,
            ttt_config=ttt_config,
            gradient_checkpointing=gradient_checkpointing,
            device="meta" if load_weights else device,
        )
    if load_weights:
        tensors = read_base(info)
        if new_text_embeddings:
            kept = (model.text_padding_token_id, model.end_of_text_padding_id)
            tensors |= new_text_tensors(tensors, model.text_card, kept, _seed_for(seed, "text"))
        load_base(model, tensors, dtype, device, str(info.moshi_weights))
    if device.type != "meta":
        initialise_adapters(model, seed, device)
        if ttt.init == "attention":
            start_from_attention(model)
    anew = TEXT_TENSORS if new_text_embeddings else ()
    model.mode = select_trainable(model, ttt, lora, full_finetuning, anew)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    return model


def geometry(config: Mapping[str, Any] | None) -> dict[str, Any]:
    """Arguments of `LMModel` from a repository's configuration (None: the original Moshi 7B), adapter keys removed.

    Always a copy: moshi's own table and the caller's configuration stay as they are.
    """
    arguments = copy.deepcopy(dict(loaders._lm_kwargs if config is None else config))
    for obsolete in ("depformer_causal", "lora", "lora_rank", "lora_scaling"):
        arguments.pop(obsolete, None)
    if "demux_second_stream" in arguments:
        arguments["demux_second_text_stream"] = arguments.pop("demux_second_stream")
    if arguments.get("quantize"):
        raise MoshiError("the base model is quantised, which cannot be trained: take the bfloat16 model")
    return arguments


def ttt_from_args(ttt: TTTArgs, arguments: Mapping[str, Any]) -> tuple[TTTConfig | None, list[int]]:
    """The TTT layers that a configuration asks for: what each is made of, and in which temporal layers."""
    layers = parse_layers(ttt.layers, arguments["num_layers"]) if ttt.enable else []
    if not layers:
        return None, []
    try:
        config = TTTConfig(
            dim=arguments["dim"],
            num_heads=arguments["num_heads"],
            # Of delta it means nothing (training says so), and what is recorded should not differ by it.
            mini_batch_size=DEFAULT_MINI_BATCH if ttt.inner == "delta" else ttt.mini_batch_size,
            inner=ttt.inner,
            preset=ttt.preset,
            base_lr=ttt.base_lr,
            initial_gating_alpha=ttt.initial_gating_alpha,
            half_life_frames=ttt.half_life_frames,
            forget=ttt.forget,
            target=ttt.target,
            bidirectional_prefix=ttt.bidirectional_prefix,
        )
    except ValueError as error:
        raise MoshiError(f"the TTT layers cannot be built: {error}") from error
    return config, layers


def empty_model(
    config: Mapping[str, Any] | None,
    dtype: torch.dtype,
    *,
    lora: LoraArgs | None = None,
    ttt_layers: list[int] | None = None,
    ttt_config: TTTConfig | None = None,
    gradient_checkpointing: bool = False,
    device: torch.device | str = "meta",
) -> TTTMoshi:
    """The whole model with its adapters, base in `dtype`; on the meta device without memory."""
    arguments = geometry(config)
    # Conditions are computed outside the model, in float32, as the official loader does.
    conditioners = arguments.pop("conditioners", None)
    if conditioners is not None:
        provider = loaders.get_conditioner_provider(arguments["dim"], device, {"conditioners": conditioners})
        arguments["condition_provider"] = provider
    if arguments.get("fuser") is not None:
        arguments["fuser"] = loaders.get_condition_fuser(arguments)
    try:
        # The official class makes some modules on the default device before it moves them.
        with torch.device(device):
            model = TTTMoshi(device=device, dtype=dtype, gradient_checkpointing=gradient_checkpointing, **arguments)
    except TypeError as error:
        raise MoshiError(f"config.json has a key that this version of moshi does not know: {error}") from error
    if conditioners and conditioners.keys() <= HIBIKI_CONDITIONS.keys():
        model.usual_conditions = HIBIKI_CONDITIONS
    if lora is not None:
        # Before the TTT layers come in: adapters are for the base's linear layers only.
        replace_all_linear_with_lora(model, lora.rank, lora.scaling, device=device, dtype=torch.float32)
    if model.depformer is not None:
        keep_rows_together(model.depformer.layers)
    if ttt_config is not None:
        model.add_ttt(ttt_layers or [], ttt_config, device)
    return model


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file, mapped into memory rather than read."""
    if path.suffix not in (".safetensors", ".sft", ".sfts"):
        raise MoshiError(f"{path} is not a safetensors file, the only format read here (pickles can run code)")
    try:
        return load_file(path)
    except SafetensorError as error:
        raise MoshiError(f"{path} is corrupt or not a safetensors file: {error}") from error


def read_base(info: CheckpointInfo) -> dict[str, Tensor]:
    """The tensors of the base model's file, with as many depth steps as its configuration says."""
    tensors = read_tensors(Path(info.moshi_weights))
    if info.lm_config is not None:
        dep_q, n_q = info.lm_config["dep_q"], info.lm_config["n_q"]
        tensors = own_depth_steps(tensors, dep_q, n_q)
        if dep_q == n_q and f"linears.{dep_q - 1}.weight" not in tensors:
            tensors = user_depth_steps(tensors, dep_q // 2)
    if info.model_type == "hibiki":
        # As the official loader does: an early end of sequence is padding, since the input goes on.
        tensors["text_emb.weight"][2] = tensors["text_emb.weight"][3]
    return tensors


def own_depth_steps(tensors: Mapping[str, Tensor], dep_q: int, n_q: int) -> dict[str, Tensor]:
    """The tensors without those of the second half of the depth steps, in a file that has twice `dep_q` of them.

    Such a file predicts the user's audio as well as Moshi's (PersonaPlex).
    """
    if n_q != 2 * dep_q or f"linears.{2 * dep_q - 1}.weight" not in tensors:
        return dict(tensors)
    kept = {}
    for name, tensor in tensors.items():
        step = DEPTH_STEP.match(name)
        if step is not None:
            # The last codebook is no input of the depth transformer, so there is one embedding less than steps.
            if int(step["step"]) < dep_q - (step["part"] == "depformer_emb"):
                kept[name] = tensor
        elif ALL_STEPS.match(name):
            kept[name] = tensor[: len(tensor) // 2]
        else:
            kept[name] = tensor
    return kept


def load_base(
    model: TTTMoshi, tensors: Mapping[str, Tensor], dtype: torch.dtype, device: torch.device, source: str
) -> None:
    """Fills every base tensor of `model` (made on the meta device) and none else.

    Raises:
        MoshiError: a tensor is missing, left over or of another shape; the message lists which.
    """
    loaded = {name: tensor.to(device, storage_dtype(name, dtype)) for name, tensor in tensors.items()}
    names = {name for name in model.state_dict() if tensor_group(name) == "base"}
    loaded_names = assign(model, loaded, source)
    require(source, lacks=names - loaded_names, surplus=loaded_names - names)


def assign(model: TTTMoshi, tensors: Mapping[str, Tensor], source: str, replace: bool = True) -> set[str]:
    """Puts `tensors` into `model`, through the official renaming of older files; returns the parameters they became.

    Args:
        replace: whether the tensors become the parameters themselves, or are copied into those there are.

    Raises:
        MoshiError: a tensor has no place in the model, or another shape than its place.
    """
    try:
        outcome = model.load_state_dict(dict(tensors), strict=False, assign=replace)
    except RuntimeError as error:
        raise MoshiError(f"{source} does not fit this model: {' '.join(str(error).split())}") from error
    require(source, unknown=set(outcome.unexpected_keys))
    return set(model.state_dict()) - set(outcome.missing_keys)


def require(
    source: str, *, lacks: Iterable[str] = (), surplus: Iterable[str] = (), unknown: Iterable[str] = ()
) -> None:
    """Raises `MoshiError` in words unless all are empty."""
    problems = [
        describe(words, sorted(names))
        for words, names in (("lacks", lacks), ("should not have", surplus), ("has, unknown to the model,", unknown))
        if names
    ]
    if problems:
        raise MoshiError(f"{source} " + "; it ".join(problems))


def describe(words: str, names: list[str], shown: int = 5) -> str:
    """`words` followed by how many names there are and the first few of them."""
    more = f" and {len(names) - shown} more" if len(names) > shown else ""
    return f"{words} {len(names)} tensor{'s' if len(names) != 1 else ''}: {', '.join(names[:shown])}{more}"


def cast_for_inference(model: TTTMoshi, dtype: torch.dtype) -> TTTMoshi:
    """Brings every parameter to `dtype`, but those that are float32 in every mode, as the sharded forward does."""
    for name, parameter in model.named_parameters():
        parameter.data = parameter.data.to(storage_dtype(name, dtype))
    return model


def storage_dtype(name: str, dtype: torch.dtype) -> torch.dtype:
    """The type of a tensor in a model that computes in `dtype`."""
    stays = is_fp32(name) or name.startswith(("condition_provider.", "fuser."))
    return torch.float32 if stays else dtype


def initialise_adapters(model: TTTMoshi, seed: int, device: torch.device) -> None:
    """Gives every TTT and LoRA tensor its start value, on the CPU first so that the device does not matter."""
    for index in model.ttt_layers:
        ttt = model.layers[index].ttt
        assert ttt is not None
        ttt.to_empty(device="cpu")
        # The layer draws from the global generator; fork it, so that nothing else notices.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(_seed_for(seed, f"transformer.layers.{index}.ttt"))
            ttt.reset_parameters()
        ttt.to(device)
    for name, parameter in list(model.named_parameters()):
        if tensor_group(name) != "lora":
            continue
        value = torch.zeros(parameter.shape, dtype=torch.float32)
        if ".lora_A." in name:
            # Kaiming uniform with slope sqrt(5), as in the LoRA paper's code (arXiv 2106.09685); B starts at zero.
            bound = 1.0 / math.sqrt(parameter.shape[1])
            value.uniform_(-bound, bound, generator=torch.Generator().manual_seed(_seed_for(seed, name)))
        module, leaf = name.rsplit(".", 1)
        setattr(model.get_submodule(module), leaf, torch.nn.Parameter(value.to(device)))


def _seed_for(seed: int, name: str) -> int:
    # torch's CPU generator looks at the lowest 32 bits only, so both must be mixed into them.
    return int.from_bytes(hashlib.blake2b(f"{seed} {name}".encode(), digest_size=4).digest(), "little")
