"""The layer: identity at its start, streaming, causality bit for bit, masks, the prefix."""

from __future__ import annotations

import pytest
import torch

from ttt_moshi.ttt import PRESETS, TTTConfig, TTTLayer, TTTState

KINDS = [(preset, inner) for preset in PRESETS for inner in ("mlp", "linear")] + [("speech", "delta")]
EVERY_MEMORY = [
    {},
    {"inner": "linear"},
    {"inner": "delta"},
    {"inner": "delta", "half_life_frames": (4, 40)},
    {"inner": "delta", "half_life_frames": (4, 40), "target": "both"},
]


def bits(tensor):
    return tensor.view(torch.int32 if tensor.dtype == torch.float32 else torch.int16)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("preset", "inner"), KINDS)
def test_a_new_layer_is_the_identity(preset, inner, dtype):
    layer = TTTLayer(TTTConfig(dim=32, num_heads=2, preset=preset, inner=inner))
    x = torch.randn(2, 41, 32).to(dtype)
    y, _ = layer(x, prefix_lengths=torch.tensor([5, 11]))
    assert y.dtype == dtype
    assert torch.equal(bits(y), bits(x))


def test_closed_gates_are_the_identity(make_layer):
    layer = make_layer()
    torch.nn.init.zeros_(layer.forward_gating.gating_alpha)
    torch.nn.init.zeros_(layer.backward_gating.gating_alpha)
    x = torch.randn(2, 11, 32)
    assert torch.equal(bits(layer.prefix(x)[0]), bits(x))


@pytest.mark.parametrize(("preset", "inner"), KINDS)
def test_every_parameter_is_used(make_layer, preset, inner):
    layer = make_layer(preset=preset, inner=inner)
    y, _ = layer(torch.randn(2, 11, 32), prefix_lengths=torch.tensor([6, 0]))
    y.square().sum().backward()
    assert len(list(layer.parameters())) == {"mlp": 20, "linear": 18, "delta": 17}[inner]
    for name, parameter in layer.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().max() > 0, name


def test_size_at_moshi_geometry():
    layer = TTTLayer(TTTConfig(dim=4096, num_heads=32), device="meta")
    assert len(list(layer.parameters())) == 20
    assert sum(p.numel() for p in layer.parameters()) == 71_495_712


def test_meta_device_then_reset_initialises_everything(make_layer):
    layer = TTTLayer(TTTConfig(dim=32, num_heads=2), device="meta").to_empty(device="cpu")
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.fill_(torch.nan)
    torch.manual_seed(3)
    layer.reset_parameters()
    direct = TTTLayer(TTTConfig(dim=32, num_heads=2))
    torch.manual_seed(3)
    direct.reset_parameters()
    for (name, a), (_, b) in zip(layer.named_parameters(), direct.named_parameters(), strict=True):
        assert torch.equal(a, b), name


@pytest.mark.parametrize(("preset", "inner"), KINDS)
def test_any_split_and_streaming_equal_the_parallel_call(make_layer, preset, inner):
    layer = make_layer(preset=preset, inner=inner)
    x = torch.randn(3, 23, 32)
    y, end = layer(x)
    for sizes in ([1] * 23, [5, 1, 9, 8], [23], [3, 20], [10, 13]):
        state, outputs = layer.init_state(3), []
        for part in x.split(sizes, dim=1):
            out, state = layer(part, state)
            outputs.append(out)
        torch.testing.assert_close(torch.cat(outputs, 1), y, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(state.W1, end.W1, rtol=1e-5, atol=1e-5)
        assert inner == "delta" or torch.equal(state.phase, end.phase)
    state = layer.init_state(3).detach()
    addresses = {name: tensor.data_ptr() for name, tensor in state.tensors().items()}
    outputs = [layer.stream(part, state) for part in x.split([1] * 9 + [5, 1, 8], dim=1)]
    torch.testing.assert_close(torch.cat(outputs, 1), y, rtol=1e-5, atol=1e-5)
    assert addresses == {name: tensor.data_ptr() for name, tensor in state.tensors().items()}


@pytest.mark.parametrize(("preset", "inner"), KINDS)
def test_no_output_depends_on_a_later_frame_in_any_bit(make_layer, preset, inner):
    layer = make_layer(preset=preset, inner=inner, mini_batch_size=16)
    x = torch.randn(2, 50, 32)
    prefix = torch.tensor([0, 7])
    y, _ = layer(x, prefix_lengths=prefix)
    for t in (0, 5, 15, 16, 31, 49):
        for other in (
            torch.randn(32),
            torch.full((32,), torch.nan),
            torch.full((32,), torch.inf),
            torch.full((32,), 1e30),
        ):
            changed = x.clone()
            changed[:, t] = other
            y2, _ = layer(changed, prefix_lengths=prefix)
            assert torch.equal(bits(y2[0, :t]), bits(y[0, :t]))
            assert torch.equal(bits(y2[1, 7 if t < 7 else 0 : t]), bits(y[1, 7 if t < 7 else 0 : t]))
            assert not torch.equal(y2[:, t], y[:, t])
            if not other.isfinite().all():
                assert y2[0, t:].isnan().all(), "a frame that is no number must be noticed"


@pytest.mark.parametrize("settings", [{"mini_batch_size": 8}, {"inner": "delta"}])
def test_gradient_from_the_future_is_exactly_zero(make_layer, settings):
    layer = make_layer(**settings)
    x = torch.randn(1, 20, 32, requires_grad=True)
    y, _ = layer(x)
    for t in (0, 3, 7, 8, 12):
        (gradient,) = torch.autograd.grad(y[:, t].square().sum(), x, retain_graph=True)
        assert (gradient[:, t + 1 :] == 0).all()
        assert (gradient[:, : t + 1] != 0).any(-1).all()


@pytest.mark.parametrize("settings", EVERY_MEMORY)
def test_masks_and_resets_leave_each_stream_as_if_alone(make_layer, settings):
    layer = make_layer(**settings)
    generator = torch.Generator().manual_seed(1)
    B, T = 3, 40
    x = torch.randn(B, T, 32, generator=generator)
    runs = torch.rand(T, B, generator=generator) < 0.7
    resets = torch.rand(T, B, generator=generator) < 0.08
    state, initial = layer.init_state(B).detach(), layer.init_state(1).detach()
    solo = [initial.clone() for _ in range(B)]
    for t in range(T):
        state.reset_(resets[t], initial)
        garbage = x[:, t : t + 1].clone()
        garbage[~runs[t]] = torch.nan  # what a stream that does not run is fed must not matter
        y = layer.stream(garbage, state, exec_mask=runs[t])
        for b in range(B):
            if resets[t, b]:
                solo[b] = initial.clone()
            if runs[t, b]:
                expected = layer.stream(x[b : b + 1, t : t + 1], solo[b])
                torch.testing.assert_close(y[b : b + 1], expected, rtol=2e-6, atol=2e-6)
    for b in range(B):
        torch.testing.assert_close(state.W1[b], solo[b].W1[0], rtol=2e-6, atol=2e-6)
        assert state.phase is None or state.phase[b] == solo[b].phase[0]


@pytest.mark.parametrize("settings", EVERY_MEMORY)
def test_masks_in_calls_of_several_frames(make_layer, settings):
    layer = make_layer(**settings)
    x = torch.randn(3, 9, 32)
    _, state = layer(x[:, :6])
    run = torch.tensor([True, False, True])
    y, after = layer(x, state, exec_mask=run, reset=torch.tensor([False, False, True]))
    expected, solo = layer(x[:1], state.map(lambda t: t[:1]))
    torch.testing.assert_close(y[:1], expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(after.W1[:1], solo.W1)
    for name, tensor in after.tensors().items():
        assert torch.equal(tensor[1], state.tensors()[name][1]), name
    fresh, _ = layer(x[2:])
    torch.testing.assert_close(y[2:], fresh, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("settings", EVERY_MEMORY)
def test_reset_stream_is_free_of_its_past_even_if_that_was_not_finite(make_layer, settings):
    layer = make_layer(**settings)
    state, initial = layer.init_state(1).detach(), layer.init_state(1)
    layer.stream(torch.full((1, 1, 32), torch.nan), state)
    x = torch.randn(1, 7, 32)
    assert layer.stream(x, state).isnan().all()
    state.reset_(torch.tensor([True]), initial)
    torch.testing.assert_close(layer.stream(x, state), layer(x)[0], rtol=1e-5, atol=1e-5)


def test_prefix_frames_hear_each_other_and_nothing_else_changes(make_layer):
    layer = make_layer()
    x = torch.randn(3, 12, 32)
    plain, plain_state = layer(x)
    y, state = layer(x, prefix_lengths=torch.tensor([0, 5, 12]))
    assert torch.equal(y[0], plain[0])
    assert torch.equal(y[1, 5:], plain[1, 5:])
    assert not torch.isclose(y[1, :5], plain[1, :5]).all(-1).any()
    for name, tensor in state.tensors().items():
        assert torch.equal(tensor, plain_state.tensors()[name]), name
    # By hand: the same layer, once more, over the reversed prefix of its own output, with the other gate.
    branch = layer.forward_gating
    layer.forward_gating = layer.backward_gating
    by_hand, _ = layer(plain[1:2, :5].flip(1))
    layer.forward_gating = branch
    torch.testing.assert_close(y[1:2, :5], by_hand.flip(1), rtol=1e-5, atol=1e-5)
    assert torch.equal(layer.prefix(x[2:])[0], layer(x[2:], prefix_lengths=torch.tensor([12]))[0])


def test_prefix_can_be_turned_off(make_layer):
    layer = make_layer(bidirectional_prefix=False)
    x = torch.randn(1, 12, 32)
    assert torch.equal(layer.prefix(x)[0], layer(x)[0])


def test_inference_changes_no_parameter(make_layer):
    layer = make_layer()
    before = {name: tensor.clone() for name, tensor in layer.state_dict().items()}
    with torch.no_grad():
        _, state = layer(torch.randn(1, 3, 32))  # shorter than a mini-batch: nothing is written yet
        for _ in range(9):
            layer.stream(torch.randn(1, 1, 32), state)
        state = layer.init_state(1)
        for _ in range(9):
            layer.stream(torch.randn(1, 1, 32), state)
    assert layer.state_dict().keys() == before.keys()
    for name, tensor in layer.state_dict().items():
        assert torch.equal(tensor, before[name]), name


@pytest.mark.parametrize("settings", [{"mini_batch_size": 16}, {"inner": "delta"}])
def test_bf16_input_keeps_a_float32_state(make_layer, settings):
    layer = make_layer(**settings)
    x = torch.randn(2, 200, 32)
    y, state = layer(x)
    y16, state16 = layer(x.bfloat16())
    assert y16.dtype == torch.bfloat16
    assert {t.dtype for t in state16.tensors().values()} <= {torch.float32, torch.int64}
    assert (y16.float() - y).norm() / y.norm() <= 1e-2
    start = layer.inner.W1
    assert (state16.W1 - state.W1).norm() / (state.W1 - start).norm() <= 1e-2


def test_state_survives_as_a_dictionary(make_layer):
    layer = make_layer()
    x = torch.randn(2, 11, 32)
    _, state = layer(x[:, :6])
    again = TTTState.from_state_dict({name: t.clone() for name, t in state.state_dict().items()})
    assert torch.equal(layer(x[:, 6:], again)[0], layer(x[:, 6:], state)[0])
    with pytest.raises(ValueError, match="phase"):
        TTTState.from_state_dict({name: t for name, t in state.state_dict().items() if name != "phase"})
    with pytest.raises(ValueError, match=r"'W1' must be torch\.float32"):
        TTTState.from_state_dict({**state.state_dict(), "W1": state.W1.bfloat16()})


@pytest.mark.parametrize("settings", EVERY_MEMORY)
def test_gradient_reaches_the_initial_weights_through_a_carried_state(make_layer, settings):
    layer = make_layer(**settings)
    x = torch.randn(2, 21, 32)
    y, _ = layer(x)
    wanted = torch.autograd.grad(y[:, 9:].square().sum(), list(layer.parameters()), allow_unused=True)
    _, state = layer(x[:, :9])
    y, _ = layer(x[:, 9:], state)
    got = torch.autograd.grad(y.square().sum(), list(layer.parameters()), allow_unused=True)
    for (name, _), a, b in zip(layer.named_parameters(), got, wanted, strict=True):
        if b is None:
            assert a is None and name == "backward_gating.gating_alpha"
        else:
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4 * float(b.abs().max()), msg=name)


def test_errors_name_what_is_wrong(make_layer):
    layer = make_layer()
    x = torch.randn(2, 5, 32)
    with pytest.raises(ValueError, match="x must be"):
        layer(torch.randn(2, 5, 31))
    with pytest.raises(ValueError, match="x must be"):
        layer(torch.randn(2, 0, 32))
    with pytest.raises(ValueError, match="state is of 3 streams"):
        layer(x, layer.init_state(3))
    with pytest.raises(ValueError, match="another layer"):
        layer(x, make_layer(mini_batch_size=8).init_state(2))
    with pytest.raises(TypeError, match=r"prefix_lengths must be torch\.int64"):
        layer(x, prefix_lengths=torch.tensor([1.0, 2.0]))
    with pytest.raises(ValueError, match="exec_mask must be"):
        layer(x, exec_mask=torch.tensor([True]))
    with pytest.raises(ValueError, match="dtype"):
        TTTLayer(layer.config, dtype=torch.bfloat16)
    with pytest.raises(TypeError, match=r"inner\.W1 is torch\.bfloat16"):
        make_layer().to(torch.bfloat16)(x.bfloat16())
    for bad in ({"dim": 33}, {"inner": "cnn"}, {"preset": "spech"}, {"base_lr": float("nan")}, {"mini_batch_size": 0}):
        with pytest.raises(ValueError, match=next(iter(bad))):
            TTTConfig(**{"dim": 32, "num_heads": 2, **bad})
