"""Smaller weights for talking: the base's linear layers in int8."""

from __future__ import annotations

import warnings

import torch
from torch import nn

from ttt_moshi.extras import need, remedy
from ttt_moshi.moshi.errors import MoshiError
from ttt_moshi.moshi.model import TTTMoshi
from ttt_moshi.moshi.naming import tensor_group


def quantise_base(model: TTTMoshi) -> None:
    """Stores the weights of the base's linear layers as int8 with a scale for each output; products are made in the
    type that they had. Everything else stays as it is: TTT layers and what they remember are float32, adapters,
    embeddings and norms in the model's type.

    Raises:
        MissingPackageError: torchao is not installed.
        MoshiError: the torchao that is installed is for another PyTorch.
    """
    need_torchao()
    from torchao.quantization import Int8WeightOnlyConfig, quantize_

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # on which form of its tensors is the newer one
        quantize_(model, Int8WeightOnlyConfig(), filter_fn=_is_of_the_base)


def need_torchao() -> None:
    """Raises as `quantise_base`, before anything is loaded."""
    try:
        need("torchao", "`--int8`")
        import torchao.quantization  # noqa: F401
    except ImportError as error:
        raise MoshiError(
            f"`--int8`: the torchao that is installed is for another PyTorch than {torch.__version__} ({error}): "
            f"take the one that fits (0.15 for PyTorch 2.9), or {remedy('torchao')}"
        ) from error


def _is_of_the_base(module: nn.Module, name: str) -> bool:
    outside = name.startswith("condition_provider.")
    return isinstance(module, nn.Linear) and not outside and tensor_group(f"{name}.weight") == "base"
