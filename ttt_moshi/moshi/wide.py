"""The base model inside a model that is being taught, with a window of its own: the teacher of a memory."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from ttt_moshi.moshi.ablation import without_lora
from ttt_moshi.moshi.model import TTTMoshi
from ttt_moshi.moshi.sink import attention_window


@contextmanager
def base_with_window(model: TTTMoshi, frames: int) -> Iterator[None]:
    """While the context is open, `model` works without its TTT layers and LoRA adapters, and attends to `frames`.

    For `forward` and `forward_chunk`, with streams that were started inside. What is frozen is the base model as it was
    loaded.
    """
    with attention_window(model, frames), without_lora(model), ExitStack() as stack:
        for layer in model.layers:
            stack.callback(setattr, layer, "passed_over", layer.passed_over)
            layer.passed_over = True
        yield
