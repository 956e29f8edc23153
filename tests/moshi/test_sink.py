"""The window with an attention sink, against StreamingLLM's definition on the stock model."""

import pytest
import torch

from ttt_moshi.evaluation.scoring.chunked import score_in_chunks
from ttt_moshi.evaluation.scoring.score import score
from ttt_moshi.moshi import MoshiError, TTTMoshi
from ttt_moshi.moshi.sink import attention_sink

WINDOW, SINK = 12, 3
DELAYS = [0] + [0] + [1] * 7 + [0] + [1] * 7


def build(layers: int = 1, **changes) -> TTTMoshi:
    torch.manual_seed(0)
    return TTTMoshi(
        delays=DELAYS, n_q=16, dep_q=8, card=24, text_card=40, dim=32, num_heads=2, num_layers=layers,
        hidden_scale=2, context=WINDOW, norm="rms_norm_f32", gating="silu",
        depformer_dim=16, depformer_num_heads=2, depformer_num_layers=1, depformer_dim_feedforward=32,
        depformer_multi_linear=True, depformer_pos_emb="none", depformer_weights_per_step=True, causal=True,
        **{"positional_embedding": "rope", **changes},
    ).eval()  # fmt: skip


def codes_of(frames: int, seed: int = 0) -> torch.Tensor:
    g = torch.Generator().manual_seed(seed)
    return torch.cat(
        [torch.randint(0, 40, (2, 1, frames), generator=g), torch.randint(0, 24, (2, 16, frames), generator=g)], 1
    )


@torch.no_grad()
def test_every_frame_sees_the_first_and_the_newest_ones_at_their_places_in_the_window():
    """With one layer, keys and values depend on their own frame alone. So the output at position t is the stock model's
    at the end of a sequence that holds nothing but the frames that are in the window, in their order."""
    model = build()
    sequence = codes_of(40)
    with attention_sink(model, SINK):
        found, _ = model.forward_text(sequence)
    for t in range(40):
        kept = list(range(t + 1)) if t < WINDOW else [*range(SINK), *range(t - (WINDOW - SINK) + 1, t + 1)]
        expected, _ = model.forward_text(sequence[..., kept])
        torch.testing.assert_close(found[:, t], expected[:, -1], atol=1e-5, rtol=1e-5)
    plain, _ = model.forward_text(sequence)
    assert not torch.allclose(found[:, WINDOW:], plain[:, WINDOW:], atol=1e-4)
    torch.testing.assert_close(found[:, :WINDOW], plain[:, :WINDOW], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("chunk", "changes"), [
    (1, {}), (2, {}), (5, {}), (12, {}), (31, {}), (5, {"kv_repeat": 2}), (5, {"positional_embedding": "none"}),
])  # fmt: skip
def test_chunks_equal_the_whole(chunk, changes):
    model, codes, frames = build(layers=2, **changes), codes_of(31), torch.tensor([31, 31])
    with attention_sink(model, SINK):
        whole = score(model, codes, frames).nll
        found = score_in_chunks(model, codes, frames, chunk).nll
        again = score_in_chunks(model, codes_of(31, seed=1), frames, chunk).nll  # another batch has its own sink
        expected = score(model, codes_of(31, seed=1), frames).nll
    torch.testing.assert_close(found, whole, atol=1e-4, rtol=0, equal_nan=True)
    torch.testing.assert_close(again, expected, atol=1e-4, rtol=0, equal_nan=True)


def test_what_lies_between_sink_and_window_is_not_seen_and_the_sink_is():
    model, codes = build(), codes_of(60)
    frames = torch.tensor([60, 60])

    def tail(changed: slice) -> torch.Tensor:
        other = codes.clone()
        other[..., changed] = codes_of(60, seed=7)[..., changed]
        with attention_sink(model, SINK):
            return score(model, other, frames).nll[..., 50:59]

    usual = tail(slice(0, 0))
    assert torch.equal(tail(slice(SINK + 1, 35)), usual)  # one layer: no frame in between can be heard
    assert not torch.allclose(tail(slice(0, SINK - 1)), usual, atol=1e-5)


def test_it_leaves_no_trace_and_refuses_what_does_not_fit():
    model, codes = build(), codes_of(30)
    before = score(model, codes).nll
    with attention_sink(model, SINK):
        pass
    assert torch.equal(score(model, codes).nll.nan_to_num(), before.nan_to_num())
    for frames in (0, -1, WINDOW, 99):
        with pytest.raises(MoshiError, match="does not fit"), attention_sink(model, frames):
            pass
    model.context = None
    with pytest.raises(MoshiError, match="needs a window"), attention_sink(model, SINK):
        pass
