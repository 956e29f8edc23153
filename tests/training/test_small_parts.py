"""Random state, log cut-back, stop signals and parameter groups."""

from __future__ import annotations

import json
import os
import random
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from ttt_moshi.checkpoint import CheckpointStore, NoCheckpoint
from ttt_moshi.cli.train import continue_command
from ttt_moshi.config import CheckpointArgs, OptimArgs, TrainArgs
from ttt_moshi.signals import requests
from ttt_moshi.training import random_state
from ttt_moshi.training.optimizer import build_optimizer, clip_gradients, set_learning_rate
from ttt_moshi.training.run_dir import RunDir, RunDirError, Start, choose_start, redact
from ttt_moshi.training.sinks import JsonLines, cut_back, flat_numbers


def draws() -> list[float]:
    return [
        random.random(),
        random.gauss(0, 1),
        float(np.random.rand()),
        float(np.random.randn()),
        float(torch.rand(())),
    ]


def test_random_state_survives_json() -> None:
    random_state.seed_everything(5)
    draws()
    saved = json.dumps(random_state.capture())
    expected = [draws() for _ in range(3)]
    random_state.seed_everything(6)
    random_state.restore(json.loads(saved))
    assert [draws() for _ in range(3)] == expected


def test_cut_back_drops_later_steps_and_a_torn_line(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    sink = JsonLines(path)
    for step in range(1, 6):
        sink.write({"step": step, "loss": 1 / step})
    sink.close()
    with path.open("a") as file:
        file.write('{"step": 6, "lo')
    assert cut_back(path, 3) == 3
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [1, 2, 3]
    assert cut_back(path, 3) == 0
    assert cut_back(tmp_path / "absent.jsonl", 3) == 0


def test_only_numbers_reach_the_plots() -> None:
    record = {"step": 4, "loss": 1.5, "nll": {"semantic": 2.0}, "sample_ids": "ab"}
    assert flat_numbers(record) == {"loss": 1.5, "nll.semantic": 2.0}


def test_asking_for_a_checkpoint_once_gives_one() -> None:
    before = signal.getsignal(signal.SIGUSR1)
    with requests() as asked:
        assert not asked.take_save()
        os.kill(os.getpid(), signal.SIGUSR1)
        assert asked.take_save()
        assert not asked.take_save()
    assert signal.getsignal(signal.SIGUSR1) is before


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_first_signal_asks_and_handlers_return(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with requests() as asked:
        assert asked.stop is None
        os.kill(os.getpid(), number)
        assert asked.stop == number
    assert signal.getsignal(number) is before


def test_the_second_signal_ends_the_process() -> None:
    script = (
        "import os, signal, time\nfrom ttt_moshi.signals import requests\n"
        "with requests():\n    os.kill(os.getpid(), signal.SIGTERM)\n    os.kill(os.getpid(), signal.SIGTERM)\n"
        "    time.sleep(2.1)\n    print('asked', flush=True)\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n    print('survived')\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.stdout == "asked\n"
    assert done.returncode == -signal.SIGTERM


def test_groups_have_their_own_rate_decay_and_clipping() -> None:
    model = nn.ModuleDict({"base": nn.Linear(3, 3), "gate": nn.Linear(3, 1, bias=False)})
    optim = OptimArgs(lr=1e-3, ttt_lr=1e-2, gate_lr=1e-1, weight_decay=0.5)
    optimizer = build_optimizer(model, optim, role_of=lambda n: n.split(".")[0], decays=lambda n: n == "base.weight")
    assert set_learning_rate(optimizer, 0.5) == {"base": 5e-4, "gate": 5e-2}
    decayed = {id(p) for g in optimizer.param_groups if g["weight_decay"] for p in g["params"]}
    assert decayed == {id(model["base"].weight)}
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, 10.0)
    model["gate"].weight.grad = torch.full_like(model["gate"].weight, 0.01)
    norms = clip_gradients(optimizer, max_norm=1.0)
    assert float(norms["base"]) == pytest.approx(10 * 12**0.5)
    # The large gradient of one group leaves the small one of the other alone.
    assert torch.equal(model["gate"].weight.grad, torch.full((1, 3), 0.01))
    total = torch.cat([model["base"].weight.grad.flatten(), model["base"].bias.grad]).norm()
    assert float(total) == pytest.approx(1.0, rel=1e-4)


def start_in(run: RunDir, **options: Any) -> Start:
    args = TrainArgs(run_dir=str(run.path), overwrite_run_dir=options.pop("overwrite", False))
    args.checkpoint = CheckpointArgs(**options)
    return choose_start(run, CheckpointStore(run.checkpoints), args)


def test_a_run_folder_is_never_taken_by_accident(tmp_path: Path) -> None:
    run = RunDir(tmp_path / "run")
    for _ in range(2):
        assert start_in(run) == start_in(run, resume="auto") == Start()
        with pytest.raises(NoCheckpoint, match="auto"):
            start_in(run, resume=True)
        run.path.mkdir(exist_ok=True)
    (run.path / "thesis.tex").write_text("years of work")
    for options in ({}, {"overwrite": True}, {"resume": "auto"}):
        with pytest.raises(RunDirError, match="no run made"):
            start_in(run, **options)
    run.args_file.write_text("run_dir: run")
    with pytest.raises(RunDirError, match=r"--checkpoint\.resume true"):
        start_in(run)
    assert start_in(run, overwrite=True) == Start(replace=True)
    # Claimed, and ended before its first checkpoint.
    assert start_in(run, resume="auto") == Start()


@pytest.mark.parametrize("name", ["unhealthy_000003", ".quarantine_000003", ".left_000003", "checkpoint_000003"])
def test_auto_never_starts_beside_checkpoints_that_cannot_be_used(tmp_path: Path, name: str) -> None:
    run = RunDir(tmp_path)
    (run.checkpoints / name).mkdir(parents=True)
    run.args_file.write_text("run_dir: run")
    for resume in ("auto", True):
        with pytest.raises(NoCheckpoint, match=re.escape(name)):
            start_in(run, resume=resume)
    assert [path.name for path in run.checkpoints.iterdir()] == [name]


def test_what_a_killed_start_or_save_left_is_no_checkpoint(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    (run.checkpoints / ".saving_000003").mkdir(parents=True)
    (run.checkpoints / "LOCK").touch()
    assert start_in(run, resume="auto") == Start()
    run.replacing.touch()
    assert start_in(run, resume="auto") == start_in(run) == Start(replace=True)


@pytest.mark.parametrize("place", ["run", "run/checkpoints"])
def test_a_file_where_a_folder_belongs_is_named(tmp_path: Path, place: str) -> None:
    run = RunDir(tmp_path / "run")
    (tmp_path / place).parent.mkdir(exist_ok=True)
    (tmp_path / place).write_text("")
    for resume in (False, True, "auto"):
        with pytest.raises(RunDirError, match=f"{place} is a file"):
            start_in(run, resume=resume)


def test_the_recorded_command_has_no_key() -> None:
    assert redact(["train.py", "--wandb.key", "k1", "--wandb.key=k2", "--seed", "1"]) == [
        "train.py", "--wandb.key", "***", "--wandb.key=***", "--seed", "1",
    ]  # fmt: skip


def test_the_command_that_continues_can_be_typed_and_has_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    argv = ["--run_dir", "runs/my run", "--ttt.half_life_frames", "[5, 9]", "--wandb.key", "secret"]
    argv += ["--checkpoint.init_state_dir", "runs/first", "--overwrite_run_dir=true", "--wandb.key=secret"]
    options = ["--checkpoint.resume", "true"]
    kept = [*argv[:5], "***", "--wandb.key=***", *options]
    for typed, world, launcher in (
        ("/x/train.py", "1", ["python", "train.py"]),
        ("/x/bin/ttt-moshi", "1", ["ttt-moshi", "train"]),
        ("/x/train.py", "4", ["torchrun", "--nproc_per_node", "4", "train.py"]),
        ("/x/ttt_moshi/__main__.py", "4", ["torchrun", "--nproc_per_node", "4", "-m", "ttt_moshi", "train"]),
    ):
        monkeypatch.setattr("sys.argv", [typed, *argv])
        monkeypatch.setenv("WORLD_SIZE", world)
        command = continue_command(argv, options)
        assert shlex.split(command) == [*launcher, *kept] and "secret" not in command
