"""A step that is not finite leaves nothing behind: not in the memory, the random generators, or what is saved."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
from torch import nn

from ttt_moshi.config import DataArgs, LongArgs, ModelPaths, OptimArgs, TrainArgs, TTTArgs
from ttt_moshi.training import random_state
from ttt_moshi.training.assemble import assemble
from ttt_moshi.training.distributed import join_world
from ttt_moshi.training.optimizer import optimizer_tensors
from ttt_moshi.training.step import forward_is_finite, loss_weights, train_step

if TYPE_CHECKING:
    from ttt_moshi.synthetic import Material


@pytest.mark.parametrize("broken", ["weights", "gradient"])
def test_a_failed_step_and_a_probe_leave_no_trace(tiny_material: Material, tmp_path: Path, broken: str) -> None:
    args = TrainArgs(
        run_dir=str(tmp_path),
        data=DataArgs(train_data=str(tiny_material.train_data)),
        moshi_paths=ModelPaths(hf_repo_id=str(tiny_material.base_model)),
        ttt=TTTArgs(enable=True, layers="all", mini_batch_size=8),
        optim=OptimArgs(lr=1e-3),
        train=LongArgs(stateful=True, context_frames=16),
        duration_sec=0.8,
        param_dtype="float32",
        gradient_checkpointing=False,
    )
    with join_world() as world:
        parts = assemble(args, world)
        weights = loss_weights(parts.model, args)

        def work(cursor: int) -> list:
            return parts.layout.read(parts.stages[0].loader, cursor)

        def step(cursor: int) -> bool:
            return train_step(parts.model, parts.optimizer, parts.feed, work(cursor), world, weights, 1.0).finite

        def state() -> dict[str, torch.Tensor]:
            live = {**optimizer_tensors(parts.model, parts.optimizer), **parts.feed.tensors(world.mesh)}
            return {name: getattr(t, "full_tensor", lambda t=t: t)().clone() for name, t in live.items()}

        assert step(0) and step(1)
        before, generators = state(), json.dumps(random_state.capture())

        def spoil(module: nn.Module, given: tuple, output: torch.Tensor) -> torch.Tensor:
            torch.rand(())  # a step that draws
            if broken == "weights":
                return output * torch.nan
            if output.requires_grad:
                output.register_hook(lambda gradient: gradient * torch.inf)
            return output

        handle = parts.model.transformer.layers[0].register_forward_hook(spoil)
        assert not step(2)
        assert forward_is_finite(parts.model, parts.feed, work(2), world) == (broken == "gradient")
        handle.remove()
        assert forward_is_finite(parts.model, parts.feed, work(2), world)
        after = state()
        assert [name for name in before if not torch.equal(before[name], after[name])] == []
        assert sum(name.startswith("stream/") for name in before) > 5
        assert json.dumps(random_state.capture()) == generators
        # What follows is what would have followed.
        assert step(2)
        moved = state()
        assert any(not torch.equal(moved[name], before[name]) for name in before if name.startswith("stream/"))
