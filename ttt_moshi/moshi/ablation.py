"""Switching parts of test-time training off, to see what they contribute."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace

from moshi.models.lm import LMModel
from moshi.modules.lora import LoRALinear
from torch import Tensor, nn

from ttt_moshi.moshi.errors import MoshiError
from ttt_moshi.moshi.model import TTTMoshi


@contextmanager
def ablate(
    model: TTTMoshi, *, gate: float = 1.0, inner_lr: float = 1.0, reset_every: int | None = None
) -> Iterator[None]:
    """While the context is open, every TTT layer of `model` works with

    - its output times `gate`: 0 is the model without TTT layers, bit for bit;
    - its step sizes times `inner_lr`: at 0 it never writes, and every frame is read with the initial weights;
    - its memory emptied at every position that is a multiple of `reset_every` (None: never), counted from the start of
      the recording. This one works in `forward` and `forward_chunk`, not in streaming mode and not with prefixes.

    To swap memories between recordings see `StreamState.with_memory_of`.

    Raises:
        MoshiError: a value that means nothing, or a model without TTT layers.
    """
    if not model.ttt_layers:
        raise MoshiError("this model has no TTT layers, so there is nothing to ablate")
    if not inner_lr >= 0:
        raise MoshiError(f"`inner_lr` multiplies step sizes and cannot be negative, got {inner_lr}")
    if reset_every is not None and reset_every < 1:
        raise MoshiError(f"`reset_every` counts frames, got {reset_every}")

    def scale_update(module: nn.Module, args: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        x, update = args
        return x, gate * update

    with ExitStack() as stack:
        for index in model.ttt_layers:
            layer = model.layers[index]
            ttt = layer.ttt
            assert ttt is not None
            if gate != 1.0:
                for module in (ttt.forward_gating, ttt.backward_gating):
                    stack.callback(module.register_forward_pre_hook(scale_update).remove)
            inner = ttt.inner
            stack.callback(setattr, inner, "config", inner.config)
            try:
                inner.config = replace(inner.config, base_lr=inner.config.base_lr * inner_lr)
            except ValueError as error:
                raise MoshiError(f"`inner_lr` {inner_lr} cannot be applied: {error}") from error
            stack.callback(setattr, layer, "reset_every", layer.reset_every)
            layer.reset_every = reset_every
        yield


@contextmanager
def without_lora(model: LMModel) -> Iterator[None]:
    """While the context is open, LoRA adapters have no effect."""
    with ExitStack() as stack:
        for module in model.modules():
            if isinstance(module, LoRALinear):
                stack.callback(setattr, module, "scaling", module.scaling)
                module.scaling = 0.0
        yield


@contextmanager
def without_adapters(model: LMModel) -> Iterator[None]:
    """While the context is open, `model` is its base, bit for bit: LoRA has no effect and TTT gates are closed.

    Only where nothing but LoRA and TTT layers was trained; whoever calls knows.
    """
    with without_lora(model), ExitStack() as stack:
        if isinstance(model, TTTMoshi) and model.ttt_layers:
            stack.enter_context(ablate(model, gate=0.0))
        yield
