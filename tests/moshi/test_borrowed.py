"""What `ttt_moshi.moshi.borrowed` relies on, held against the moshi that is installed."""

from __future__ import annotations

import inspect
from dataclasses import MISSING, fields

import pytest
import torch
from moshi.modules.transformer import KVCacheResult, RingKVCache, StreamingTransformer, _MHAState, _TransformerState

from ttt_moshi.moshi.borrowed import looking_through, standing_at
from ttt_moshi.moshi.streaming import WindowCache


def required(kind) -> list[str]:
    return [f.name for f in fields(kind) if f.init and f.default is MISSING and f.default_factory is MISSING]


def test_the_states_are_made_of_what_we_give():
    assert required(_MHAState) == ["batch_size", "device", "kv_cache", "offset", "offset_cpu"]
    assert required(_TransformerState) == ["batch_size", "device", "offsets"]


def test_the_cache_speaks_the_official_protocol():
    theirs, ours = (list(inspect.signature(kind.complete).parameters) for kind in (RingKVCache, WindowCache))
    assert theirs == ours
    assert KVCacheResult._fields == ("keys", "values", "positions")


@pytest.fixture
def transformer():
    torch.manual_seed(0)
    return StreamingTransformer(
        d_model=16, num_heads=2, num_layers=1, dim_feedforward=32, causal=True, context=6, positional_embedding="rope"
    ).eval()


def test_a_clip_attends_as_if_its_past_were_there(transformer):
    """Official attention over 20 frames at once, against ours over the last 7 with the keys of the 5 before."""
    attention, x = transformer.layers[0].self_attn, torch.randn(2, 20, 16)
    with torch.no_grad():
        expected = attention(x, x, x)
        window = WindowCache(torch.zeros(2, 2, 5, 8), torch.zeros(2, 2, 5, 8), torch.tensor([0, 0]))
        with looking_through(attention, window):
            first = attention(x[:, :13], x[:, :13], x[:, :13])
        window = WindowCache(*window.tail(), torch.tensor([13, 13]))
        with looking_through(attention, window):
            second = attention(x[:, 13:], x[:, 13:], x[:, 13:])
    torch.testing.assert_close(torch.cat([first, second], 1), expected, rtol=1e-5, atol=1e-6)


def test_positions_go_on_where_they_are_said_to():
    torch.manual_seed(0)
    transformer = StreamingTransformer(
        d_model=16, num_heads=2, num_layers=0, dim_feedforward=32, causal=True, positional_embedding="sin"
    ).eval()
    x = torch.randn(1, 9, 16)
    with torch.no_grad(), standing_at(transformer, torch.tensor([4])):
        late = transformer(x[:, 4:])
    torch.testing.assert_close(late, transformer(x)[:, 4:])


def test_nothing_is_left_behind_even_by_an_error(transformer):
    attention = transformer.layers[0].self_attn
    window = WindowCache(torch.zeros(1, 2, 5, 8), torch.zeros(1, 2, 5, 8), torch.tensor([0]))
    lent = [
        (looking_through(attention, window), attention),
        (standing_at(transformer, torch.tensor([0])), transformer),
    ]
    for context, module in lent:
        with pytest.raises(RuntimeError, match="stop"), context:
            assert module._streaming_state is not None
            raise RuntimeError("stop")
        assert module._streaming_state is None
