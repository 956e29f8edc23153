"""The layer under the machinery of training and serving: recompute, sharding, compilation, export."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor
from torch.utils.checkpoint import checkpoint

from ttt_moshi.ttt import TTTConfig, TTTLayer, TTTState
from ttt_moshi.ttt.scan import scan

KINDS = [("speech", "mlp"), ("paper_lm", "mlp"), ("video_causal", "linear"), ("speech", "delta")]


def gradients(layer, x, through=None):
    layer.zero_grad()
    y = through(x) if through else layer(x)[0]
    y.float().square().sum().backward()
    return y.detach(), {name: p.grad for name, p in layer.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("policy", ["rebuild", "checkpoint"])
def test_activation_recompute_changes_nothing(make_layer, policy):
    layer = make_layer(scan_policy=policy)
    x = torch.randn(2, 22, 32, requires_grad=True)
    y, plain = gradients(layer, x)
    plain = {name: g.clone() for name, g in plain.items()}
    y2, again = gradients(layer, x, lambda x: checkpoint(lambda t: layer(t)[0], x, use_reentrant=False))
    assert torch.equal(y, y2)
    for name, gradient in plain.items():
        assert torch.equal(gradient, again[name]), name


def test_both_policies_and_the_block_steps_train_alike(make_layer):
    x = torch.randn(2, 22, 32)
    _, rebuild = gradients(make_layer(), x)
    _, kept = gradients(make_layer(scan_policy="checkpoint"), x)
    one_by_one = make_layer()

    def frames(x):
        state, outputs = one_by_one.init_state(2), []
        for frame in x.split(1, dim=1):
            y, state = one_by_one(frame, state)
            outputs.append(y)
        return torch.cat(outputs, dim=1)

    _, steps = gradients(one_by_one, x, frames)
    assert rebuild.keys() == kept.keys() == steps.keys()
    for name, gradient in rebuild.items():
        scale = float(gradient.abs().max())
        torch.testing.assert_close(kept[name], gradient, rtol=1e-4, atol=1e-5 * scale, msg=name)
        torch.testing.assert_close(steps[name], gradient, rtol=1e-3, atol=1e-4 * scale, msg=name)


def test_autocast_does_not_reach_the_memory(make_layer):
    layer, x = make_layer(), torch.randn(2, 41, 32)
    y, state = layer(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y16, state16 = layer(x)
    assert {t.dtype for t in state16.tensors().values()} == {torch.float32, torch.int64}
    assert 0 < (y16 - y).norm() <= 1e-2 * y.norm()
    assert (state16.W1 - state.W1).norm() <= 2e-2 * (state.W1 - layer.inner.W1).norm()


@pytest.mark.parametrize(
    "settings", [{}, {"inner": "linear"}, {"inner": "delta"}, {"scan_policy": "checkpoint"}, {"half_life_frames": 2}]
)
@pytest.mark.parametrize("recompute", [False, True])
def test_backward_inside_autocast(make_layer, settings, recompute):
    """Whole mini-batches and a rest; the layer's own products may be rounded, the scan's are not."""
    layer, x = make_layer(**settings), torch.randn(2, 41, 32)
    _, wanted = gradients(layer, x)
    wanted = {name: g.clone() for name, g in wanted.items()}
    with torch.autocast("cpu", dtype=torch.bfloat16):
        through = (lambda x: checkpoint(lambda t: layer(t)[0], x, use_reentrant=False)) if recompute else None
        _, got = gradients(layer, x, through)
    assert got.keys() == wanted.keys()
    for name, gradient in wanted.items():
        assert got[name].dtype == torch.float32
        assert (got[name] - gradient).norm() <= 5e-2 * gradient.norm(), name


def test_the_scan_is_not_rounded_by_autocast_around_backward(make_problem):
    frames, memory, norm, rule = make_problem(T=28, dtype=torch.float32, grad=True)
    leaves = [*frames, *memory.weights, *norm]
    out, _ = scan(frames, memory.weights, norm, rule)
    wanted = torch.autograd.grad(out.square().sum(), leaves, retain_graph=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = torch.autograd.grad(out.square().sum(), leaves)
    for gradient, expected in zip(got, wanted, strict=True):
        assert torch.equal(gradient, expected)


@pytest.fixture
def mesh():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        yield init_device_mesh("cpu", (1,))
    finally:
        dist.destroy_process_group()


def shard(layer, mesh):
    """As a trainer does: the inner network is a float32 unit of its own, the rest computes in bfloat16."""
    fully_shard(layer.inner, mesh=mesh, mp_policy=MixedPrecisionPolicy(param_dtype=torch.float32))
    return fully_shard(layer, mesh=mesh, mp_policy=MixedPrecisionPolicy(param_dtype=torch.bfloat16))


def test_sharded_layer_with_bf16_compute(make_layer, mesh):
    x = torch.randn(2, 22, 32).bfloat16()
    prefix = torch.tensor([9, 0])
    plain = make_layer()
    y, wanted = gradients(plain, x, lambda x: plain(x, prefix_lengths=prefix)[0])
    layer = shard(make_layer(), mesh)
    assert all(isinstance(p, DTensor) and p.dtype == torch.float32 for p in layer.parameters())
    y2, got = gradients(layer, x, lambda x: layer(x, prefix_lengths=prefix)[0])
    assert y2.dtype == torch.bfloat16
    assert (y2.float() - y.float()).norm() <= 2e-2 * y.float().norm()
    assert got.keys() == wanted.keys() and len(got) == 20
    for name, gradient in wanted.items():
        full = got[name].full_tensor()
        assert full.dtype == torch.float32
        assert (full - gradient).norm() <= 0.1 * gradient.norm(), name


def test_sharded_layer_carries_its_state(make_layer, mesh):
    x = torch.randn(2, 22, 32)
    expected, _ = make_layer()(x)
    layer = make_layer()
    fully_shard(layer.inner, mesh=mesh)
    fully_shard(layer, mesh=mesh)
    y1, state = layer(x[:, :9])
    y2, _ = layer(x[:, 9:], state.detach(), reset=torch.tensor([False, True]))
    torch.testing.assert_close(torch.cat([y1, y2], dim=1)[0], expected[0], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(y2[1:], make_layer()(x[1:, 9:])[0], rtol=1e-5, atol=1e-5)


class Streamer(torch.nn.Module):
    """One frame, state in and out as flat tensors: what a graph capture sees."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x, exec_mask, reset, tensors: dict[str, torch.Tensor]):
        y, state = self.layer(x, TTTState.from_state_dict(tensors), exec_mask=exec_mask, reset=reset)
        return y, state.tensors()


@pytest.mark.parametrize(("preset", "inner"), KINDS)
def test_streaming_step_is_one_graph_without_branches_on_data(make_layer, preset, inner):
    """Exported once with one set of masks, it is right for others, commits included: nothing was decided by data."""
    layer = make_layer(preset=preset, inner=inner).requires_grad_(False)
    masks = torch.tensor([True, True]), torch.tensor([False, False])
    state = layer.init_state(2)
    program = torch.export.export(Streamer(layer), (torch.randn(2, 1, 32), *masks, state.tensors())).module()
    generator = torch.Generator().manual_seed(0)
    for _ in range(30):
        x = torch.randn(2, 1, 32, generator=generator)
        run = torch.rand(2, generator=generator) < 0.8
        reset = torch.rand(2, generator=generator) < 0.1
        y, tensors = program(x, run, reset, state.tensors())
        expected, state = layer(x, state, exec_mask=run, reset=reset)
        torch.testing.assert_close(y[run], expected[run], rtol=1e-5, atol=1e-5)
        for name, tensor in state.tensors().items():
            torch.testing.assert_close(tensors[name], tensor, rtol=1e-5, atol=1e-5, msg=name)


def test_in_place_streaming_compiles_whole(make_layer):
    layer = make_layer().requires_grad_(False)
    step = torch.compile(layer.stream, fullgraph=True, backend="aot_eager")
    state, expected_state = layer.init_state(2), layer.init_state(2)
    addresses = [t.data_ptr() for t in state.tensors().values()]
    run = torch.tensor([True, False])
    for _ in range(10):
        x = torch.randn(2, 1, 32)
        y = step(x, state, run)
        torch.testing.assert_close(y[0], layer.stream(x, expected_state, run)[0], rtol=1e-5, atol=1e-5)
    assert addresses == [t.data_ptr() for t in state.tensors().values()]
    torch.testing.assert_close(state.W1, expected_state.W1, rtol=1e-5, atol=1e-6)


def test_model_built_on_meta_exports_no_state(make_layer):
    layer = make_layer()
    assert set(layer.state_dict()) == {name for name, _ in layer.named_parameters()}
    assert set(layer.state_dict()) == set(TTTLayer(TTTConfig(dim=32, num_heads=2), device="meta").state_dict())


def two_ranks(rank, store_file, wanted):
    """One of two processes: the gathered gradients must be those of the whole layer on both inputs."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store_file}", rank=rank, world_size=2)
    mesh = init_device_mesh("cpu", (2,))
    torch.manual_seed(0)
    layer = TTTLayer(TTTConfig(dim=32, num_heads=2, mini_batch_size=4))
    layer.load_state_dict(wanted["parameters"])
    fully_shard(layer.inner, mesh=mesh)
    fully_shard(layer, mesh=mesh)
    y, _ = layer(wanted["x"][rank : rank + 1])
    (2 * y.square().sum()).backward()  # gradients are averaged over the two ranks
    for name, parameter in layer.named_parameters():
        if parameter.grad is not None:
            torch.testing.assert_close(parameter.grad.full_tensor(), wanted["gradients"][name], rtol=1e-4, atol=1e-4)
    dist.barrier()
    dist.destroy_process_group()


@pytest.mark.slow
def test_two_ranks_train_like_one(make_layer, tmp_path):
    layer, x = make_layer(), torch.randn(2, 22, 32)
    _, wanted = gradients(layer, x)
    package = {"parameters": layer.state_dict(), "x": x, "gradients": wanted}
    torch.multiprocessing.spawn(two_ranks, (str(tmp_path / "store"), package), nprocs=2)
