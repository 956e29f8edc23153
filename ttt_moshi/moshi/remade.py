"""Base models that are changed before training: another text vocabulary, or depth steps for the user's audio too.

Both follow nu-dialogue's moshi-finetune, so that what was trained there and here can be compared.
"""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from moshi.models import loaders
from moshi.models.lm import LMModel
from moshi.models.loaders import CheckpointInfo
from sentencepiece import SentencePieceProcessor
from torch import Tensor

from ttt_moshi.config import DataArgs, ModelPaths
from ttt_moshi.moshi.errors import MoshiError
from ttt_moshi.moshi.paths import resolve_model

TEXT_EMBEDDINGS = ("text_emb.weight", "depformer_text_emb.weight")
TEXT_TENSORS = (*TEXT_EMBEDDINGS, "text_linear.weight", "text_linear.bias")
"""everything with one row for each piece of the tokenizer; embeddings have one more, for the beginning"""
_SPREAD = math.sqrt(1e-5)
"""of new rows around the mean of the old ones, as a share of the old ones' spread"""


def base_to_train(paths: ModelPaths, data: DataArgs) -> CheckpointInfo:
    """Where the base model is (`resolve_model`), described as the configuration makes it anew.

    Raises:
        MoshiError: it cannot be found, or is of another kind.
    """
    info = resolve_model(paths)
    if data.new_text_embeddings:
        take_vocabulary(info)
    if data.train_user_stream:
        predict_the_user(info)
    return info


def take_vocabulary(info: CheckpointInfo) -> None:
    """Gives a base model as many text tokens as its tokenizer has pieces.

    Raises:
        MoshiError: the tokenizer cannot be read, or the model reads and writes text in another way.
    """
    try:
        pieces = SentencePieceProcessor(str(info.tokenizer)).get_piece_size()
    except (OSError, RuntimeError) as error:
        raise MoshiError(f"the tokenizer {info.tokenizer} cannot be read: {error}") from error
    config = _config(info)
    for key in ("text_card_out", "demux_second_text_stream", "demux_second_stream"):
        if config.get(key):
            raise MoshiError(f"`data.new_text_embeddings`: the model has `{key}`, so its text tokens are not pieces")
    _set(info, {"text_card": pieces})


def predict_the_user(info: CheckpointInfo) -> None:
    """Gives a base model depth steps for the user's codebooks, after its own.

    Raises:
        MoshiError: its depth steps cannot be doubled.
    """
    config = _config(info)
    dep_q, n_q = config["dep_q"], config["n_q"]
    if n_q != 2 * dep_q:
        raise MoshiError(f"`data.train_user_stream`: the model has {dep_q} depth steps for {n_q} codebooks, not half")
    if config.get("depformer_weights_per_step_schedule") or not config.get("depformer_weights_per_step"):
        raise MoshiError("`data.train_user_stream`: the model's depth steps share weights, which cannot be doubled")
    _set(info, {"dep_q": n_q, "depformer_context": n_q})


def own_codebooks(model: LMModel) -> int:
    """Codebooks that a model says itself. One that predicts all of them was given depth steps for the user's."""
    return model.dep_q // 2 if model.dep_q == model.n_q else model.dep_q


def new_text_tensors(
    tensors: Mapping[str, Tensor], text_card: int, kept: Sequence[int], seed: int
) -> dict[str, Tensor]:
    """Text embeddings and head for another tokenizer with `text_card` pieces.

    Rows are drawn around the mean of the old ones, so that nothing of the old words is left and the size is what the
    model knows. The rows `kept` (padding) and that of the beginning mean the same as before and stay.
    """
    found = {}
    for number, name in enumerate(TEXT_TENSORS):
        if name not in tensors:
            continue
        old = tensors[name].float()
        embeds = name in TEXT_EMBEDDINGS
        generator = torch.Generator().manual_seed(seed * len(TEXT_TENSORS) + number)
        new = torch.randn((text_card + embeds, *old.shape[1:]), generator=generator)
        new = old.mean(dim=0) + _SPREAD * old.std(dim=0) * new
        new[list(kept)] = old[list(kept)]
        if embeds:
            new[-1] = old[-1]
        found[name] = new.to(tensors[name].dtype)
    return found


def user_depth_steps(tensors: Mapping[str, Tensor], dep_q: int) -> dict[str, Tensor]:
    """The tensors with `dep_q` depth steps more, which begin as copies of those that are there."""
    found = dict(tensors)
    for name, tensor in tensors.items():
        step = DEPTH_STEP.match(name)
        if step is not None:
            # The last of Moshi's codebooks was no input of a depth step until now. Its embedding begins as the first.
            extra = step["part"] == "depformer_emb"
            number = int(step["step"])
            found[_renumbered(name, step, number + dep_q)] = tensor.clone()
            if extra and number == 0:
                found[_renumbered(name, step, dep_q - 1)] = tensor.clone()
        elif ALL_STEPS.match(name):
            found[name] = torch.cat([tensor, tensor])
    return found


def _renumbered(name: str, step: re.Match[str], number: int) -> str:
    return name[: step.start("step")] + str(number) + name[step.end("step") :]


DEPTH_STEP = re.compile(
    r"(?P<part>linears|depformer_in|depformer_emb|depformer_norms"
    r"|depformer\.layers\.\d+\.(?:gating|self_attn\.in_projs|self_attn\.out_projs))\.(?P<step>\d+)\."
)
# Older files keep the projections of all depth steps in one tensor, one after another.
ALL_STEPS = re.compile(r"depformer\.layers\.\d+\.self_attn\.(in_proj_weight|in_proj\.weight|out_proj\.weight)$")


def _config(info: CheckpointInfo) -> dict[str, Any]:
    return copy.deepcopy(loaders._lm_kwargs) if info.raw_config is None else info.raw_config


def _set(info: CheckpointInfo, changes: Mapping[str, Any]) -> None:
    info.raw_config = {**_config(info), **changes}
    info.lm_config = {**(info.lm_config or copy.deepcopy(loaders._lm_kwargs)), **changes}
