"""On a device other than the CPU nothing may wait for a value or mix in a CPU tensor.

The meta device has shapes and no values: reading one raises, and so does an operation between devices. What runs there
therefore runs on a GPU without stopping it.
"""

import contextlib

import pytest
import torch
from moshi.models.lm import LMGen

from ttt_moshi.config import LoraArgs, TTTArgs
from ttt_moshi.moshi.loading import cast_for_inference, empty_model, geometry, ttt_from_args
from ttt_moshi.training import loss


@pytest.fixture
def on_meta(monkeypatch, info):
    """Builds models on the meta device, which autocast alone does not know."""
    autocast = torch.autocast
    known = lambda device, **options: contextlib.nullcontext() if device == "meta" else autocast(device, **options)  # noqa: E731
    monkeypatch.setattr(torch, "autocast", known)

    def make(**changes):
        config, layers = ttt_from_args(
            TTTArgs(enable=True, layers="1,2", mini_batch_size=4, **changes), geometry(info.lm_config)
        )
        lora = LoraArgs(enable=True, rank=2)
        return empty_model(
            info.lm_config, torch.bfloat16, ttt_layers=layers, ttt_config=config, lora=lora, device="meta"
        )

    return make


def codes(T: int) -> torch.Tensor:
    return torch.zeros(2, 7, T, dtype=torch.int64, device="meta")


VARIANTS = [
    {},
    {"inner": "linear"},
    {"inner": "delta", "half_life_frames": [3, 30]},
    {"preset": "paper_lm"},
    {"preset": "video_causal"},
]


def test_the_meta_device_would_notice(on_meta):
    with pytest.raises(RuntimeError):
        bool(codes(1).any())
    with pytest.raises(RuntimeError):
        codes(3) + torch.arange(3)


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
@pytest.mark.parametrize("recompute", [False, True])
def test_a_training_step(on_meta, variant, recompute):
    model = on_meta(**variant).train()
    model.gradient_checkpointing = recompute
    heard = codes(19)
    for given in (None, torch.zeros(2, dtype=torch.int64, device="meta")):
        output = model(heard, prefix_lengths=given)
        weights = loss.LossWeights(100.0, 0.5, (0, 3))
        mask = loss.target_mask(heard, model.delays, model.dep_q, given)
        nll = loss.nll_per_token(output.text_logits, output.logits, heard, mask)
        total = torch.ones((), device="meta")
        loss.objective(nll, loss.target_weights(heard, mask, weights), total, total).backward()
        loss.component_sums(nll.detach(), heard, weights)
    without = [name for name, p in model.named_parameters() if ".ttt." in name and p.grad is None]
    assert len(model.ttt_layers) == 2 and not without


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_a_clip_of_a_recording(on_meta, variant):
    model = on_meta(**variant).train()
    stream = model.start_stream(2, torch.bfloat16)
    for T in (9, 1, 8):
        chunk = model.forward_chunk(codes(T), stream.reset(torch.zeros(2, dtype=torch.bool, device="meta")))
        stream = chunk.stream
    chunk.output.logits.float().sum().backward()


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_streaming_and_generation(on_meta, variant):
    model = cast_for_inference(on_meta(**variant).eval(), torch.bfloat16)
    generator = LMGen(model, use_sampling=False)
    with torch.no_grad(), generator.streaming(2):
        for _ in range(6):
            generator.step(codes(1)[:, 4:])
        generator.reset_streaming()
        generator.set_exec_mask(torch.zeros(2, dtype=torch.bool, device="meta"))
        generator.step(codes(1)[:, 4:])
