"""Switching parts of test-time training off, and putting everything back."""

import pytest
import torch
from moshi.models.loaders import get_moshi_lm
from moshi.modules.lora import LoRALinear, replace_all_linear_with_lora

from ttt_moshi.moshi import MoshiError, ablate, set_context
from ttt_moshi.moshi.ablation import without_adapters
from ttt_moshi.moshi.sink import attention_window


def text_logits(model, codes, **kwargs) -> torch.Tensor:
    with torch.no_grad():
        return model(codes, **kwargs).text_logits


def test_a_closed_gate_is_the_base_model_bit_for_bit(make_model, make_codes, info):
    model, codes, prefix = make_model(layers="all"), make_codes(), torch.tensor([5, 0])
    base = get_moshi_lm(info.moshi_weights, info.lm_config, dtype=torch.float32)
    normal = text_logits(model, codes, prefix_lengths=prefix)
    with ablate(model, gate=0.0):
        closed = text_logits(model, codes, prefix_lengths=prefix)
        with torch.no_grad(), model.streaming(2):
            streamed = [model.forward_text(frame)[1] for frame in codes[:, :, :6].split(1, dim=2)]
    assert torch.equal(closed, text_logits(base, codes))
    with torch.no_grad(), base.streaming(2):
        expected = [base.forward_text(frame)[1] for frame in codes[:, :, :6].split(1, dim=2)]
    assert torch.equal(torch.cat(streamed), torch.cat(expected))
    assert not torch.equal(closed, normal)
    assert torch.equal(text_logits(model, codes, prefix_lengths=prefix), normal)


def test_half_a_gate_lies_between(make_model, make_codes):
    model, codes = make_model(layers="3"), make_codes()
    outputs = []
    model.layers[3].ttt.register_forward_hook(lambda m, args, out: outputs.append((args[0], out[0])))
    for gate in (1.0, 0.5):
        with ablate(model, gate=gate):
            text_logits(model, codes)
    (x, whole), (_, half) = outputs
    torch.testing.assert_close(half - x, 0.5 * (whole - x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("inner", ["mlp", "delta"])
def test_without_step_size_nothing_is_written(make_model, make_codes, inner):
    model, codes = make_model(inner=inner), make_codes()
    normal = text_logits(model, codes)
    with torch.no_grad(), ablate(model, inner_lr=0.0):
        stream = model.forward_chunk(codes, model.start_stream(2)).stream
        silent = text_logits(model, codes)
    assert not any(
        stream.layers[1].memory.tensors()[name].any() for name in ("W1", "W2")[: 1 if inner == "delta" else 2]
    )
    assert not torch.equal(silent, normal)
    assert torch.equal(text_logits(model, codes), normal)


@pytest.mark.parametrize("inner", ["mlp", "delta"])
def test_forgetting_cuts_the_past_off(make_model, make_codes, inner):
    model, codes = make_model(layers="all", inner=inner), make_codes(T=20)
    set_context(model, 1)  # attention sees the present alone, so only memory can reach back
    changed = codes.clone()
    changed[:, :, :5] = (changed[:, :, :5] + 3) % 24
    assert not torch.equal(text_logits(model, codes)[:, :, 8:], text_logits(model, changed)[:, :, 8:])
    with ablate(model, reset_every=8):
        before, after = text_logits(model, codes), text_logits(model, changed)
        assert torch.equal(before[:, :, 8:], after[:, :, 8:])
        assert not torch.equal(before[:, :, 7], after[:, :, 7])
        with torch.no_grad():
            stream, parts = model.start_stream(2), []
            for clip in codes.split([3, 9, 8], dim=2):
                chunk = model.forward_chunk(clip, stream)
                stream = chunk.stream
                parts.append(chunk.output.text_logits)
        torch.testing.assert_close(torch.cat(parts, dim=2), before, rtol=1e-4, atol=1e-4)
    with ablate(model, reset_every=20):
        whole = text_logits(model, codes)
    torch.testing.assert_close(whole, text_logits(model, codes), rtol=1e-5, atol=1e-5)


def test_rows_forget_at_their_own_places(make_model, make_codes):
    model, codes = make_model(), make_codes(T=20)
    with torch.no_grad(), ablate(model, reset_every=6):
        stream = model.forward_chunk(codes[:, :, :4], model.start_stream(2)).stream
        shifted = model.forward_chunk(codes[:, :, 4:], stream.reset(torch.tensor([True, False]))).output.text_logits
        alone = text_logits(model, codes[:1, :, 4:])
        whole = text_logits(model, codes[1:])[:, :, 4:]
    torch.testing.assert_close(shifted, torch.cat([alone, whole]), rtol=1e-4, atol=1e-4)


def test_somebody_elses_memory(make_model, make_codes):
    model, codes = make_model(), make_codes(T=24)
    with torch.no_grad():
        stream = model.forward_chunk(codes[:, :, :16], model.start_stream(2)).stream
        donor = model.forward_chunk(make_codes(T=16, seed=8), model.start_stream(2)).stream
        own, swapped = (
            model.forward_chunk(codes[:, :, 16:], s).output.text_logits for s in (stream, stream.with_memory_of(donor))
        )
        assert not torch.equal(own, swapped)
        with ablate(model, gate=0.0):
            own, swapped = (
                model.forward_chunk(codes[:, :, 16:], s).output.text_logits
                for s in (stream, stream.with_memory_of(donor))
            )
        assert torch.equal(own, swapped)


def test_meaningless_ablations_are_refused(make_model, make_codes):
    model = make_model()
    for bad, words in (({"inner_lr": -1.0}, "inner_lr"), ({"reset_every": 0}, "reset_every")):
        with pytest.raises(MoshiError, match=words), ablate(model, **bad):
            pass
    with ablate(model, reset_every=4), pytest.raises(MoshiError, match="without prefixes"):
        model(make_codes(), prefix_lengths=torch.tensor([3, 0]))
    with ablate(model, reset_every=4), model.streaming(2), pytest.raises(MoshiError, match="streaming"):
        model.forward_text(make_codes(T=1))
    with pytest.raises(MoshiError, match="no TTT layers"), ablate(make_model(layers="none")):
        pass


def test_without_adapters_a_model_is_its_base_bit_for_bit(make_model, make_codes, info):
    model, codes = make_model(layers="1"), make_codes()
    replace_all_linear_with_lora(model.transformer.layers[0], 2, 2.0)
    for module in model.modules():
        if isinstance(module, LoRALinear):
            torch.nn.init.normal_(module.lora_B.weight)
    base = get_moshi_lm(info.moshi_weights, info.lm_config, dtype=torch.float32)
    adapted = text_logits(model, codes)
    with without_adapters(model):
        assert torch.equal(text_logits(model, codes), text_logits(base, codes))
    assert torch.equal(text_logits(model, codes), adapted) and not torch.equal(adapted, text_logits(base, codes))


def test_another_window_is_that_of_a_model_made_with_it(make_model, make_codes):
    model, codes = make_model(), make_codes()
    own, plain = model.context, text_logits(model, codes)
    with attention_window(model, 3):
        narrow = text_logits(model, codes)
    assert model.context == own and torch.equal(text_logits(model, codes), plain)
    set_context(model, 3)
    assert torch.equal(narrow, text_logits(model, codes)) and not torch.equal(narrow, plain)
    with pytest.raises(MoshiError, match="at least one frame"), attention_window(model, 0):
        pass
