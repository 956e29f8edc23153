"""Recordings read clip by clip: equal to one long forward, in value and gradient, at constant size."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.distributed.device_mesh import init_device_mesh
from torch.nn.functional import cross_entropy

from ttt_moshi.moshi import MoshiError, StreamState, shard

SPLITS = [[40], [13, 27], [1, 2, 3, 5, 29], [10, 10, 10, 10], [1] * 40]


def nll(output, targets) -> torch.Tensor:
    """Negative log-likelihoods [B, 1 + dep_q, T], 0 where nothing is predicted."""
    dep_q = output.logits.shape[1]
    wanted = torch.where(torch.cat([output.text_mask, output.mask], dim=1), targets[:, : 1 + dep_q], 0)
    text = cross_entropy(output.text_logits[:, 0].transpose(1, 2), wanted[:, 0], reduction="none")[:, None]
    audio = cross_entropy(output.logits.permute(0, 3, 1, 2), wanted[:, 1:], reduction="none")
    mask = torch.cat([output.text_mask, output.mask], dim=1)
    return torch.where(mask, torch.cat([text, audio], dim=1), 0.0)


def read(model, codes, split, stream=None, prefix=None, detach=False):
    """Reads `codes` in clips of the given lengths; likelihoods in the order of their frames, and the last state."""
    B, _, T = codes.shape
    stream = model.start_stream(B) if stream is None else stream
    aligned = torch.zeros(B, 1 + model.dep_q, T + 1)
    start = 0
    for clip in codes.split(split, dim=2):
        chunk = model.forward_chunk(clip, stream, prefix_lengths=prefix)
        values = nll(chunk.output, chunk.targets)
        for k, delay in enumerate(model.delays[: 1 + model.dep_q]):
            # The last column is a place for what comes before the recording.
            frame = torch.arange(start - delay, start - delay + clip.shape[2])
            aligned[:, k] = aligned[:, k].index_add(1, torch.where(frame < 0, T, frame), values[:, k])
        start += clip.shape[2]
        stream = chunk.stream.detach() if detach else chunk.stream
    return aligned[:, :, :T], stream


VARIANTS = [
    {},
    {"inner": "linear"},
    {"inner": "delta", "half_life_frames": [3, 30]},
    {"preset": "paper_lm", "base_lr": 0.1},
]


def close(a: torch.Tensor, b: torch.Tensor) -> None:
    assert float((a - b).abs().max() / b.abs().max()) <= 1e-5


@pytest.mark.parametrize("split", SPLITS, ids=str)
@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_clips_equal_one_long_forward(make_model, make_codes, variant, split):
    model, codes = make_model(layers="all", **variant), make_codes(T=40)
    with torch.no_grad():
        close(read(model, codes, split)[0], nll(model(codes), codes))


def test_gradients_flow_through_clips_as_through_one_forward(make_model, make_codes):
    codes = make_codes(T=30)
    gradients = []
    for split, checkpointing in ((None, False), ([11, 1, 18], False), ([11, 1, 18], True)):
        model = make_model(lora=True, gradient_checkpointing=checkpointing)
        values = nll(model(codes), codes) if split is None else read(model, codes, split)[0]
        # The end alone, so that earlier clips are reached through the carried state only.
        values[:, :, 20:].sum().backward()
        gradients.append({n: p.grad for n, p in model.named_parameters() if p.grad is not None})
    for found in gradients[1:]:
        assert found.keys() == gradients[0].keys()
        for name, gradient in gradients[0].items():
            assert float((found[name] - gradient).abs().max() / gradient.abs().max().clamp(min=1e-6)) <= 1e-4, name


def test_a_detached_state_passes_values_but_no_gradient(make_model, make_codes):
    model, codes = make_model(), make_codes(T=24)
    chunk = model.forward_chunk(codes[:, :, :12], model.start_stream(2))
    carried = [tensor for tensor in chunk.stream.state_dict().values() if tensor.is_floating_point()]
    assert not any(tensor.requires_grad for tensor in carried)
    values = nll(*(lambda c: (c.output, c.targets))(model.forward_chunk(codes[:, :, 12:], chunk.stream.detach())))
    values.sum().backward()
    first_clip = nll(chunk.output, chunk.targets)
    # The first clip's graph is still whole: nothing of the second went through it.
    first_clip.sum().backward()
    # Even behind a detached memory its initial weights learn.
    model.zero_grad()
    again = model.forward_chunk(codes[:, :, 12:], chunk.stream.detach())
    nll(again.output, again.targets).sum().backward()
    assert model.layers[1].ttt.inner.W1.grad.abs().sum() > 0


def test_every_code_is_predicted_exactly_once(make_model, make_codes):
    model, codes = make_model(), make_codes(T=21)
    stream, seen = model.start_stream(2), 0
    expected = model(codes)
    for clip in codes.split([4, 1, 9, 7], dim=2):
        chunk = model.forward_chunk(clip, stream)
        stream = chunk.stream
        seen += int(chunk.output.mask.sum()) + int(chunk.output.text_mask.sum())
    assert seen == int(expected.mask.sum()) + int(expected.text_mask.sum())


def test_a_row_that_starts_anew_equals_a_recording_of_its_own(make_model, make_codes):
    model, codes = make_model(layers="all"), make_codes(T=34)
    with torch.no_grad():
        _, stream = read(model, codes[:, :, :14], [9, 5])
        after, _ = read_from(model, codes[:, :, 14:], stream.reset(torch.tensor([True, False])))
        alone = nll(model(codes[:1, :, 14:]), codes[:1, :, 14:])
        whole = nll(model(codes[1:]), codes[1:])
    close(after[:1], alone)
    # The delayed codes of frame 13 come up in the clip after it.
    close(after[1:, :2], whole[:, :2, 14:])
    close(after[1:, 2:], whole[:, 2:, 14:])


def read_from(model, codes, stream):
    """Like `read` for one clip from a carried state; codes of frames before the clip are left out."""
    chunk = model.forward_chunk(codes, stream)
    values, T = nll(chunk.output, chunk.targets), codes.shape[2]
    columns = []
    for k, delay in enumerate(model.delays[: 1 + model.dep_q]):
        columns.append(torch.cat([values[:, k, delay:], values.new_zeros(len(values), delay)], dim=1)[:, :T])
    return torch.stack(columns, dim=1), chunk.stream


def test_a_reset_state_is_a_new_one(make_model, make_codes):
    model = make_model()
    with torch.no_grad():
        _, stream = read(model, make_codes(T=14), [14])
        reset, fresh = stream.reset(torch.tensor([True, True])), model.start_stream(2)
        codes = make_codes(T=6, seed=4)
        a, b = model.forward_chunk(codes, reset), model.forward_chunk(codes, fresh)
    assert torch.equal(a.output.text_logits, b.output.text_logits)
    for name, tensor in a.stream.state_dict().items():
        assert torch.equal(tensor, b.stream.state_dict()[name]), name


def test_prefixes_are_read_at_the_start_of_a_recording(make_model, make_codes):
    model, codes, prefix = make_model(layers="all"), make_codes(T=30), torch.tensor([7, 0])
    with torch.no_grad():
        expected = nll(model(codes, prefix_lengths=prefix), codes)
        close(read(model, codes, [12, 18], prefix=prefix)[0], expected)
    assert not expected[0, :, :7].any()


def test_a_saved_state_continues_bit_for_bit(make_model, make_codes):
    model, codes = make_model(layers="1,2"), make_codes(T=26)
    with torch.no_grad():
        _, stream = read(model, codes[:, :, :15], [15])
        saved = {name: tensor.clone() for name, tensor in stream.state_dict().items()}
        assert "layers.1.memory.W1" in saved and "layers.0.memory.W1" not in saved
        restored = StreamState.from_state_dict(saved)
        # As a checkpoint does it: fill the tensors of a state that was just started.
        filled = model.start_stream(2)
        for name, tensor in filled.state_dict().items():
            tensor.copy_(saved[name])
        expected = model.forward_chunk(codes[:, :, 15:], stream)
        for state in (restored, filled):
            chunk = model.forward_chunk(codes[:, :, 15:], state)
            assert torch.equal(chunk.output.text_logits, expected.output.text_logits)
            for name, tensor in chunk.stream.state_dict().items():
                assert torch.equal(tensor, expected.stream.state_dict()[name]), name
    for wrong, words in (({"extra": saved["frames"]}, "extra"), ({"frames": None}, "frames")):
        broken = {name: t for name, t in {**saved, **wrong}.items() if t is not None}
        with pytest.raises(MoshiError, match=words):
            StreamState.from_state_dict(broken)


def test_what_a_clip_asks_is_known_before_it_is_read(make_model, make_codes):
    """Loss denominators are summed over all clips of a step before the first one runs."""
    model, codes, prefix = make_model(), make_codes(T=21), torch.tensor([5, 0])
    stream = foreseen = model.start_stream(2)
    for clip in codes.split([4, 1, 16], dim=2):
        targets, mask = model.chunk_targets(clip, foreseen, prefix)
        chunk = model.forward_chunk(clip, stream, prefix_lengths=prefix)
        stream, foreseen = chunk.stream, foreseen.after(clip)
        assert torch.equal(targets, chunk.targets)
        assert torch.equal(mask, torch.cat([chunk.output.text_mask, chunk.output.mask], dim=1))


def test_size_does_not_depend_on_the_place_in_a_recording(make_model, make_codes):
    model = make_model()
    stream, shapes = model.start_stream(2), set()
    with torch.no_grad():
        for seed, T in enumerate([5, 9, 30, 2]):
            stream = model.forward_chunk(make_codes(T=T, seed=seed), stream).stream
            shapes.add(
                tuple((n, t.shape, t.dtype, t.untyped_storage().nbytes()) for n, t in stream.state_dict().items())
            )
    fresh = model.start_stream(2).state_dict()
    shapes.add(tuple((n, t.shape, t.dtype, t.untyped_storage().nbytes()) for n, t in fresh.items()))
    assert len(shapes) == 1


@pytest.fixture
def model(make_model):
    """One model for all examples of a property; reading changes nothing in it."""
    return make_model(layers="2")


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    splits=st.lists(st.integers(1, 17), min_size=1, max_size=6), resets=st.lists(st.booleans(), min_size=6, max_size=6)
)
def test_rows_at_different_places_do_not_disturb_each_other(model, splits, resets):
    total = sum(splits)
    codes = torch.randint(0, 24, (2, 7, total), generator=torch.Generator().manual_seed(total))
    stream, begin, start = model.start_stream(2), 0, 0
    with torch.no_grad():
        for length, again in zip(splits, resets, strict=False):
            if again:
                stream, begin = stream.reset(torch.tensor([True, False])), start
            stream = model.forward_chunk(codes[:, :, start : start + length], stream).stream
            start += length
        alone = model.forward_chunk(codes[:1, :, begin:], model.start_stream(1)).stream
        undisturbed = model.forward_chunk(codes[1:], model.start_stream(1)).stream
        more = codes[:, :, :3]
        together = model.forward_chunk(more, stream).output.text_logits
        first = model.forward_chunk(more[:1], alone).output.text_logits
        second = model.forward_chunk(more[1:], undisturbed).output.text_logits
    assert stream.frames.tolist() == [total - begin, total]
    close(together, torch.cat([first, second]))


@pytest.mark.parametrize("checkpointing", [False, True])
def test_clips_shard(make_model, make_codes, checkpointing):
    """Two clips forward, then one backward through both, in sharding units that are whole only while they run."""
    codes = make_codes(T=20)

    def gradients(model) -> dict[str, torch.Tensor]:
        first = model.forward_chunk(codes[:, :, :9], model.start_stream(2))
        second = model.forward_chunk(codes[:, :, 9:], first.stream)
        (nll(first.output, first.targets).sum() + nll(second.output, second.targets).sum()).backward()
        found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
        return {name: g.full_tensor() if hasattr(g, "full_tensor") else g for name, g in found.items()}

    expected = gradients(make_model(lora=True))
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        model = make_model(lora=True, gradient_checkpointing=checkpointing)
        found = gradients(shard(model, init_device_mesh("cpu", (1,)), torch.float32))
    finally:
        dist.destroy_process_group()
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        assert float((found[name] - gradient).abs().max() / gradient.abs().max().clamp(min=1e-6)) <= 1e-4, name


def test_recordings_need_a_window_and_no_streaming_mode(make_model, make_codes):
    model = make_model()
    with model.streaming(2):
        with pytest.raises(MoshiError, match="streaming mode"):
            model.forward_chunk(make_codes(), model.start_stream(2))
        with pytest.raises(MoshiError, match="streaming mode"):
            model(make_codes())
    model.context = None
    with pytest.raises(MoshiError, match="window"):
        model.start_stream(2)
