"""Test-time training inside Moshi: subclasses of the official classes, loading, sharding, exporting."""

from ttt_moshi.moshi.errors import MoshiError
from ttt_moshi.moshi.loading import build_model
from ttt_moshi.moshi.model import Chunk, TTTMoshi, set_context
from ttt_moshi.moshi.naming import (
    Count,
    TensorCounts,
    count_tensors,
    decays,
    export_name,
    is_fp32,
    parameter_role,
    tensor_group,
)
from ttt_moshi.moshi.paths import resolve_model
from ttt_moshi.moshi.streaming import StreamState
from ttt_moshi.moshi.trainable import parse_layers, select_trainable

__all__ = [
    "Chunk",
    "Count",
    "MoshiError",
    "StreamState",
    "TTTMoshi",
    "TensorCounts",
    "build_model",
    "count_tensors",
    "decays",
    "export_name",
    "is_fp32",
    "parameter_role",
    "parse_layers",
    "resolve_model",
    "select_trainable",
    "set_context",
    "tensor_group",
]
