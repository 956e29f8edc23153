"""Streaming states of the official modules, made by us for the length of one clip.

Reading a clip in the middle of a recording needs two things that moshi offers in streaming mode alone: attention that
sees keys from before the clip, and positions that do not begin at zero. Both look at the module's streaming state, so a
clip lends them one. This is the only place that knows what is inside; `tests/moshi/test_borrowed.py` holds the
installed moshi to it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import cast

from moshi.modules.transformer import (
    RingKVCache,
    StreamingMultiheadAttention,
    StreamingTransformer,
    _MHAState,
    _TransformerState,
)
from torch import Tensor

from ttt_moshi.moshi.streaming import WindowCache


@contextmanager
def looking_through(attention: StreamingMultiheadAttention, window: WindowCache) -> Iterator[None]:
    """While the context is open, `attention` sees the keys of `window`, and its queries stand where that says."""
    offsets = window.offsets
    cache = cast(RingKVCache, window)  # it speaks the same protocol
    attention._streaming_state = _MHAState(len(offsets), offsets.device, cache, offset=offsets.clone(), offset_cpu=0)
    try:
        yield
    finally:
        attention._streaming_state = None


@contextmanager
def standing_at(transformer: StreamingTransformer, offsets: Tensor) -> Iterator[None]:
    """While the context is open, the first frame of row b has the position `offsets[b]`.

    Only absolute position embeddings look at this; rotary ones take their offset from the attention's state.
    """
    transformer._streaming_state = _TransformerState(len(offsets), offsets.device, offsets.clone())
    try:
        yield
    finally:
        transformer._streaming_state = None
