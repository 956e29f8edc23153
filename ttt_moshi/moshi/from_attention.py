"""TTT layers that begin with the projections of the attention beside them (`ttt.init: attention`).

What a finished model reads out of its wide window is in the attention's weights: which frames answer which question
(queries and keys), and what is then said (values and output). A linear memory that starts with them only learns to hold
what the attention looked up (as in linear attentions made of softmax ones: arXiv 2410.10254, arXiv 2408.15237).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ttt_moshi.moshi.errors import MoshiError
from ttt_moshi.moshi.layer import TTTTransformerLayer
from ttt_moshi.moshi.model import TTTMoshi


@torch.no_grad()
def start_from_attention(model: TTTMoshi) -> None:
    """Copies queries, keys, values and output of the attention of every layer with a TTT layer into that.

    The norm before the attention is folded into the first three; biases stay zero; the rotation of queries and keys by
    their positions has no counterpart and is left out. Where several heads share keys and values, each gets them.

    Raises:
        MoshiError: the base model's norms are not RMS norms.
    """
    for index in model.ttt_layers:
        layer = model.layers[index]
        assert isinstance(layer, TTTTransformerLayer) and layer.ttt is not None
        ttt = layer.ttt
        for projection, weight in zip((ttt.wq, ttt.wk, ttt.wv, ttt.wo), _projections(layer, index), strict=True):
            projection.weight.copy_(weight)


def _projections(layer: TTTTransformerLayer, index: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Weights of queries, keys, values and output, float32 [D, D] each, for an input of unit mean square."""
    attention = layer.self_attn
    alpha = getattr(layer.norm1, "alpha", None)
    if alpha is None:
        raise MoshiError(
            f"`ttt.init: attention` needs a base model with RMS norms, layer {index} has {type(layer.norm1).__name__}: "
            "take `ttt.init: random`"
        )
    D, repeat = attention.embed_dim, attention.kv_repeat
    joint = _weight(attention.in_projs[0]).float() * alpha.flatten().float()
    width = D // repeat
    queries, keys, values = joint.split([D, width, width])
    head = D // attention.num_heads

    def every_head(weight: Tensor) -> Tensor:
        return weight.unflatten(0, (-1, head)).repeat_interleave(repeat, dim=0).flatten(0, 1)

    return queries, every_head(keys), every_head(values), _weight(attention.out_projs[0]).float()


def _weight(projection: nn.Module) -> Tensor:
    """Of a linear layer, without the LoRA adapter that may be around it."""
    weight = getattr(projection, "frozen_W", projection).weight
    assert isinstance(weight, Tensor)
    return weight
