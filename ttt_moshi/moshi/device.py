"""Where a model runs and in which type it computes, by the names that a person types."""

from __future__ import annotations

import re

import torch

from ttt_moshi.moshi.errors import MoshiError

DTYPES = ("bfloat16", "float32")


def choose_device(name: str, mps: bool = False) -> str:
    """`auto`, `cpu`, `cuda`, `cuda:N` or `mps` as PyTorch knows it; `auto` is an NVIDIA GPU where there is one.

    Args:
        mps: whether Apple's GPUs will do, which have no float64.

    Raises:
        MoshiError: another name, or a GPU that is not here or will not do.
    """
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if name == "mps":
        if not mps:
            raise MoshiError(
                "`--device mps`: only `generate` and `serve` run on Apple's GPUs; take cpu, cuda or cuda:N"
            )
        if not torch.backends.mps.is_available():
            raise MoshiError("`--device mps`: PyTorch finds no Apple GPU here; leave it out, or give --device cpu")
        return name
    match = re.fullmatch(r"cpu|cuda(?::(\d+))?", name)
    if match is None:
        raise MoshiError(f"`--device {name}`: it is auto, cpu, cuda or cuda:N (as in cuda:1)")
    if name == "cpu":
        return name
    if not torch.cuda.is_available():
        raise MoshiError(f"`--device {name}`: PyTorch finds no GPU here; leave it out, or give --device cpu")
    count = torch.cuda.device_count()
    if match[1] is not None and int(match[1]) >= count:
        raise MoshiError(f"`--device {name}`: there are {count} GPUs here, from cuda:0 to cuda:{count - 1}")
    return name


def choose_dtype(name: str | None, trained: str) -> torch.dtype:
    """The type of the forward pass: `name` where it was given, else the `param_dtype` that the model was trained with.

    TTT memories compute in float32 in either.

    Raises:
        MoshiError: neither bfloat16 nor float32.
    """
    chosen = name or trained
    if chosen not in DTYPES:
        raise MoshiError(f"`{chosen}` is no type to compute in here: it is {' or '.join(DTYPES)}")
    return getattr(torch, chosen)


def use_device(device: str) -> None:
    """Makes a GPU this thread's own: what CUDA graphs record belongs to the current one. Ask in every thread."""
    if device.startswith("cuda"):
        torch.cuda.set_device(torch.device(device))
