"""Teaching a memory: by the base model with a wider window, and by beginning with what another recording left."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch

from tests.training.assembled import assembled, make_heard
from ttt_moshi.config import (
    ConfigError,
    DataArgs,
    DistillArgs,
    LongArgs,
    LoraArgs,
    ModelPaths,
    OptimArgs,
    TrainArgs,
    TTTArgs,
)
from ttt_moshi.data.encoded import write_encoded
from ttt_moshi.moshi import build_model, resolve_model, set_context
from ttt_moshi.training import run
from ttt_moshi.training.assemble import Parts, assemble
from ttt_moshi.training.distill import lessons
from ttt_moshi.training.distributed import World, join_world
from ttt_moshi.training.feed import Targets
from ttt_moshi.training.step import StepResult, forward_is_finite, loss_weights, train_step

if TYPE_CHECKING:
    from ttt_moshi.synthetic import Material

WINDOW, WIDE, CLIP = 6, 14, 10


@pytest.fixture(scope="module")
def recordings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four of two clips."""
    folder = tmp_path_factory.mktemp("recordings")
    lines = []
    for index in range(4):
        codes = torch.randint(0, 32, (17, 2 * CLIP), generator=torch.Generator().manual_seed(index))
        write_encoded(folder / f"{index}.safetensors", codes)
        lines.append(json.dumps({"path": f"{index}.safetensors", "duration": 2 * CLIP / 12.5}))
    (folder / "data.jsonl").write_text("\n".join(lines) + "\n")
    return folder / "data.jsonl"


def arguments(material: Material, recordings: Path, folder: Path, **train: Any) -> TrainArgs:
    return TrainArgs(
        run_dir=str(folder),
        data=DataArgs(train_data=str(recordings)),
        moshi_paths=ModelPaths(hf_repo_id=str(material.base_model)),
        ttt=TTTArgs(enable=True, layers="all", mini_batch_size=4),
        lora=LoraArgs(enable=True, rank=4),
        optim=OptimArgs(lr=1e-3),
        train=LongArgs(**{"context_frames": WINDOW, **train}),
        duration_sec=CLIP / 12.5,
        param_dtype="float32",
        gradient_checkpointing=False,
    )


@pytest.mark.parametrize("stateful", [False, True])
def test_the_teacher_is_the_base_model_with_its_window(
    tiny_material: Material, recordings: Path, tmp_path: Path, stateful: bool
) -> None:
    args = arguments(tiny_material, recordings, tmp_path, stateful=stateful, distill=DistillArgs(WIDE))
    info = resolve_model(args.moshi_paths)
    base = build_model(info, TTTArgs(enable=False), LoraArgs(enable=False), dtype=torch.float32)
    set_context(base, WIDE)
    with assembled(args) as (parts, world):
        make_heard(parts, "wo.weight", "lora_B.weight")  # gates that are open and adapters that adapt
        feed, teacher = parts.feed, parts.teacher
        assert teacher is not None
        clips = [parts.layout.read(parts.stages[0].loader, cursor)[0][0] for cursor in range(2)]
        feed.begin(parts.model, restart=False)
        teacher.begin(parts.model, restart=False)
        found = []
        for clip in clips:
            before = feed.predict(parts.model, 0, clip, world.device)[0]
            found.append(teacher.predict(parts.model, 0, clip, world.device)[0])
            # The student has its memory, its adapters and its window.
            assert not torch.allclose(before, found[-1], atol=1e-3)
        assert parts.model.context == WINDOW
        assert not any(logits.requires_grad for logits in found)
        codes = torch.cat([clip.codes for clip in clips], dim=2)
        with torch.no_grad():
            wanted = [base(codes).text_logits] if stateful else [base(clip.codes).text_logits for clip in clips]
    torch.testing.assert_close(torch.cat(found, 2), torch.cat(wanted, 2), rtol=1e-4, atol=1e-5)


def test_lessons_are_the_divergence_from_the_teacher_where_something_is_predicted() -> None:
    torch.manual_seed(0)
    shapes = (2, 1, 5, 7), (2, 3, 5, 11)
    student, teacher = ([torch.randn(shape) for shape in shapes] for _ in range(2))
    mask = torch.rand(2, 4, 5) < 0.7
    found = lessons(student, teacher, Targets(torch.randint(0, 7, (2, 8, 5)), mask))
    for b, k, t in ((b, k, t) for b in range(2) for k in range(4) for t in range(5)):
        logits = [(text[b, 0, t] if k == 0 else audio[b, k - 1, t]) for text, audio in (student, teacher)]
        mine, theirs = (torch.distributions.Categorical(logits=x) for x in logits)
        wanted = float(torch.distributions.kl_divergence(theirs, mine)) if mask[b, k, t] else 0.0
        assert float(found[b, k, t]) == pytest.approx(wanted, abs=1e-5)


def one_step(parts: Parts, world: World, args: TrainArgs) -> tuple[StepResult, dict[str, torch.Tensor]]:
    weights = loss_weights(parts.model, args)
    work = parts.layout.read(parts.stages[0].loader, 0)
    result = train_step(parts.model, parts.optimizer, parts.feed, work, world, weights, 1.0, teacher=parts.teacher)
    return result, {name: p.full_tensor().detach() for name, p in parts.model.named_parameters() if p.requires_grad}


def test_a_teacher_changes_what_is_learned_by_its_weight_and_window(
    tiny_material: Material, recordings: Path, tmp_path: Path
) -> None:
    def learned(distill: DistillArgs, window: int = WINDOW) -> tuple[StepResult, dict[str, torch.Tensor]]:
        args = arguments(tiny_material, recordings, tmp_path, context_frames=window, distill=distill)
        with assembled(args) as (parts, world):
            return one_step(parts, world, args)

    alone, by_itself = learned(DistillArgs())
    assert "distill_loss" not in alone.metrics
    taught = {weight: learned(DistillArgs(WIDE, weight)) for weight in (0.5, 2.0)}
    for result, parameters in taught.values():
        assert result.metrics["distill_loss"] > 0 and result.metrics["loss"] == alone.metrics["loss"]
        assert any(not torch.equal(parameters[name], by_itself[name]) for name in by_itself)
    assert taught[0.5][0].metrics["distill_loss"] == taught[2.0][0].metrics["distill_loss"]
    assert any(not torch.equal(taught[0.5][1][name], taught[2.0][1][name]) for name in by_itself)
    assert learned(DistillArgs(8))[0].metrics["distill_loss"] != taught[2.0][0].metrics["distill_loss"]
    # Nothing lies beyond the student's window: a new memory changes nothing, so there is nothing to teach.
    assert learned(DistillArgs(3 * CLIP), window=2 * CLIP)[0].metrics["distill_loss"] == pytest.approx(0.0, abs=1e-9)


def test_a_teacher_without_a_wider_window_is_refused(tiny_material: Material, recordings: Path, tmp_path: Path) -> None:
    args = arguments(tiny_material, recordings, tmp_path, context_frames=None, distill=DistillArgs(2))
    with join_world() as world, pytest.raises(ConfigError, match=r"train\.distill\.context_frames.*wider"):
        assemble(args, world)


def test_the_last_recordings_begin_with_the_memory_of_another(
    tiny_material: Material, recordings: Path, tmp_path: Path
) -> None:
    """A new recording every second step; from the fourth of six steps on, memory is inherited."""

    def losses(name: str, share: float) -> list[float]:
        args = arguments(tiny_material, recordings, tmp_path / name, stateful=True, inherit_memory=share)
        args.ttt.initial_gating_alpha = 1.0
        args.optim, args.max_steps, args.do_ckpt = OptimArgs(lr=1e-2), 6, False
        found: list[float] = []
        run(args, lambda record: found.append(record["loss"]))
        return found

    apart, inherited = losses("apart", 0.0), losses("inherited", 0.5)
    assert inherited[:4] == apart[:4]
    assert abs(inherited[4] - apart[4]) > 1e-6


def test_an_inherited_memory_is_all_that_is_inherited(
    tiny_material: Material, recordings: Path, tmp_path: Path
) -> None:
    args = arguments(tiny_material, recordings, tmp_path, stateful=True, inherit_memory=1.0)
    with assembled(args) as (parts, world):
        make_heard(parts, "wo.weight", "lora_B.weight")  # gates that are open and adapters that adapt
        clips = [parts.layout.read(parts.stages[0].loader, cursor)[0][0] for cursor in range(3)]
        assert [bool(clip.starts) for clip in clips] == [True, False, True]

        def third(inherit: bool, before: list[Any]) -> torch.Tensor:
            parts.feed.begin(parts.model, True, inherit)
            for clip in before:
                parts.feed.predict(parts.model, 0, clip, world.device)
            return parts.feed.predict(parts.model, 0, clips[2], world.device)[0].detach()

        alone = third(False, [])
        assert torch.equal(third(False, clips[:2]), alone)
        assert torch.equal(third(True, []), alone)
        assert not torch.allclose(third(True, clips[:2]), alone, atol=1e-4)
        for layer in parts.model.layers:
            layer.passed_over = True  # attention and codes begin anew
        alone = third(False, [])
        assert torch.equal(third(True, clips[:2]), alone)


def test_a_memory_that_ran_away_is_found_in_whoever_inherits_it(
    tiny_material: Material, recordings: Path, tmp_path: Path
) -> None:
    args = arguments(tiny_material, recordings, tmp_path, stateful=True, inherit_memory=1.0)
    with assembled(args) as (parts, world):
        make_heard(parts, "wo.weight")
        weights, loader, clips = loss_weights(parts.model, args), parts.stages[0].loader, parts.layout.clips
        for step in range(2):
            work = parts.layout.read(loader, step * clips)
            assert train_step(parts.model, parts.optimizer, parts.feed, work, world, weights, 1.0, inherit=True).finite
        for name, tensor in parts.feed.tensors(world.mesh).items():
            if "W1" in name:
                tensor.to_local().fill_(math.inf)
        work = parts.layout.read(loader, 2 * clips)
        assert all(bool(batch.starts.all()) for batch in work[0][:1])
        result = train_step(parts.model, parts.optimizer, parts.feed, work, world, weights, 1.0, inherit=True)
        assert not result.finite
        assert not forward_is_finite(parts.model, parts.feed, work, world, inherit=True)
        assert forward_is_finite(parts.model, parts.feed, work, world, inherit=False)
