"""Test-time training inside Moshi: subclasses of the official classes, loading, sharding, exporting."""

from ttt_moshi.moshi.ablation import ablate
from ttt_moshi.moshi.errors import MoshiError
from ttt_moshi.moshi.export import (
    ExportTensor,
    describe_base,
    export_documents,
    export_file_name,
    export_plan,
    materialise,
)
from ttt_moshi.moshi.loading import build_model, cast_for_inference, geometry
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
from ttt_moshi.moshi.parallel import shard
from ttt_moshi.moshi.paths import audio_codec, resolve_model, text_tokenizer
from ttt_moshi.moshi.remade import own_codebooks
from ttt_moshi.moshi.streaming import StreamState
from ttt_moshi.moshi.supported import Purpose, check_supported, first_silence, writing_delay
from ttt_moshi.moshi.trainable import parse_layers, select_trainable
from ttt_moshi.moshi.trained import (
    InitialWeights,
    build_from_documents,
    load_initial_weights,
    load_trained,
    trained_base,
)
from ttt_moshi.moshi.wide import base_with_window

__all__ = [
    "Chunk",
    "Count",
    "ExportTensor",
    "InitialWeights",
    "MoshiError",
    "Purpose",
    "StreamState",
    "TTTMoshi",
    "TensorCounts",
    "ablate",
    "audio_codec",
    "base_with_window",
    "build_from_documents",
    "build_model",
    "cast_for_inference",
    "check_supported",
    "count_tensors",
    "decays",
    "describe_base",
    "export_documents",
    "export_file_name",
    "export_name",
    "export_plan",
    "first_silence",
    "geometry",
    "is_fp32",
    "load_initial_weights",
    "load_trained",
    "materialise",
    "own_codebooks",
    "parameter_role",
    "parse_layers",
    "resolve_model",
    "select_trainable",
    "set_context",
    "shard",
    "tensor_group",
    "text_tokenizer",
    "trained_base",
    "writing_delay",
]
