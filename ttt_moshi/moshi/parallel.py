"""Sharding over any number of ranks, one included, so that one process and many run the same code."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method

from ttt_moshi.moshi.layer import TTTTransformerLayer
from ttt_moshi.moshi.model import TTTMoshi


def shard(model: TTTMoshi, mesh: DeviceMesh, param_dtype: torch.dtype) -> TTTMoshi:
    """Shards every parameter over `mesh`, in place, and computes in `param_dtype`; call it before making the optimizer.

    Masters keep their type (float32 where trained), gradients are reduced in float32 and averaged over the ranks.
    Parameter names do not change. Units, each whole only while its own forward or backward runs:

    - each TTT layer's inner network in float32, since smaller types round its updates away;
    - each gate in float32: it grows from 0.1 by steps that bfloat16 would not show in the forward pass;
    - the rest of a TTT layer, every transformer layer, and what remains of the model, in `param_dtype`.

    Inputs are not cast on the way into a unit: layers agree on types by themselves, and a carried float32 memory must
    not be rounded.

    Args:
        mesh: one-dimensional, over all ranks.
        param_dtype: bfloat16 or float32.
    """
    compute = MixedPrecisionPolicy(param_dtype=param_dtype, reduce_dtype=torch.float32, cast_forward_inputs=False)
    exact = MixedPrecisionPolicy(param_dtype=torch.float32, reduce_dtype=torch.float32, cast_forward_inputs=False)
    for layer in [module for module in model.modules() if isinstance(module, TTTTransformerLayer)]:
        if layer.ttt is not None:
            for part in (layer.ttt.inner, layer.ttt.forward_gating, layer.ttt.backward_gating):
                fully_shard(part, mesh=mesh, mp_policy=exact)
            fully_shard(layer.ttt, mesh=mesh, mp_policy=compute)
        fully_shard(layer, mesh=mesh, mp_policy=compute)
        if layer.ttt is not None:
            layer.register_forward_pre_hook(_make_units_whole, with_kwargs=True)
    # Conditions are computed outside of the model's forward, where sharded parameters are not whole.
    outside = set() if model.condition_provider is None else set(model.condition_provider.parameters())
    fully_shard(model, mesh=mesh, mp_policy=compute, ignored_params=outside)
    register_fsdp_forward_method(model, "forward_chunk")
    model.compute_dtype = param_dtype
    return model


@contextmanager
def whole(model: TTTMoshi) -> Iterator[None]:
    """Inside, every parameter of a sharded model is whole on every rank, in the type that it computes in, so that parts
    of the model may be called by themselves and no rank needs another. Call it on all ranks.
    """
    units = [module for module in model.modules() if isinstance(module, FSDPModule)]
    with torch.no_grad():
        # FSDP takes the module whose forward comes first for the root of all.
        model(torch.full((1, model.num_codebooks, 2), model.zero_token_id, device=model.device))
    try:
        for unit in units:
            unit.set_reshard_after_forward(False, recurse=False)
            unit.unshard()
        yield
    finally:
        for unit in units:
            # The root stays whole from forward to backward, as FSDP has it.
            unit.set_reshard_after_forward(unit is not model, recurse=False)
            unit.reshard()


def _make_units_whole(layer: TTTTransformerLayer, args: object, kwargs: dict[str, Any]) -> None:
    """Gathers the units that a layer is about to run.

    Activation checkpointing runs a layer again in the backward pass. When several clips share one backward pass, a
    unit that is through with the last clip still believes to be in its backward, and would not gather by itself for
    the recomputation of the clip before.
    """
    ttt = layer.ttt
    assert ttt is not None
    if layer.passed_over:
        return
    units = [ttt, ttt.inner, ttt.forward_gating]
    # A unit that is gathered and then not run would stay whole.
    if kwargs.get("prefix_lengths") is not None and ttt.config.bidirectional_prefix:
        units.append(ttt.backward_gating)
    for unit in units:
        assert isinstance(unit, FSDPModule)
        unit.unshard()
