"""Gates during training: what they write, and that training does not notice them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import soundfile
from safetensors.torch import load_file

from ttt_moshi.checkpoint import CheckpointStore, read_manifest
from ttt_moshi.config import CheckpointArgs, ConfigError, DataArgs, EvalArgs, ModelPaths, OptimArgs, TrainArgs, TTTArgs
from ttt_moshi.evaluation import EvaluationError
from ttt_moshi.training import run

if TYPE_CHECKING:
    from tests.training.conftest import Launch
    from ttt_moshi.synthetic import Material

GATES = EvalArgs(gates=2, gates_sec=1.04)


def arguments(material: Material, folder: Path, **changes: object) -> TrainArgs:
    args = TrainArgs(
        run_dir=str(folder),
        data=DataArgs(train_data=str(material.train_data), eval_data=str(material.eval_data), shuffle=True),
        moshi_paths=ModelPaths(hf_repo_id=str(material.base_model)),
        ttt=TTTArgs(enable=True, layers="all", mini_batch_size=8),
        optim=OptimArgs(lr=1e-3),
        duration_sec=1.6,
        max_steps=3,
        eval_freq=1,
        ckpt_freq=1,
        param_dtype="float32",
        gradient_checkpointing=False,
    )
    return replace(args, **changes)


def lines(folder: Path, name: str) -> list[dict]:
    return [json.loads(line) for line in (folder / name).read_text().splitlines()]


def losses(folder: Path) -> list[dict]:
    return [{k: v for k, v in line.items() if k != "timing"} for line in lines(folder, "metrics.train.jsonl")]


def state(folder: Path, step: int) -> str:
    return read_manifest(CheckpointStore(folder / "checkpoints").path(step))["state_id"]


def test_gates_write_what_the_model_says_and_training_does_not_notice(
    tiny_material: Material, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    plain, gated, resumed = (tmp_path / name for name in ("plain", "gated", "resumed"))
    run(arguments(tiny_material, plain))
    run(arguments(tiny_material, gated, eval=GATES))
    shutil.copytree(gated, resumed)
    # Where the conversations of step 2 belong lies a file: that evaluation fails, and costs no training.
    shutil.rmtree(resumed / "said")
    (resumed / "said").mkdir()
    (resumed / "said" / "step_000002").write_text("in the way")
    keep = CheckpointArgs(resume=True, resume_step=1, keep_best=1, keep_metric="gates.off_length")
    run(arguments(tiny_material, resumed, eval=GATES, checkpoint=keep, num_ckpt_keep=1))
    assert losses(plain) == losses(gated) == losses(resumed) and len(losses(plain)) == 3
    assert state(plain, 3) == state(gated, 3) == state(resumed, 3)

    found, again = (lines(folder, "metrics.eval.jsonl") for folder in (gated, resumed))
    assert [line["step"] for line in found] == [1, 2, 3]
    assert "THE EVALUATION AFTER STEP 2 FAILED, training goes on: gates: " in caplog.text
    assert (found[0], found[2]) == (again[0], again[2]) and "step_000002" in again[1]["gates"]["reason"]
    for line in found:
        gates = line["gates"]
        assert gates["conversations"] == 2 and 0 <= gates["silence"] <= 1 and gates["failed"] in (0, 0.5, 1)
        folder = gated / "said" / f"step_{line['step']:06d}"
        names = sorted(path.name for path in folder.iterdir())
        assert names == ["0000-dialogue_0000", "0001-dialogue_0001"]
        said, rate = soundfile.read(folder / names[0] / "output.wav")
        assert (len(said), rate) == (round(1.04 * 24_000), 24_000)
    best = min((found[0], found[2]), key=lambda line: line["gates"]["off_length"])["step"]
    assert CheckpointStore(resumed / "checkpoints").steps() == sorted({best, 3})

    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events = reader.EventAccumulator(str(gated / "tensorboard"))
    events.Reload()
    heard = events.Audio("eval/said")
    assert [event.step for event in heard] == [1, 2, 3] and heard[0].sample_rate == 24_000
    played = np.frombuffer(heard[-1].encoded_audio_string[44:], np.int16) / 32767
    np.testing.assert_allclose(played, said.clip(-1, 1), atol=2e-4)
    failed = [event.value for event in events.Scalars("eval/gates/failed")]
    assert failed == [line["gates"]["failed"] for line in found]


def test_gates_that_cannot_be_passed_are_refused_before_the_first_step(tiny_material: Material, tmp_path: Path) -> None:
    for changes, complaint in (
        ({"data": DataArgs(train_data=str(tiny_material.train_data)), "eval": GATES}, "name `data.eval_data`"),
        ({"eval": EvalArgs(gates=-1)}, "`eval.gates` must be at least 0"),
        ({"eval": EvalArgs(gates=1, gates_sec=0.5)}, "`eval.gates_sec` must be at least 1"),
    ):
        with pytest.raises(ConfigError, match=complaint):
            arguments(tiny_material, tmp_path / "run", **changes)
    ranked = CheckpointArgs(keep_best=1, keep_metric="gates.failed")
    with pytest.raises(ConfigError, match=r"does not measure 'gates.failed'"):
        run(arguments(tiny_material, tmp_path / "run", checkpoint=ranked))
    mono = tmp_path / "mono.wav"
    soundfile.write(mono, np.zeros(48_000), 24_000)
    (tmp_path / "mono.jsonl").write_text(json.dumps({"path": "mono.wav", "duration": 2.0}) + "\n")
    data = DataArgs(train_data=str(tiny_material.train_data), eval_data=str(tmp_path / "mono.jsonl"))
    with pytest.raises(EvaluationError, match=r"no user can be played: mono\.wav"):
        run(arguments(tiny_material, tmp_path / "run", data=data, eval=GATES))
    assert not (tmp_path / "run" / "args.yaml").exists()


@pytest.mark.slow
def test_two_processes_share_the_conversations(launch: Callable[..., Launch], tiny_material: Material) -> None:
    both = launch(
        "both", "--data.eval_data", str(tiny_material.eval_data), "--max_steps", "2", "--eval_freq", "1",
        "--eval.gates", "2", "--eval.gates_sec", "1.6",
    )  # fmt: skip
    both.run(ranks=2)
    alone = launch("alone", *both.options, "--max_steps", "1", "--batch_size", "4")
    alone.run()
    found = lines(both.run_dir, "metrics.eval.jsonl")
    assert [line["gates"]["conversations"] for line in found] == [2, 2]
    for name in ("0000-dialogue_0000", "0001-dialogue_0001"):
        # One step of twice the batch is the same to rounding, which leaves most draws as they are.
        held = [load_file(run.run_dir / "said" / "step_000001" / name / "tokens.safetensors") for run in (both, alone)]
        assert (held[0]["tokens"] == held[1]["tokens"]).float().mean() > 0.9
