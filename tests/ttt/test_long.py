"""Ten minutes of frames and thousands of streamed ones: no drift, no growth; and what training keeps in memory."""

from __future__ import annotations

import gc
import os

import pytest
import torch

from ttt_moshi.ttt import TTTConfig, TTTLayer, mlp_step
from ttt_moshi.ttt.block import block_step
from ttt_moshi.ttt.norm_step import InnerGradient
from ttt_moshi.ttt.scan import scan
from ttt_moshi.ttt.scan_types import Fixed, Gradients, Inputs, make_batches
from ttt_moshi.ttt.sequence import run_fresh

TEN_MINUTES = 7500


def drift(make_problem, max_rel, K, dtype, H, f):
    frames, memory, norm, rule = make_problem(B=1, H=H, f=f, T=TEN_MINUTES, K=K, dtype=dtype, update_biases=False)
    with torch.no_grad():
        expected, end = run_fresh(frames, memory, norm, rule)
        outputs = []
        for t in range(TEN_MINUTES):
            out, memory = block_step(frames.between(t, t + 1), memory, norm, rule)
            outputs.append(out)
    return max(max_rel(torch.cat(outputs, dim=2), expected), max_rel(memory.weights.W1, end.weights.W1))


def test_ten_minutes_one_frame_at_a_time(make_problem, max_rel):
    assert drift(make_problem, max_rel, 16, torch.float32, H=1, f=16) <= 2e-6


@pytest.mark.slow
@pytest.mark.parametrize("K", [16, 64])
@pytest.mark.parametrize(("dtype", "bar"), [(torch.float32, 2e-6), (torch.float64, 1e-12)])
def test_ten_minutes_at_full_head_width(make_problem, max_rel, K, dtype, bar):
    assert drift(make_problem, max_rel, K, dtype, H=2, f=128) <= bar


def test_weights_are_found_again_walking_backwards(make_problem, max_rel):
    """469 mini-batches forward, then back: the weights of the start, to float32 accuracy."""
    frames, memory, norm, rule = make_problem(B=1, H=2, f=32, T=469 * 16, K=16, dtype=torch.float32)
    inputs = [t.flatten(0, 1) for t in frames]
    start = [w.flatten(0, 1) for w in memory.weights]
    batches, fixed = make_batches(Inputs(*inputs, *norm, rule.tau(frames.q)), 1.0), Fixed(*norm, 1.0)
    room = [torch.empty(469, 2, rows * 16, width) for rows, width in mlp_step.saved_shapes(start)]
    weights = [w.clone() for w in start]
    for n, batch in enumerate(batches.unbind()):
        mlp_step.forward(weights, batch, fixed, [t[n] for t in room])
    assert max_rel(weights[0], start[0]) > 0.1, "nothing was learned: the test would prove nothing"
    end = [w.clone() for w in weights]
    inner = InnerGradient.of(room[1], batches.target, *norm)
    gradients = [torch.zeros_like(w) for w in start]
    each = zip(batches.unbind(), zip(*room, strict=True), inner.unbind(), Gradients.room(batches).unbind(), strict=True)
    for batch, saved, inner_own, d in reversed(list(each)):
        mlp_step.backward(weights, batch, fixed, saved, inner_own, torch.zeros(2, 16, 32), gradients, d)
    for found, wanted, largest in zip(weights, start, end, strict=True):
        assert float((found - wanted).abs().max() / largest.abs().max()) <= 1e-6


def resident_bytes():
    with open("/proc/self/statm") as f:
        return int(f.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def stream_growth(layer, frames):
    state = layer.init_state(1).detach()
    x = torch.randn(64, 1, 1, layer.config.dim)
    for t in range(100):
        layer.stream(x[t % 64], state)
    size, start = state.num_bytes, (gc.collect(), resident_bytes())[1]
    for t in range(frames):
        layer.stream(x[t % 64], state)
    assert state.num_bytes == size
    gc.collect()
    return resident_bytes() - start


def test_streaming_does_not_grow(make_layer):
    assert stream_growth(make_layer(dim=64), 2000) < 1e6


@pytest.mark.slow
def test_ten_thousand_frames_do_not_grow(make_layer):
    assert stream_growth(make_layer(dim=256), 10_000) < 1e6


def test_state_size_at_moshi_geometry():
    layer = TTTLayer(TTTConfig(dim=4096, num_heads=32), device="meta")
    assert layer.init_state(1).num_bytes <= 19.6e6


def kept_for_backward(run):
    """Bytes that the graph of `run()` holds, every storage once."""
    storages = {}

    def pack(tensor):
        storages[tensor.untyped_storage().data_ptr()] = (tensor.untyped_storage().nbytes(), tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        out = run()
    total = sum(size for size, _ in storages.values())
    del out
    return total


def test_training_memory_per_frame(make_problem, by_block_steps):
    """At 32 heads of 128 and K = 16: what two lengths keep, so that what does not depend on length cancels."""

    def of(length, run):
        problem = make_problem(B=1, H=32, f=128, T=length, K=16, dtype=torch.float32, update_biases=False, grad=True)
        return kept_for_backward(lambda: run(*problem))

    def per_frame(run):
        return (of(64, run) - of(32, run)) / 32

    ours = per_frame(lambda frames, memory, norm, rule: scan(frames, memory.weights, norm, rule)[0])
    plain = per_frame(lambda *problem: by_block_steps(*problem)[0])
    assert ours <= 0.2e6
    assert plain >= 9 * ours
    assert of(64, lambda frames, memory, norm, rule: scan(frames, memory.weights, norm, rule)[0]) <= 64 * ours + 17.2e6


@pytest.mark.slow
@pytest.mark.parametrize(("policy", "bar"), [("rebuild", 1.6e9), ("checkpoint", 0.9e9)])
def test_ten_minute_sample_trains(make_problem, policy, bar):
    frames, memory, norm, rule = make_problem(
        B=1, H=32, f=128, T=7504, K=16, dtype=torch.float32, update_biases=False, grad=True
    )
    out = []
    kept = kept_for_backward(lambda: out.append(scan(frames, memory.weights, norm, rule, policy)[0]))
    print(f"{policy}: {kept / 1e9:.3f} GB kept")
    assert kept <= bar
