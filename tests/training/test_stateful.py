"""Recordings read clip by clip with everything carried along."""

from __future__ import annotations

import gc
import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch

from tests.training.assembled import assembled, make_heard
from ttt_moshi.config import ConfigError, DataArgs, LongArgs, ModelPaths, OptimArgs, TrainArgs, TTTArgs
from ttt_moshi.data.encoded import write_encoded
from ttt_moshi.training import loss as objective
from ttt_moshi.training.step import loss_weights, train_step

if TYPE_CHECKING:
    from ttt_moshi.synthetic import Material

RUN = (
    "--max_steps", "8", "--ckpt_freq", "3", "--train.stateful", "true", "--train.backprop_clips", "2",
    "--train.random_phase", "true", "--train.context_frames", "16", "--train.distill.context_frames", "40",
)  # fmt: skip

DELTA = (
    "--max_steps", "8", "--ckpt_freq", "3", "--train.stateful", "true", "--train.inherit_memory", "0.8",
    "--train.context_frames", "16", "--train.distill.context_frames", "40", "--ttt.inner", "delta",
    "--ttt.half_life_frames", "[3, 30]", "--ttt.forget", "gated", "--ttt.target", "both", "--ttt.init", "attention",
)  # fmt: skip
"""carries what only the delta rule has: the key that waits for the next frame"""


def stateful_args(material: Material, folder: Path, clips: int, **train: Any) -> TrainArgs:
    return TrainArgs(
        run_dir=str(folder),
        data=DataArgs(train_data=str(material.train_data)),
        moshi_paths=ModelPaths(hf_repo_id=str(material.base_model)),
        ttt=TTTArgs(enable=True, layers="all", mini_batch_size=8),
        optim=OptimArgs(lr=1e-3),
        train=LongArgs(stateful=True, backprop_clips=clips, context_frames=16, **train),
        duration_sec=0.8,
        batch_size=1,
        param_dtype="float32",
        gradient_checkpointing=False,
    )


@pytest.mark.parametrize("half_life", [None, 16.0])
def test_clips_with_gradients_between_them_equal_one_long_forward(
    tiny_material: Material, tmp_path: Path, half_life: float | None
) -> None:
    clips = 6
    args = stateful_args(tiny_material, tmp_path, clips)
    args.ttt.half_life_frames = half_life
    with assembled(args) as (parts, world):
        make_heard(parts, "wo.weight")
        work = parts.layout.read(parts.stages[0].loader, 0)
        whole = torch.cat([batch.codes for batch in work[0]], dim=2)
        assert [bool(batch.starts) for batch in work[0]] == [True] + [False] * (clips - 1)
        weights = loss_weights(parts.model, args)
        mask = objective.target_mask(whole, parts.model.delays, parts.model.dep_q)
        weight = objective.target_weights(whole, mask, weights)
        output = parts.model(whole)
        nll = objective.nll_per_token(output.text_logits, output.logits, whole, mask)
        expected = objective.objective(nll, weight, weight[:, 0].sum(), weight[:, 1:].sum())
        expected.backward()
        gradients = {n: p.grad.full_tensor() for n, p in parts.model.named_parameters() if p.grad is not None}
        norms = {name: float(gradient.norm()) for name, gradient in gradients.items()}
        parts.optimizer.zero_grad(set_to_none=True)

        seen: dict[str, torch.Tensor] = {}
        step = parts.optimizer.step
        parts.optimizer.step = lambda: seen.update(  # type: ignore[method-assign,assignment]
            {n: p.grad.full_tensor().clone() for n, p in parts.model.named_parameters() if p.grad is not None}
        )
        result = train_step(parts.model, parts.optimizer, parts.feed, work, world, weights, 1e9)
        parts.optimizer.step = step  # type: ignore[method-assign]
    assert result.metrics["loss"] == pytest.approx(float(expected.detach()), rel=1e-5)
    assert set(seen) == set(gradients)
    for name, gradient in seen.items():
        assert float((gradient - gradients[name]).norm()) <= 1e-3 * norms[name] + 1e-7, name


def test_what_was_heard_before_matters_and_a_new_recording_forgets_it(tiny_material: Material, tmp_path: Path) -> None:
    args = stateful_args(tiny_material, tmp_path, 1)
    with assembled(args) as (parts, world):
        make_heard(parts, "wo.weight")
        loader, device = parts.stages[0].loader, world.device
        first, second = (parts.layout.read(loader, cursor)[0][0] for cursor in (0, 1))
        with torch.no_grad():
            parts.feed.predict(parts.model, 0, first, device)
            after_first = parts.feed.predict(parts.model, 0, second, device)[0]
            parts.feed.begin(parts.model, restart=True)
            alone = parts.feed.predict(parts.model, 0, second, device)[0]
            assert not torch.allclose(after_first, alone, atol=1e-4)
            parts.feed.begin(parts.model, restart=True)
            fresh = parts.feed.predict(parts.model, 0, first, device)[0]
            again = parts.feed.predict(parts.model, 0, first, device)[0]
        assert torch.equal(fresh, again)


def test_memory_is_flat_over_100_clips_of_one_recording(tiny_material: Material, tmp_path: Path) -> None:
    clips, frames = 100, 5
    codes = torch.randint(0, 32, (17, clips * frames), generator=torch.Generator().manual_seed(0))
    write_encoded(tmp_path / "long.safetensors", codes)
    line = json.dumps({"path": "long.safetensors", "duration": clips * frames / 12.5})
    (tmp_path / "data.jsonl").write_text(line + "\n")
    args = stateful_args(tiny_material, tmp_path / "run", 1)
    args.data.train_data, args.duration_sec = str(tmp_path / "data.jsonl"), frames / 12.5

    def live_bytes() -> int:
        gc.collect()
        return sum(t.numel() * t.element_size() for t in gc.get_objects() if type(t) is torch.Tensor)

    def resident_pages() -> int:
        """Of the whole process, so that what autograd holds out of sight counts too."""
        return int(Path("/proc/self/statm").read_text().split()[1])

    with assembled(args) as (parts, world):
        weights = loss_weights(parts.model, args)
        sizes, resident, carried = [], [], []
        for cursor in range(clips):
            work = parts.layout.read(parts.stages[0].loader, cursor)
            assert work[0][0].starts.tolist() == [cursor == 0]
            train_step(parts.model, parts.optimizer, parts.feed, work, world, weights, 1.0)
            del work
            # The attention window of 16 frames is full after four clips.
            if cursor % 10 == 9:
                sizes.append(live_bytes())
                resident.append(resident_pages())
                carried.append({name: tuple(t.shape) for name, t in parts.feed.tensors(world.mesh).items()})
    assert len(sizes) == 10
    assert max(sizes) <= 1.01 * min(sizes)
    assert max(resident) <= 1.01 * resident[0]
    assert all(shapes == carried[0] for shapes in carried)


@pytest.mark.parametrize("run", [RUN, DELTA], ids=["mlp", "delta"])
def test_killed_in_mid_recording_ends_bit_identical(launch: Callable[..., Any], run: tuple[str, ...]) -> None:
    whole = launch("whole", *run)
    whole.run()
    killed = launch("killed", *run)
    killed.run_until(lambda: bool(killed.store.steps()) and len(killed.records) >= 5, signal.SIGKILL)
    killed.run("--checkpoint.resume", "true")
    assert killed.state_id(8) == whole.state_id(8)
    assert killed.timeless == whole.timeless


def test_two_ranks_continue_what_one_carried(launch: Callable[..., Any]) -> None:
    whole = launch("whole", *RUN)
    whole.run()
    moved = launch("moved", *RUN)
    moved.run_until(lambda: bool(moved.store.steps()), signal.SIGKILL)
    moved.run("--checkpoint.resume", "true", "--batch_size", "1", ranks=2)
    assert [r["sample_ids"] for r in moved.records] == [r["sample_ids"] for r in whole.records]
    assert [r["loss"] for r in moved.records] == pytest.approx([r["loss"] for r in whole.records], rel=1e-4)
    error = moved.run("--checkpoint.resume", "true", "--batch_size", "3", "--max_steps", "9", status=2).stderr
    assert "clips in a step" in error and "--checkpoint.accept_changes" in error


def test_a_schedule_changes_the_clip_length_and_survives_a_kill(launch: Callable[..., Any]) -> None:
    options = ("--max_steps", "6", "--ckpt_freq", "2", "--train.clip_schedule", "0:0.8,3:1.6")
    whole = launch("whole", *options)
    whole.run()
    killed = launch("killed", *options)
    killed.run_until(lambda: bool(killed.store.steps()) and len(killed.records) >= 3, signal.SIGKILL)
    killed.run("--checkpoint.resume", "true")
    assert killed.state_id(6) == whole.state_id(6)
    assert killed.timeless == whole.timeless
    tokens = [record["predicted_tokens"] for record in whole.records]
    assert max(tokens[:3]) < min(tokens[3:])
    # A stage starts its own order of clips: positions count from its beginning.
    assert [record["clips"] for record in whole.records] == [2 * step for step in range(1, 7)]


@pytest.mark.parametrize("schedule", ["10:5", "0:5,0:6", "0:5,3:-1", "0", "0:a", ""])
def test_a_schedule_that_cannot_be_read_is_refused(schedule: str) -> None:
    with pytest.raises(ConfigError, match=r"train\.clip_schedule"):
        TrainArgs(run_dir="x", train=LongArgs(clip_schedule=schedule))


@pytest.mark.parametrize("seconds", [0.4, 0.8, 1.6])
def test_given_frames_are_predicted_in_no_clip(tiny_material: Material, tmp_path: Path, seconds: float) -> None:
    """As in one pass over the recording, also where they are as long as a clip (0.8 s) or longer."""
    source = tiny_material.train_data
    line = json.loads(source.read_text().splitlines()[0])
    line |= {"path": str(source.parent / line["path"]), "prefix_sec": seconds}
    (tmp_path / "data.jsonl").write_text(json.dumps(line) + "\n")
    args = stateful_args(tiny_material, tmp_path / "run", 4)
    args.data.train_data = str(tmp_path / "data.jsonl")
    with assembled(args) as (parts, world):
        parts.feed.begin(parts.model, True)
        batches = parts.layout.read(parts.stages[0].loader, 0)[0]
        targets = parts.feed.targets(parts.model, 0, batches, world.device)
        whole = torch.cat([batch.codes for batch in batches], 2)
        given = torch.tensor([round(seconds * 12.5)])
        wanted = objective.target_mask(whole, parts.model.delays, parts.model.dep_q, given)
        assert sum(int(one.mask.sum()) for one in targets) == int(wanted.sum())
