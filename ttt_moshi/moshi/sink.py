"""A window with an attention sink: beside the newest frames, every frame also sees the first ones of its recording.

This is StreamingLLM (arXiv 2309.17453): of `context` places in the window, `frames` hold the recording's first
positions for good and the others the newest ones. Positions are counted within the window, so that the sink seems
to lie right before the newest frames, however long ago it was heard; while all that was heard fits into the window,
nothing differs from ordinary attention.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import cast

import torch
from moshi.models.lm import LMModel
from moshi.modules.transformer import (
    StreamingMultiheadAttention,
    _MHAState,
    apply_weights_per_step,
    expand_repeated_kv,
)
from torch import Tensor
from torch.nn import functional as F

from ttt_moshi.moshi.errors import MoshiError


@contextmanager
def attention_sink(model: LMModel, frames: int) -> Iterator[None]:
    """While the context is open, the temporal attention of `model` keeps the first `frames` positions of a recording.

    The first position is the initial token, the one after it the first frame. For `forward` and `forward_chunk`, one
    batch of recordings at a time, all from their beginning; and for streaming mode, where every row begins and waits
    for itself, if it is entered and left inside.

    Raises:
        MoshiError: the window has no room for so many, or no end.
    """
    check_sink(model, frames)
    with ExitStack() as stack:
        for layer in model.transformer.layers:
            attention = cast(StreamingMultiheadAttention, layer.self_attn)
            kept = _SinkAttention(attention, frames)
            for name, function in (("forward", kept), ("_init_streaming_state", kept.new_state)):
                stack.callback(delattr, attention, name)
                setattr(attention, name, function)
        yield


@contextmanager
def attention_window(model: LMModel, frames: int) -> Iterator[None]:
    """While the context is open, the temporal attention of `model` sees `frames` positions, whatever it saw before.

    Raises:
        MoshiError: fewer than one.
    """
    if frames < 1:
        raise MoshiError(f"the attention window must be at least one frame, got {frames}")
    attentions = [cast(StreamingMultiheadAttention, layer.self_attn) for layer in model.transformer.layers]
    before = (model.context, [attention.context for attention in attentions])
    try:
        model.context = frames
        for attention in attentions:
            attention.context = frames
        yield
    finally:
        model.context = before[0]
        for attention, own in zip(attentions, before[1], strict=True):
            attention.context = own


def check_sink(model: LMModel, frames: int) -> None:
    """Raises `MoshiError` where the attention window has no room for a sink of so many frames, or no end."""
    if model.context is None:
        raise MoshiError("this model attends to everything: an attention sink needs a window")
    if not 0 < frames < model.context:
        raise MoshiError(f"an attention sink of {frames} frames does not fit into a window of {model.context}")


class _SinkAttention:
    """The forward pass of one attention, with the keys and values of its sink."""

    def __init__(self, attention: StreamingMultiheadAttention, frames: int):
        self._attention = attention
        self._frames = frames
        assert attention.context is not None  # `check_sink`
        self._window = attention.context
        self._new_state = attention._init_streaming_state
        self._kept: Tensor | None = None  # of the recordings that are read now, outside streaming mode

    def new_state(self, batch_size: int) -> _MHAState:
        """The official streaming state with room for each row's sink, which thus belongs to the conversation."""
        state = self._new_state(batch_size)
        assert state.kv_cache is not None
        _, B, H, _, D = state.kv_cache.cache.shape
        state.sink = state.kv_cache.cache.new_zeros(B, 2, H, self._frames, D)  # type: ignore[attr-defined]
        return state

    def __call__(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        attention, state = self._attention, self._attention._streaming_state
        B, T = query.shape[:2]
        offset = query.new_zeros(B, dtype=torch.long) if state is None else state.offset
        q, k, v = self._project(query)
        turned, k = (q, k) if attention.rope is None else attention.rope(q, k, offset, time_before_heads=False)
        sink_k, sink_v = self._collect(k, v, offset).unbind(1)
        k, v, positions = attention._complete_kv(k, v)
        at = offset[:, None] + torch.arange(T, device=q.device)  # [B, T]
        if attention.rope is not None:
            # As seen from the sink, no frame is further away than the window is long.
            place = at.clamp(max=self._window - 1).flatten()
            alone = q.transpose(1, 2).flatten(0, 1)[:, :, None]  # [B T, H, 1, D]: each frame with an offset of its own
            alone, _ = attention.rope(alone, alone, place, time_before_heads=False)
            q = alone[:, :, 0].unflatten(0, (B, T)).transpose(1, 2)
        recent = self._window - self._frames
        distance = at[:, :, None] - positions[:, None]
        sees = (positions[:, None] >= 0) & (distance >= 0) & (distance < recent)
        sink = torch.arange(self._frames, device=q.device).expand(B, 1, -1)
        sees_sink = at[:, :, None] - sink >= recent
        # Two queries for two kinds of keys in one attention: the halves that do not belong together are zero.
        repeat = attention.kv_repeat
        kinds = [(F.pad(k, (0, q.shape[-1])), v), (F.pad(sink_k, (q.shape[-1], 0)), sink_v)]
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
            state.offset[:] = torch.where(state.exec_mask, state.offset + T, state.offset)
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

    def _collect(self, k: Tensor, v: Tensor, offset: Tensor) -> Tensor:
        """Puts the first positions of every row that are among k and v [B, H, T, D], rotated to their own positions, to
        those that are there already: keys and values [B, 2, H, frames, D], zeros where a row has not come so far."""
        state = self._attention._streaming_state
        new = torch.stack([k, v], dim=1)
        lasting = getattr(state, "sink", None)
        kept = self._begun(new, offset) if lasting is None else lasting
        B, _, H, T, D = new.shape
        place = torch.arange(self._frames, device=k.device) - offset[:, None]  # [B, frames], among the T
        here = ((place >= 0) & (place < T))[:, None, None, :, None]
        taken = new.gather(3, place.clamp(0, T - 1)[:, None, None, :, None].expand(B, 2, H, self._frames, D))
        begins = (offset == 0)[:, None, None, None, None]
        kept = torch.where(here, taken.to(kept.dtype), torch.where(begins, 0.0, kept).to(kept.dtype))
        if lasting is None:
            self._kept = kept
            return kept
        return lasting.copy_(kept)  # in place: CUDA graphs replay on fixed addresses

    def _begun(self, new: Tensor, offset: Tensor) -> Tensor:
        """What is there of the recordings that are read now, outside streaming mode."""
        begin = offset == 0
        if bool(begin.all()):
            return new.new_zeros(*new.shape[:3], self._frames, new.shape[-1])
        if bool(begin.any()) or self._kept is None or len(self._kept) != len(new):
            raise MoshiError("an attention sink is for recordings that are read together from their beginning")
        return self._kept
