"""A window with an attention sink: beside the newest frames, every frame also sees the first ones of its recording.

This is StreamingLLM (arXiv 2309.17453) for scoring: of `context` places in the window, `frames` hold the recording's
first positions for good and the others the newest ones. Positions are counted within the window, so that the sink seems
to lie right before the newest frames, however long ago it was heard; while all that was heard fits into the window,
nothing differs from ordinary attention.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import cast

import torch
from moshi.models.lm import LMModel
from moshi.modules.transformer import StreamingMultiheadAttention, apply_weights_per_step, expand_repeated_kv
from torch import Tensor
from torch.nn import functional as F

from ttt_moshi.moshi.errors import MoshiError


@contextmanager
def attention_sink(model: LMModel, frames: int) -> Iterator[None]:
    """While the context is open, the temporal attention of `model` keeps the first `frames` positions of a recording.

    The first position is the initial token, the one after it the first frame. For `forward` and `forward_chunk`, one
    batch of recordings at a time, all from their beginning; not for the streaming mode.

    Raises:
        MoshiError: the window has no room for so many, or no end.
    """
    context = model.context
    if context is None:
        raise MoshiError("this model attends to everything: an attention sink needs a window")
    if not 0 < frames < context:
        raise MoshiError(f"an attention sink of {frames} frames does not fit into a window of {context}")
    with ExitStack() as stack:
        for layer in model.transformer.layers:
            attention = cast(StreamingMultiheadAttention, layer.self_attn)
            stack.callback(delattr, attention, "forward")
            attention.forward = _SinkAttention(attention, frames)  # type: ignore[method-assign]
        yield


class _SinkAttention:
    """The forward pass of one attention, with the keys and values of its sink."""

    def __init__(self, attention: StreamingMultiheadAttention, frames: int):
        self._attention = attention
        self._frames = frames
        self._keys: Tensor | None = None  # [B, H, <= frames, D], rotated to their own positions
        self._values: Tensor | None = None

    def __call__(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        attention, state = self._attention, self._attention._streaming_state
        B, T = query.shape[:2]
        offset = query.new_zeros(B, dtype=torch.long) if state is None else state.offset
        q, k, v = self._project(query)
        turned, k = (q, k) if attention.rope is None else attention.rope(q, k, offset, time_before_heads=False)
        self._collect(k, v, offset)
        k, v, positions = attention._complete_kv(k, v)
        assert attention.context is not None and self._keys is not None and self._values is not None
        at = offset[:, None] + torch.arange(T, device=q.device)  # [B, T]
        if attention.rope is not None:
            # As seen from the sink, no frame is further away than the window is long.
            place = at.clamp(max=attention.context - 1).flatten()
            alone = q.transpose(1, 2).flatten(0, 1)[:, :, None]  # [B T, H, 1, D]: each frame with an offset of its own
            alone, _ = attention.rope(alone, alone, place, time_before_heads=False)
            q = alone[:, :, 0].unflatten(0, (B, T)).transpose(1, 2)
        recent = attention.context - self._frames
        distance = at[:, :, None] - positions[:, None]
        sees = (positions[:, None] >= 0) & (distance >= 0) & (distance < recent)
        sink = torch.arange(self._keys.shape[2], device=q.device).expand(B, 1, -1)
        sees_sink = at[:, :, None] - sink >= recent
        # Two queries for two kinds of keys in one attention: the halves that do not belong together are zero.
        repeat = attention.kv_repeat
        kinds = [(F.pad(k, (0, q.shape[-1])), v), (F.pad(self._keys, (q.shape[-1], 0)), self._values)]
        keys, values = (torch.cat([kind[i].to(q) for kind in kinds], dim=2) for i in (0, 1))
        if repeat > 1:
            keys, values = expand_repeated_kv(keys, repeat), expand_repeated_kv(values, repeat)
        mask = torch.cat([sees, sees_sink], dim=2)[:, None]
        x = F.scaled_dot_product_attention(
            torch.cat([turned, q], dim=-1), keys, values, mask, scale=q.shape[-1] ** -0.5
        )
        x = x.transpose(1, 2).flatten(2)
        x = apply_weights_per_step(attention.out_projs, attention.weights_per_step_schedule, x, 0)
        if state is not None:
            state.offset[:] = state.offset + T
            state.offset_cpu += T
        return x

    def _project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries [B, H, T, D], keys and values [B, H / kv_repeat, T, D], as the official attention makes them."""
        attention = self._attention
        projected = apply_weights_per_step(attention.in_projs, attention.weights_per_step_schedule, x, 0)
        width = attention.embed_dim // attention.num_heads
        q = projected[..., : attention.embed_dim].unflatten(-1, (attention.num_heads, width)).transpose(1, 2)
        k, v = projected[..., attention.embed_dim :].unflatten(-1, (2, -1, width)).permute(2, 0, 3, 1, 4)
        return q, k, v

    def _collect(self, k: Tensor, v: Tensor, offset: Tensor) -> None:
        """Keeps the first positions of the recordings that begin here, or goes on keeping them."""
        start = int(offset[0])
        if not bool((offset == start).all()):
            raise MoshiError("an attention sink is for recordings that are read together from their beginning")
        if start == 0:
            self._keys, self._values = k[:, :, : self._frames], v[:, :, : self._frames]
        elif start < self._frames:
            assert self._keys is not None and self._values is not None
            more = self._frames - start
            self._keys = torch.cat([self._keys, k[:, :, :more]], dim=2)
            self._values = torch.cat([self._values, v[:, :, :more]], dim=2)
