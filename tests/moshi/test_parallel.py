"""Sharding: the same gradients and steps as without it, for one rank and for two."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file
from torch.distributed.device_mesh import init_device_mesh

from ttt_moshi.moshi import cast_for_inference, shard

WORKER = Path(__file__).with_name("shard_worker.py")


DELTA = {"inner": "delta", "half_life_frames": [3, 30], "forget": "gated", "target": "both"}


@pytest.fixture
def mesh():
    """A process group of one."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        yield init_device_mesh("cpu", (1,))
    finally:
        dist.destroy_process_group()


def gradients(model: torch.nn.Module, codes: torch.Tensor, prefix: torch.Tensor | None = None) -> dict:
    """Gradients of a loss over all logits, whole and by name."""
    output = model(codes, prefix_lengths=prefix)
    loss = output.text_logits[output.text_mask.unsqueeze(-1).expand_as(output.text_logits)].float().square().mean()
    loss = loss + output.logits[output.mask.unsqueeze(-1).expand_as(output.logits)].float().square().mean()
    loss.backward()
    found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return {name: g.full_tensor() if hasattr(g, "full_tensor") else g for name, g in found.items()}


def assert_equal_up_to_rounding(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    """Equal names; values apart by 1e-5 of the tensor's largest magnitude, or 1e-4 after AdamW has divided by them."""
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        worst = float((found[name] - tensor).abs().max() / tensor.abs().max().clamp(min=1e-12))
        assert worst <= (1e-4 if name.startswith(("grad1/", "param/")) else 1e-5), (name, worst)


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("settings", [{"lora": True}, DELTA, {"layers": "none", "full_finetuning": True}])
def test_sharding_over_one_rank_changes_no_gradient(make_model, make_codes, mesh, settings, checkpointing):
    expected = gradients(make_model(**settings), make_codes())
    model = shard(make_model(**settings, gradient_checkpointing=checkpointing), mesh, torch.float32)
    names = [name for name, _ in model.named_parameters()]
    found = gradients(model, make_codes())
    assert names == [name for name, _ in make_model(**settings).named_parameters()]
    assert_equal_up_to_rounding(found, expected)


def test_prefixes_shard(make_model, make_codes, mesh):
    prefix = torch.tensor([6, 0])
    expected = gradients(make_model(), make_codes(), prefix)
    found = gradients(shard(make_model(gradient_checkpointing=True), mesh, torch.float32), make_codes(), prefix)
    assert any("backward_gating" in name for name in found)
    assert_equal_up_to_rounding(found, expected)


def test_bfloat16_compute_over_float32_masters(make_model, make_codes, mesh):
    model = shard(make_model(lora=True, dtype=torch.bfloat16, gradient_checkpointing=True), mesh, torch.bfloat16)
    types = {name: p.dtype for name, p in model.named_parameters()}
    assert types["transformer.layers.1.ttt.wq.weight"] == torch.float32
    assert types["transformer.layers.1.self_attn.in_projs.0.frozen_W.weight"] == torch.bfloat16
    seen = {}
    for name in ("inner", "forward_gating", "wq"):
        module = model.get_submodule(f"transformer.layers.1.ttt.{name}")
        module.register_forward_pre_hook(lambda m, _, name=name: seen.update({name: next(m.parameters()).dtype}))
    found = gradients(model, make_codes())
    assert seen == {"inner": torch.float32, "forward_gating": torch.float32, "wq": torch.bfloat16}
    assert {g.dtype for g in found.values()} == {torch.float32}
    assert found.keys() == {n for n, p in model.named_parameters() if p.requires_grad and "backward_gating" not in n}


def test_what_is_trained_in_bfloat16_is_what_is_served(make_model, make_codes, mesh):
    """The sharded forward and the model cast for inference are one arithmetic, a carried memory included."""
    codes = make_codes(T=24)

    def outputs(model) -> list[torch.Tensor]:
        with torch.no_grad():
            whole = model(codes, prefix_lengths=torch.tensor([5, 0]))
            first = model.forward_chunk(codes[:, :, :13], model.start_stream(2))
            second = model.forward_chunk(codes[:, :, 13:], first.stream)
        memories = [second.stream.layers[i].memory.W1 for i in (1, 2)]
        return [whole.text_logits, torch.nan_to_num(whole.logits), second.output.text_logits, *memories]

    cast = outputs(cast_for_inference(make_model(lora=True, dtype=torch.bfloat16), torch.bfloat16))
    found = outputs(shard(make_model(lora=True, dtype=torch.bfloat16), mesh, torch.bfloat16))
    assert [t.dtype for t in found] == [torch.bfloat16] * 3 + [torch.float32] * 2
    for a, b in zip(found, cast, strict=True):
        assert torch.equal(a, b)


@pytest.fixture
def two_steps():
    """The worker's function, in this process."""
    spec = importlib.util.spec_from_file_location("shard_worker", WORKER)
    assert spec is not None and spec.loader is not None
    worker = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(worker)
    return worker.two_steps


def test_one_rank_steps_like_none_and_repeats_itself(two_steps, base_folder):
    plain = two_steps(base_folder)
    one, again = (two_steps(base_folder, 1, 0, dist.HashStore()) for _ in range(2))
    assert len(plain) > 100 and any("backward_gating" in name for name in plain)
    assert_equal_up_to_rounding(one, plain)
    for name, tensor in one.items():
        assert torch.equal(tensor, again[name]), name


def test_two_ranks_step_like_none(two_steps, base_folder, tmp_path):
    out = tmp_path / "result.safetensors"
    command = [sys.executable, str(WORKER), str(base_folder), str(tmp_path / "store"), "2"]
    workers = [subprocess.Popen([*command, str(rank), str(out)]) for rank in range(2)]
    try:
        assert [worker.wait(timeout=300) for worker in workers] == [0, 0]
    finally:
        for worker in workers:
            worker.kill()
    assert_equal_up_to_rounding(load_file(out), two_steps(base_folder))
