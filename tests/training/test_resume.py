"""A run killed at any instant, and resumed, ends as one that was never killed."""

from __future__ import annotations

import random
import re
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

RUN = ("--max_steps", "9", "--ckpt_freq", "2", "--num_ckpt_keep", "2")


def after_steps(run: Any, steps: int, wait: float) -> Callable[[], bool]:
    def reached() -> bool:
        if len(run.records) < steps or not run.store.steps():
            return False
        time.sleep(wait)
        return True

    return reached


def test_killed_anywhere_ends_bit_identical(launch: Callable[..., Any]) -> None:
    whole = launch("whole", *RUN)
    whole.run()
    killed = launch("killed", *RUN)
    draw = random.Random(20)
    status, _ = killed.run_until(after_steps(killed, 3, draw.uniform(0, 0.1)), signal.SIGKILL)
    assert status == -signal.SIGKILL
    status, _ = killed.run_until(
        after_steps(killed, 6, draw.uniform(0, 0.1)), signal.SIGKILL, "--checkpoint.resume", "true"
    )
    assert status == -signal.SIGKILL
    done = killed.run("--checkpoint.resume", "true")
    assert "resuming at step" in done.stderr and "newest valid" in done.stderr
    assert killed.state_id(9) == whole.state_id(9)
    assert killed.timeless == whole.timeless
    assert [record["step"] for record in whole.timeless] == list(range(1, 10))
    assert len({record["sample_ids"] for record in whole.timeless}) == 9


def test_two_ranks_killed_end_bit_identical(launch: Callable[..., Any]) -> None:
    options = (*RUN, "--batch_size", "1")
    whole = launch("whole", *options)
    whole.run(ranks=2)
    killed = launch("killed", *options)
    killed.run_until(after_steps(killed, 5, 0.02), signal.SIGKILL, ranks=2)
    killed.run("--checkpoint.resume", "true", ranks=2)
    assert killed.state_id(9) == whole.state_id(9)
    assert killed.timeless == whole.timeless


def test_ranks_and_micro_batches_do_not_change_what_is_learnt(launch: Callable[..., Any]) -> None:
    runs = {
        "one": (1, "--batch_size", "2"),
        "micro": (1, "--batch_size", "1", "--num_microbatches", "2"),
        "two": (2, "--batch_size", "1"),
    }
    records = {}
    for name, (ranks, *options) in runs.items():
        run = launch(name, *options, "--max_steps", "3")
        run.run(ranks=ranks)
        records[name] = run.records
    for name in ("micro", "two"):
        for mine, reference in zip(records[name], records["one"], strict=True):
            assert mine["sample_ids"] == reference["sample_ids"]
            assert mine["loss"] == pytest.approx(reference["loss"], rel=1e-5)
            assert mine["nll"] == pytest.approx(reference["nll"], rel=1e-5)


def test_another_world_size_continues_the_same_order_of_clips(launch: Callable[..., Any]) -> None:
    whole = launch("whole", "--max_steps", "4", "--ckpt_freq", "2")
    whole.run()
    moved = launch("moved", "--max_steps", "4", "--ckpt_freq", "2")
    moved.run_until(after_steps(moved, 3, 0.0), signal.SIGKILL)
    done = moved.run("--checkpoint.resume", "true", "--batch_size", "1", ranks=2)
    assert re.search(r"processes +1 +2 +harmless: goes on, equal to rounding", done.stderr)
    assert [r["sample_ids"] for r in moved.records] == [r["sample_ids"] for r in whole.records]
    assert [r["loss"] for r in moved.records] == pytest.approx([r["loss"] for r in whole.records], rel=1e-4)


def test_sigterm_saves_says_how_to_go_on_and_loses_nothing(launch: Callable[..., Any]) -> None:
    whole = launch("whole", *RUN)
    whole.run()
    stopped = launch("stopped", *RUN)
    status, stderr = stopped.run_until(after_steps(stopped, 3, 0.0), signal.SIGTERM)
    assert status == 128 + signal.SIGTERM, stderr[-2000:]
    step = stopped.records[-1]["step"]
    assert stopped.store.steps()[-1] == step
    assert f"stopped by SIGTERM after step {step} of 9" in stderr
    assert "train.py" in stderr and "--checkpoint.resume true" in stderr
    stopped.run("--checkpoint.resume", "true")
    assert stopped.state_id(9) == whole.state_id(9)
    assert stopped.timeless == whole.timeless


def test_what_cannot_be_resumed_is_said_in_one_line(launch: Callable[..., Any]) -> None:
    run = launch("run", "--max_steps", "2", "--ckpt_freq", "1")
    error = run.run("--checkpoint.resume", "true", status=2).stderr
    assert "holds no checkpoint to resume from" in error and "Traceback" not in error
    assert not run.run_dir.exists()
    for resume, words in (("false", "names a step to continue from"), ("auto", "so there is no step 4")):
        error = run.run("--checkpoint.resume", resume, "--checkpoint.resume_step", "4", status=2).stderr
        assert words in error and "Traceback" not in error and not run.run_dir.exists()
    run.run()
    before = run.store.steps(), run.records
    for options, words in (
        (["--checkpoint.resume_step", "7"], "has no checkpoint of step 7; it has 1, 2"),
        (["--ttt.mini_batch_size", "4"], "ttt.mini_batch_size was 8 and is 4"),
        (["--duration_sec", "1.6"], "clip frames by step was [(0, 30)] and is [(0, 20)]"),
    ):
        error = run.run("--checkpoint.resume", "true", *options, status=2).stderr
        assert words in error and "Traceback" not in error
    error = run.run(status=2).stderr
    assert "already holds a run" in error and "--checkpoint.resume true" in error
    assert (run.store.steps(), run.records) == before


def test_a_named_step_is_continued_and_later_logs_are_cut_back(launch: Callable[..., Any]) -> None:
    run = launch("run", "--max_steps", "4", "--ckpt_freq", "1", "--num_ckpt_keep", "null")
    run.run()
    first = run.timeless, run.state_id(4)
    done = run.run("--checkpoint.resume", "true", "--checkpoint.resume_step", "2")
    assert "resuming at step 2" in done.stderr and "named by resume_step 2" in done.stderr
    assert (run.timeless, run.state_id(4)) == first
    left = sorted(path.name for path in (run.run_dir / "checkpoints").glob("left_*"))
    assert left == ["left_000003", "left_000004"]


def test_a_corrupt_newest_checkpoint_is_set_aside(launch: Callable[..., Any]) -> None:
    run = launch("run", "--max_steps", "3", "--ckpt_freq", "1")
    run.run()
    expected = run.timeless, run.state_id(3)
    shard = run.store.path(3) / "resume" / "shard_00000_of_00001.safetensors"
    content = bytearray(shard.read_bytes())
    content[-100] ^= 1
    shard.write_bytes(content)
    done = run.run("--checkpoint.resume", "true")
    assert "resuming at step 2" in done.stderr and shard.name in done.stderr
    assert (run.run_dir / "checkpoints" / "corrupt_000003" / "reason.txt").exists()
    assert (run.timeless, run.state_id(3)) == expected


def test_weights_that_explode_are_never_resumed_from(launch: Callable[..., Any]) -> None:
    run = launch("run", "--max_steps", "6", "--ckpt_freq", "1", "--optim.lr", "1e6", "--optim.pct_start", "0.9")
    error = run.run(status=1).stderr
    assert "not finite" in error and "Traceback" not in error
    assert "dialogue_" in error and re.search(r"\.wav \d+\.\d\d-\d+\.\d\d s", error)
    bad = run.records[-1]["step"]
    assert (run.run_dir / "checkpoints" / f"unhealthy_{bad:06d}").is_dir()
    good = run.store.newest_valid()
    assert good == bad - 1
    assert f"The last step known good is {good}" in error
    advised = f"--checkpoint.resume true --checkpoint.resume_step {good} --optim.lr 500000"
    assert advised in error
    # Whoever restarts without reading begins at the last good step, not at the bad one.
    assert f"resuming at step {good}" in run.run("--checkpoint.resume", "auto", status=1).stderr


def test_weights_of_a_checkpoint_start_a_new_run(launch: Callable[..., Any]) -> None:
    first = launch("first", "--max_steps", "2")
    first.run()
    second = launch("second", "--max_steps", "2")
    done = second.run("--checkpoint.init_state_dir", str(first.store.path(2)))
    assert "tensors loaded" in done.stderr
    assert [r["step"] for r in second.records] == [1, 2]
    assert second.records[0]["sample_ids"] == first.records[0]["sample_ids"]
    assert second.records[0]["loss"] < first.records[0]["loss"]


def test_what_computes_otherwise_with_the_loaded_weights_is_said(launch: Callable[..., Any]) -> None:
    delta = ("--ttt.inner", "delta", "--ttt.half_life_frames", "[10, 100]", "--max_steps", "1")
    lora = ("--lora.enable", "true", "--lora.rank", "2")
    first = launch("first", *delta, *lora)
    first.run()
    start = (*delta, *lora, "--checkpoint.init_state_dir", str(first.store.path(1)))
    assert "was trained with" not in launch("same", *start, "--ttt.mini_batch_size", "4").run().stderr
    changes = ("--ttt.target", "both", "--ttt.half_life_frames", "20", "--lora.scaling", "1.5")
    told = launch("other", *start, *changes, "--train.context_frames", "9").run().stderr
    for said in (
        "`ttt.target` is both, and what was loaded was trained with own",
        "`ttt.half_life_frames` is 20.0, and what was loaded was trained with [10.0, 100.0]",
        "`lora.scaling` is 1.5, and what was loaded was trained with 2.0",
        "`train.context_frames` is 9, and what was loaded was trained with",
    ):
        assert told.count(said) == 1, told
    refused = launch("inner", *start, "--ttt.inner", "linear").run(status=2)
    assert "are `ttt.inner: delta` and those of this run linear" in refused.stderr.splitlines()[-1]
    assert not refused.stderr.count("Traceback") and not (first.run_dir.parent / "inner").exists()


def test_a_corrupt_file_to_start_from_is_one_line(launch: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "theirs" / "consolidated").mkdir(parents=True)
    (tmp_path / "theirs" / "consolidated" / "lora.safetensors").write_bytes(b"made up")
    refused = launch("run", "--checkpoint.init_state_dir", str(tmp_path / "theirs")).run(status=2)
    assert "lora.safetensors is corrupt or not a safetensors file" in refused.stderr.splitlines()[-1]
    assert "Traceback" not in refused.stderr


def test_a_checkpoint_can_be_asked_for(launch: Callable[..., Any]) -> None:
    run = launch("run", "--max_steps", "40", "--num_ckpt_keep", "null")
    asked: list[int] = []

    def ask_twice() -> bool:
        if len(run.records) >= 2 and not asked:
            asked.append(len(run.records))
            (run.run_dir / "SAVE").touch()
        return bool(asked) and bool(run.store.steps())

    status, _ = run.run_until(ask_twice, signal.SIGUSR1)
    assert status == 0
    steps = run.store.steps()
    assert len(steps) >= 2 and steps[-1] == 40 and asked[0] < steps[0] < 40
    assert not (run.run_dir / "SAVE").exists()


def test_looking_inside_the_layers_changes_nothing(launch: Callable[..., Any]) -> None:
    plain, watched = launch("plain", "--max_steps", "3"), launch("watched", "--max_steps", "3")
    plain.run()
    watched.run("--train.watch_freq", "2")
    assert watched.state_id(3) == plain.state_id(3)
    looks = [record.pop("memory", None) for record in watched.timeless]
    assert [look is not None for look in looks] == [True, False, True]
    for layer in looks[0].values():
        # A frame written is a frame known better, and the memory moved.
        assert layer["loss_after"] < layer["loss_before"] and layer["drift"] > 0
