"""The model in moshi's own streaming mode, one frame at a time, as inference drives it."""

import pytest
import torch
from moshi.models.lm import LMGen

VARIANTS = [
    {},
    {"inner": "linear"},
    {"inner": "delta", "half_life_frames": [3, 30]},
    {"preset": "paper_lm", "base_lr": 0.1},
]


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).abs().max() / b.abs().max())


@pytest.fixture
def sequence(make_codes):
    """Delayed codes as the temporal transformer reads them."""
    return make_codes(T=26).clamp(min=0)


# The official ring buffer holds a whole call's keys only until it wraps around, at 10 frames.
@pytest.mark.parametrize("calls", [[1] * 26, [3, 2, 5, *[1] * 16]], ids=["frames", "calls"])
@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_streaming_equals_the_full_forward(make_model, sequence, variant, calls):
    model = make_model(layers="all", **variant)
    with torch.no_grad():
        expected, _ = model.forward_text(sequence)
        with model.streaming(2):
            got = [model.forward_text(part)[0] for part in sequence.split(calls, dim=2)]
    assert relative(torch.cat(got, dim=1), expected) <= 1e-5


def test_streaming_starts_with_a_prefix(make_model, sequence):
    model = make_model(layers="all")
    given = torch.tensor([7, 7])
    with torch.no_grad():
        expected, _ = model.forward_text(sequence, prefix_lengths=given)
        with model.streaming(2):
            got = [model.forward_text(sequence[:, :, :7], prefix_lengths=given)[0]]
            got += [model.forward_text(frame)[0] for frame in sequence[:, :, 7:].split(1, dim=2)]
    assert relative(torch.cat(got, dim=1), expected) <= 1e-5


def test_reset_of_a_row_equals_a_solo_run(make_model, sequence):
    model = make_model(layers="all")
    with torch.no_grad():
        expected, _ = model.forward_text(sequence[:1, :, 9:])
        undisturbed, _ = model.forward_text(sequence[1:])
        with model.streaming(2):
            outputs = []
            for t, frame in enumerate(sequence.split(1, dim=2)):
                if t == 9:
                    model.reset_streaming(torch.tensor([True, False]))
                outputs.append(model.forward_text(frame)[0])
    outputs = torch.cat(outputs, dim=1)
    assert relative(outputs[:1, 9:], expected) <= 1e-5
    assert relative(outputs[1:], undisturbed) <= 1e-5


def test_a_masked_row_does_not_advance(make_model, sequence):
    model = make_model(layers="all")
    executed = [t for t in range(26) if t % 3 != 1]
    with torch.no_grad():
        expected, _ = model.forward_text(sequence[:1, :, executed])
        other, _ = model.forward_text(sequence[1:])
        with model.streaming(2):
            outputs = []
            for t, frame in enumerate(sequence.split(1, dim=2)):
                model.set_exec_mask(torch.tensor([t in executed, True]))
                outputs.append(model.forward_text(frame)[0])
    outputs = torch.cat(outputs, dim=1)
    assert relative(outputs[:1, executed], expected) <= 1e-5
    assert relative(outputs[1:], other) <= 1e-5


def test_memory_stays_where_it_is(make_model, sequence):
    """CUDA graphs replay on fixed addresses, so the state must be updated in place."""
    model = make_model(layers="all")
    with torch.no_grad(), model.streaming(2):
        state = model.transformer.layers[1]._streaming_state
        before = {name: tensor.data_ptr() for name, tensor in state.memory.tensors().items()}
        start = state.memory.clone()
        for frame in sequence[:, :, :9].split(1, dim=2):
            model.forward_text(frame)
        after = {name: tensor.data_ptr() for name, tensor in state.memory.tensors().items()}
        assert before == after
        assert not torch.equal(start.W1, state.memory.W1)
        model.reset_streaming()
        assert torch.equal(start.W1, state.memory.W1)
    assert model.transformer.layers[1]._streaming_state is None


def test_generation_with_the_official_generator(make_model, make_codes):
    """LMGen drives the model; fed its own greedy output, the full forward finds the same tokens most likely."""
    model = make_model(layers="all")
    model.eval()
    user = make_codes(T=12).clamp(min=0)[:, 4:]
    generator = LMGen(model, use_sampling=False)
    frames = []
    with generator.streaming(2):
        # The initial tokens stand in for whatever the first step is given, so the user's first frame comes twice.
        for frame in torch.cat([user[:, :, :1], user], dim=2).split(1, dim=2):
            out = generator.step(frame)
            if out is not None:
                frames.append(out)
    codes = torch.cat([torch.cat(frames, dim=2), user], dim=1)  # [B, 1 + dep_q + 3, 12]
    with torch.no_grad():
        output = model(codes)
    assert torch.equal(output.text_logits.argmax(-1)[output.text_mask], codes[:, :1][output.text_mask])
    assert torch.equal(output.logits.argmax(-1)[output.mask], codes[:, 1:4][output.mask])
