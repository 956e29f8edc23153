"""What a configuration is said to need, beside real allocations of a small model and sums done by hand."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.distributed.tensor import DTensor

from ttt_moshi.cli.main import run_command
from ttt_moshi.config import DataArgs, LongArgs, LoraArgs, ModelPaths, TrainArgs, TTTArgs
from ttt_moshi.config_io import args_from_dict, check_config_file
from ttt_moshi.training import estimate
from ttt_moshi.training.assemble import assemble
from ttt_moshi.training.distributed import join_world
from ttt_moshi.training.step import loss_weights, train_step

CONFIGS = Path(__file__).parents[2] / "configs"


def read(name: str):
    args = args_from_dict(check_config_file(CONFIGS / name))
    return args, estimate.meta_model(args)


@pytest.fixture(scope="module")
def recipe():
    return read("moshi_7b_ttt_long.yaml")


def small(material, run_dir: Path, **changes) -> TrainArgs:
    values = {
        "ttt": TTTArgs(enable=True, layers="all", mini_batch_size=8),
        "lora": LoraArgs(enable=True, rank=4),
        "duration_sec": 2.4,
        "batch_size": 2,
        "gradient_checkpointing": False,
    }
    return TrainArgs(
        run_dir=str(run_dir),
        data=DataArgs(train_data=str(material.train_data)),
        moshi_paths=ModelPaths(hf_repo_id=str(material.base_model)),
        **{**values, **changes},
    )


def allocated(args: TrainArgs) -> dict[str, int]:
    """Bytes of what a real step works with, counted where it is."""

    def size(tensors) -> int:
        local = [t.to_local() if isinstance(t, DTensor) else t for t in tensors]
        # Gradients of one sharding unit are views of one buffer.
        storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in local}
        return sum(storages.values())

    with join_world() as world:
        parts = assemble(args, world)
        model, optimizer = parts.model, parts.optimizer
        gradients: list[int] = []
        optimizer.register_step_pre_hook(
            lambda *_: gradients.append(size(p.grad for p in model.parameters() if p.grad is not None))
        )
        parts.feed.begin(model, restart=True)
        work = parts.layout.read(parts.stages[0].loader, 0)
        train_step(model, optimizer, parts.feed, work, world, loss_weights(model, args), args.max_norm)
        moments = [t for state in optimizer.state.values() for name, t in state.items() if name != "step"]
        return {
            "frozen weights": size(p for p in model.parameters() if not p.requires_grad),
            "trained weights": size(p for p in model.parameters() if p.requires_grad),
            "their gradients": gradients[0],
            "moments of AdamW": size(moments),
            "carried states": size(t for t in parts.feed.tensors(world.mesh).values() if t.is_floating_point()),
        }


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({}, id="TTT and LoRA in float32"),
        pytest.param(
            {"train": LongArgs(stateful=True), "param_dtype": "bfloat16", "num_microbatches": 2}, id="carried, bfloat16"
        ),
        pytest.param(
            {
                "full_finetuning": True, "lora": LoraArgs(), "save_adapters": False,
                "ttt": TTTArgs(enable=True, layers="all", inner="linear"),
            },
            id="every weight",
        ),
    ],
)  # fmt: skip
def test_bytes_held_are_those_that_are_allocated(tiny_material, tmp_path, changes):
    args = small(tiny_material, tmp_path / "run", **{"param_dtype": "float32", **changes})
    found = allocated(args)
    said = {name: row.size for name, row in estimate.held(args, estimate.meta_model(args)).items()}
    assert set(said) == set(found) - ({"carried states"} if not args.train.stateful else set())
    assert said.pop("carried states", 0) == pytest.approx(found.pop("carried states"), rel=0.01)
    # Where no frames are given, the gates of the backward pass have no gradient.
    assert said.pop("their gradients") == pytest.approx(found.pop("their gradients"), rel=0.002)
    assert said == found


def test_nothing_is_counted_for_what_is_not_carried():
    args, model = read("moshi_7b_ttt.yaml")
    held, working = estimate.held(args, model), estimate.working(args, model)
    assert "carried states" not in held
    assert estimate.total(held) == 2 * 7_687_729_152 + 16 * 2 * 71_495_712
    activations = working["inputs of all layers"].size + working["backward pass of TTT layers"].size
    assert (estimate.total(held) + activations) / 1e9 == pytest.approx(18.2, abs=0.1)


def test_a_published_figure_is_met():
    """moshi-finetune publishes 39.6 GB at its peak for these settings on one GPU of 80 GB."""
    args = TrainArgs(run_dir="x", lora=LoraArgs(enable=True, rank=128), duration_sec=100, batch_size=16, max_steps=2000)
    model = estimate.meta_model(args)
    said = estimate.total(estimate.held(args, model)) + estimate.total(estimate.working(args, model))
    assert said / 1e9 == pytest.approx(39.6, rel=0.05)


def test_bytes_follow_from_the_sizes_of_moshi_and_of_the_memory(recipe):
    args, model = recipe
    found = {name: row.size for name, row in estimate.held(args, model).items()}
    assert len(model.ttt_layers) == 16 and args.num_microbatches * args.batch_size == 8
    lora = sum(p.numel() for n, p in model.named_parameters() if "lora" in n)
    assert found["trained weights"] / 4 == 16 * 67_805_216 + lora
    attention = 2 * 2 * 32 * (args.train.context_frames - 1) * 4096  # keys and values of 32 layers in bfloat16
    memories = 16 * 32 * 128 * 128 * 4  # a matrix a head in float32
    assert found["carried states"] == pytest.approx(8 * (attention + memories), rel=0.01)
    assert estimate.working(args, model)["inputs of all layers"].size == 2 * 4096 * 32 * 2 * 60 * 12.5


def test_work_follows_from_the_products(recipe):
    args, model = recipe
    found = estimate.work(args, model)
    assert found["inner networks of 16 TTT layers"] == 4 * 16 * 32 * (10 * 128 * 128 + 8 * 64 * 128)
    layer = 4 * 4096 * 4096 + 3 * 4096 * 11264  # Moshi's attention and gated feed-forward
    projections = 4 * 4096 * 4096  # of a TTT layer
    temporal = 4 * 2 * (32 * layer + 16 * projections)
    assert temporal < found["matrices of Moshi, LoRA and TTT projections"] < 1.35 * temporal
    assert estimate.frames_per_step(args) == 12_000


def test_the_command_prints_it_in_80_columns_and_trains_nothing(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.chdir(tmp_path)
    config = str(CONFIGS / "moshi_7b_ttt.yaml")
    assert run_command("train", ["--config", config, "--estimate", "--batch_size", "4"]) == 0
    printed = capsys.readouterr().out
    assert "15.38  frozen weights: 7,687,729,152 counted, bfloat16" in printed
    assert "40,000 frames" in printed and "carried" not in printed
    assert list(tmp_path.iterdir()) == []


def test_keys_without_effect_are_said_as_training_says_them(capsys):
    config = str(CONFIGS / "moshi_7b_ttt.yaml")
    idle = ["--ttt.inner", "delta", "--ttt.mini_batch_size", "8"]
    assert run_command("train", ["--config", config, "--estimate", *idle]) == 0
    assert "`ttt.mini_batch_size` has no effect, since " in capsys.readouterr().out
    assert run_command("train", ["--config", config, "--estimate"]) == 0
    assert "no effect" not in capsys.readouterr().out


def test_the_command_refuses_what_cannot_be_built(capsys):
    assert run_command("train", ["--run_dir", "x", "--estimate", "--ttt.enable", "true", "--ttt.layers", "99"]) == 2
    assert "error:" in capsys.readouterr().err
    assert torch.distributed.is_initialized() is False
