"""Which parameters a run trains."""

from __future__ import annotations

from collections.abc import Collection

from torch import nn

from ttt_moshi.config import LoraArgs, TTTArgs
from ttt_moshi.moshi.errors import MoshiError
from ttt_moshi.moshi.naming import Mode, export_name, tensor_group


def parse_layers(spec: str, num_layers: int) -> list[int]:
    """Indices of the temporal layers that `ttt.layers` asks for, ascending.

    `all`; `middle`, the middle half (as many layers before it as after it, give or take one); `none`; or indices
    separated by commas.

    Raises:
        MoshiError: anything else, or an index that the model does not have.
    """
    word = spec.strip().lower()
    if word == "all":
        return list(range(num_layers))
    if word == "middle":
        count = max(1, num_layers // 2)
        start = (num_layers - count) // 2
        return list(range(start, start + count))
    if word == "none":
        return []
    try:
        layers = sorted({int(part) for part in spec.split(",")})
    except ValueError:
        raise MoshiError(f'`ttt.layers` must be all, middle, none or indices such as "1,5,10", got {spec!r}') from None
    unknown = [index for index in layers if not 0 <= index < num_layers]
    if unknown:
        raise MoshiError(
            f"`ttt.layers` names layer {unknown[0]}, and the model has {num_layers} (0 to {num_layers - 1})"
        )
    return layers


def select_trainable(
    model: nn.Module, ttt: TTTArgs, lora: LoraArgs, full_finetuning: bool, anew: Collection[str] = ()
) -> Mode:
    """Sets `requires_grad` of every parameter and returns the mode's name.

    `full` trains everything; otherwise LoRA trains its adapters (with `ft_embed` the embedding tables too) and TTT its
    layers. A condition provider stays frozen: its output enters the model as a given tensor.

    Args:
        anew: official names of base tensors that were made anew, and so are trained in every mode.

    Raises:
        MoshiError: LoRA beside full fine-tuning, or tensors that the configuration promises are not in the model.
    """
    if full_finetuning and lora.enable:
        raise MoshiError("`full_finetuning: true` trains every weight, so `lora.enable` must be false")
    tables = {f"{name}.weight" for name, module in model.named_modules() if isinstance(module, nn.Embedding)}
    trained = set()
    for name, parameter in model.named_parameters():
        group = tensor_group(name)
        adapted = group != "base" or (lora.enable and lora.ft_embed and name in tables) or export_name(name) in anew
        chosen = (full_finetuning or adapted) and not name.startswith("condition_provider.")
        parameter.requires_grad_(chosen)
        if chosen:
            trained.add(group)
    wanted = {group for group, on in (("lora", lora.enable), ("ttt", ttt.enable)) if on}
    present = trained & {"lora", "ttt"}
    if ttt.enable and "ttt" not in present and ttt.layers.strip().lower() == "none":
        wanted.discard("ttt")
    if wanted != present:
        raise MoshiError(f"the configuration trains {sorted(wanted)}, and the model has {sorted(present)}")
    if full_finetuning:
        return "full"
    if present == {"lora", "ttt"}:
        return "lora+ttt"
    return "lora" if present == {"lora"} else "ttt" if present == {"ttt"} else "frozen"
