"""The contract of `train.py` as a person, a scheduler or a fault meets it: real processes, looked at from outside."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.processes import ENV, TORCHRUN

AUTO = ("--checkpoint.resume", "auto")
SHORT = ("--duration_sec", "0.8", "--batch_size", "1")


def end(process: Any, status: int) -> str:
    assert process.wait() == status, process.stderr[-3000:]
    assert "Traceback" not in process.stderr
    return process.stderr


def wait_for(process: Any, reached: Callable[[], bool]) -> None:
    while not reached():
        assert process.poll() is None, process.stderr[-3000:]
        time.sleep(0.01)


class Cold(subprocess.Popen):
    """A whole new Python, for what happens while it starts; its errors are a text at the end."""

    def __init__(self, words: list[str], **more: Any) -> None:
        super().__init__([sys.executable, *words], stderr=subprocess.PIPE, text=True, **{"env": ENV, **more})

    def wait(self, timeout: float | None = 900) -> int:
        """Its exit status; from then on `stderr` is what it wrote there."""
        if not isinstance(self.stderr, str):
            self.stderr = self.communicate(timeout=timeout)[1]
        return self.returncode


def catches(pid: int, number: signal.Signals) -> bool:
    """Whether a process has a handler for a signal."""
    status = Path(f"/proc/{pid}/status").read_text()
    caught = int(status.split("SigCgt:")[1].split()[0], 16)
    # Ours come together, SIGUSR1 last; Python has one of its own for SIGINT from the start.
    return all(caught >> (one - 1) & 1 for one in (number, signal.SIGUSR1))


def maps(pid: int, file: str) -> bool:
    """Whether a process has a file of this name in its memory, as it has one after the other while it starts."""
    return file in Path(f"/proc/{pid}/maps").read_text()


def content(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_one_command_line_starts_continues_and_ends(launch: Callable[..., Any]) -> None:
    run = launch("run", *SHORT, *AUTO, "--max_steps", "40", "--ckpt_freq", "5")
    process = run.start()
    wait_for(process, lambda: bool(run.store.steps()))
    # A second process on the folder is refused, whatever it asks for; the first is held meanwhile, so that it lasts.
    process.send_signal(signal.SIGSTOP)
    for more in ((), ("--overwrite_run_dir", "true", "--checkpoint.resume", "false")):
        refused = run.run(*more, status=2).stderr
        assert "is being written by process" in refused and "Traceback" not in refused
    process.send_signal(signal.SIGTERM)
    process.send_signal(signal.SIGCONT)
    stderr = end(process, 128 + signal.SIGTERM)
    step = run.records[-1]["step"]
    assert run.store.newest_valid() == step < 40
    assert f"stopped by SIGTERM after step {step} of 40. Continue with:" in stderr
    assert f"resuming at step {step}" in run.run().stderr
    assert [record["step"] for record in run.records] == list(range(1, 41))
    saved = [save for record in run.records for save in record["timing"].get("saves", [])]
    assert {save["step"] for save in saved} >= {5, 10, 15} and all(save["durable_seconds"] > 0 for save in saved)
    again = run.run().stderr
    assert "is the last: nothing to train" in again


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
@pytest.mark.parametrize("phase", ["handlers", "libtorch_cpu", "sentencepiece"])
@pytest.mark.slow
def test_a_stop_while_starting_ends_at_once_and_claims_nothing(
    launch: Callable[..., Any], number: signal.Signals, phase: str
) -> None:
    run = launch("run", *SHORT, *AUTO, "--max_steps", "2")
    process = Cold(run.command())
    wait_for(process, lambda: catches(process.pid, number) and (phase == "handlers" or maps(process.pid, phase)))
    process.send_signal(number)
    assert f"stopped by {number.name} before the first step" in end(process, 128 + number)
    assert not run.run_dir.exists()


@pytest.mark.slow
def test_sigusr1_while_starting_is_a_checkpoint_after_the_first_step(launch: Callable[..., Any]) -> None:
    run = launch("run", *SHORT, "--max_steps", "3", "--num_ckpt_keep", "null")
    process = Cold(run.command())
    wait_for(process, lambda: catches(process.pid, signal.SIGUSR1))
    process.send_signal(signal.SIGUSR1)
    end(process, 0)
    assert run.store.steps() == [1, 3]


@pytest.mark.slow
def test_sighup_saves_like_sigterm_and_nohup_ignores_it(launch: Callable[..., Any]) -> None:
    for name, before, status in (("hung_up", None, 129), ("nohup", lambda: signal.signal(1, signal.SIG_IGN), 0)):
        run = launch(name, *SHORT, "--max_steps", "8")
        process = Cold(run.command(), preexec_fn=before)
        wait_for(process, lambda run=run: len(run.records) >= 2)
        process.send_signal(signal.SIGHUP)
        end(process, status)
        assert run.store.newest_valid() == run.records[-1]["step"]


def test_a_failed_evaluation_costs_nothing_that_was_trained(launch: Callable[..., Any], tmp_path: Path) -> None:
    material = launch("x").material
    shutil.copytree(material.eval_data.parent, tmp_path / "eval")
    listing = tmp_path / "eval" / material.eval_data.name
    evaluated = (
        "--do_eval",
        "true",
        "--data.eval_data",
        str(listing),
        "--data.code_cache_dir",
        str(tmp_path / "codes"),
    )
    run = launch("run", *SHORT, "--max_steps", "4", *evaluated)
    process = run.start()
    wait_for(process, lambda: bool(run.records))
    for recording in (tmp_path / "eval").rglob("*.wav"):
        recording.unlink()
    assert "THE EVALUATION AFTER STEP 4 FAILED" in end(process, 0)
    assert run.store.newest_valid() == 4
    # Now it is known before the first step.
    refused = launch("other", *SHORT, *evaluated).run(status=2).stderr
    assert "no sound file" in refused or "no audio file" in refused
    assert not launch("other").run_dir.exists()


@pytest.mark.slow
def test_a_failed_evaluation_stops_the_run_where_that_is_asked(launch: Callable[..., Any], tmp_path: Path) -> None:
    material = launch("x").material
    shutil.copytree(material.eval_data.parent, tmp_path / "eval")
    listing = tmp_path / "eval" / material.eval_data.name
    run = launch(
        "run", *SHORT, "--max_steps", "20", "--eval_freq", "4", "--do_eval", "true", "--data.eval_data", str(listing),
        "--data.code_cache_dir", str(tmp_path / "codes"), "--stop_on_failed_evaluation", "true",
    )  # fmt: skip
    process = run.start()
    wait_for(process, lambda: bool(run.records))
    for recording in (tmp_path / "eval").rglob("*.wav"):
        recording.unlink()
    stderr = end(process, 1)
    assert "the evaluation after step 4 failed" in stderr and "Step 4 can be resumed" in stderr
    assert run.store.newest_valid() == 4


@pytest.mark.slow
def test_a_stop_does_not_wait_for_an_evaluation_which_is_made_up_for(launch: Callable[..., Any]) -> None:
    material = launch("x").material
    options = (*SHORT, *AUTO, "--max_steps", "3", "--eval_freq", "2", "--do_eval", "true")
    options += ("--data.eval_data", str(material.eval_data))
    slow_down(launch("x").run_dir.parent, "ttt_moshi.evaluation.tasks.perplexity", "score", 1.0)
    whole, run = launch("whole", *options), launch("run", *options)
    whole.run()
    process = Cold(run.command(), env={**ENV, "PYTHONPATH": f"{launch('x').run_dir.parent}:{ENV['PYTHONPATH']}"})
    wait_for(process, lambda: len(run.records) == 2)
    time.sleep(1.5)
    process.send_signal(signal.SIGTERM)
    stderr = end(process, 128 + signal.SIGTERM)
    assert "the evaluation after step 2 was stopped by SIGTERM" in stderr
    assert run.store.newest_valid() == 2
    run.run()
    lines = [(r.run_dir / "metrics.eval.jsonl").read_text() for r in (whole, run)]
    assert lines[0] == lines[1] and [json.loads(line)["step"] for line in lines[0].splitlines()] == [2, 3]
    assert run.state_id(3) == whole.state_id(3)


def slow_down(folder: Path, module: str, function: str, seconds: float) -> None:
    """A `sitecustomize` that lets a function of the program take longer, for processes that have it on their path."""
    (folder / "sitecustomize.py").write_text(
        "import importlib.abc, importlib.util, sys, time\n"
        "class Slow(importlib.abc.MetaPathFinder):\n"
        "    def find_spec(self, name, path, target=None):\n"
        f"        if name != {module!r}: return None\n"
        "        sys.meta_path.remove(self)\n"
        "        spec = importlib.util.find_spec(name)\n"
        "        load = spec.loader.exec_module\n"
        "        def exec_module(m):\n"
        "            load(m)\n"
        f"            real = getattr(m, {function!r})\n"
        f"            setattr(m, {function!r}, lambda *a, **k: (time.sleep({seconds}), real(*a, **k))[1])\n"
        "        spec.loader.exec_module = exec_module\n"
        "        return spec\n"
        "sys.meta_path.insert(0, Slow())\n"
    )


@pytest.mark.slow
def test_content_decides_and_not_where_files_lie(launch: Callable[..., Any], tmp_path: Path) -> None:
    material = launch("x").material
    shutil.copytree(material.train_data.parent, tmp_path / "moved")
    shutil.copytree(material.base_model, tmp_path / "base")
    moved = ("--data.train_data", str(tmp_path / "moved" / material.train_data.name))
    moved += ("--moshi_paths.hf_repo_id", str(tmp_path / "base"))
    whole, run = launch("whole", *SHORT, "--max_steps", "4"), launch("run", *SHORT)
    whole.run()
    run.run("--max_steps", "2")
    run.run("--max_steps", "2", *moved, *AUTO)
    before = content(run.run_dir)
    # A letter changed in one transcript of the copy: the same size, another run.
    transcript = next(path for path in sorted((tmp_path / "moved").rglob("*.json")) if "alignments" in path.read_text())
    text = transcript.read_text()
    at = text.index('["') + 2
    transcript.write_text(text[:at] + ("x" if text[at] != "x" else "y") + text[at + 1 :])
    error = run.run("--max_steps", "4", *moved, *AUTO, status=2).stderr
    assert "content of the training data" in error and "--checkpoint.accept_changes '[data]'" in error
    changed = {name for name, data in content(run.run_dir).items() if before.get(name) != data}
    assert changed <= {"checkpoints/LOCK"}
    run.run("--max_steps", "4", *moved, *AUTO, "--checkpoint.accept_changes", "[data]")
    assert '"accepted changes"' in (run.run_dir / "checkpoints" / "journal.jsonl").read_text()
    # The base model changed in place.
    weights = tmp_path / "base" / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-3] ^= 1
    weights.write_bytes(data)
    error = run.run("--max_steps", "6", *moved, *AUTO, status=2).stderr
    assert "base model weights was" in error and "--checkpoint.init_state_dir" in error


@pytest.mark.slow
def test_overwriting_deletes_nothing_before_the_new_run_can_start(launch: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "target").mkdir()
    (tmp_path / "run").symlink_to(tmp_path / "target")
    run = launch("run", *SHORT, "--max_steps", "2")
    run.run()
    before = content(tmp_path / "target")
    for more in (["--ttt.layers", "77"], ["--data.train_data", "nowhere"], ["--ttt.enable", "false"]):
        run.run("--overwrite_run_dir", "true", *more, status=2)
        after = content(tmp_path / "target")
        assert {name for name, data in after.items() if before.get(name) != data} <= {"checkpoints/LOCK"}
        assert set(after) == set(before)
    run.run("--overwrite_run_dir", "true", "--seed", "5", "--max_steps", "3")
    assert (tmp_path / "run").is_symlink() and run.store.steps() == [3]
    assert "seed: 5" in (tmp_path / "target" / "args.yaml").read_text()
    assert [record["step"] for record in run.records] == [1, 2, 3]


@pytest.mark.slow
@pytest.mark.parametrize(("tolerated", "status"), [(0, 1), (1, 1), (2, 0)])
def test_failed_saves_are_loud_and_tolerated_as_often_as_asked(
    launch: Callable[..., Any], tmp_path: Path, tolerated: int, status: int
) -> None:
    # The second and third save find the disk full, whatever the program asks the system for.
    (tmp_path / "sitecustomize.py").write_text(
        "import errno, os\nreal, saves = os.posix_fallocate, []\n"
        "def fallocate(fd, offset, size):\n"
        "    path = os.readlink(f'/proc/self/fd/{fd}')\n"
        "    if 'shard_' in path:\n"
        "        saves.append(path)\n"
        "        if len(saves) in (2, 3):\n"
        "            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))\n"
        "    return real(fd, offset, size)\n"
        "os.posix_fallocate = fallocate\n"
    )
    run = launch("run", *SHORT, "--max_steps", "10", "--ckpt_freq", "2", "--num_ckpt_keep", "null")
    process = run.start(
        "--checkpoint.tolerate_failed_saves", str(tolerated), PYTHONPATH=f"{tmp_path}:{ENV['PYTHONPATH']}"
    )
    stderr = end(process, status)
    assert stderr.count("WAS NOT SAVED") == tolerated
    assert run.store.steps() == ([2, 8, 10] if status == 0 else [2])
    if status:
        assert "No space left" in stderr and "Step 2 can be resumed" in stderr and "Continue with:" in stderr
        run.run(*AUTO)
    assert [record["step"] for record in run.records] == list(range(1, 11))


@pytest.mark.slow
def test_a_recording_that_vanishes_ends_the_run_after_saving(launch: Callable[..., Any], tmp_path: Path) -> None:
    material = launch("x").material
    shutil.copytree(material.train_data.parent, tmp_path / "data")
    options = ("--data.train_data", str(tmp_path / "data" / material.train_data.name), "--data.shuffle", "false")
    run = launch("run", *SHORT, "--max_steps", "300", *options)
    process = run.start()
    wait_for(process, lambda: len(run.records) >= 2)
    aside = tmp_path / "aside"
    (tmp_path / "data").rename(aside)
    stderr = end(process, 1)
    step = run.records[-1]["step"]
    assert run.store.newest_valid() == step < 300 and f"Step {step} can be resumed" in stderr
    aside.rename(tmp_path / "data")
    run.run("--max_steps", str(step + 1), *AUTO)


@pytest.mark.slow
def test_processes_with_different_folders_are_told(launch: Callable[..., Any], tmp_path: Path) -> None:
    script = tmp_path / "each.sh"
    run = launch("run", *SHORT, "--max_steps", "1")
    words = run.command()
    command = [sys.executable, *TORCHRUN, "2", "--no-python", str(script)]
    script.write_text(
        f"#!/bin/sh\nexec {sys.executable} " + " ".join(words).replace(str(run.run_dir), f"{run.run_dir}$RANK")
    )
    script.chmod(0o755)
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=600)
    assert done.returncode != 0
    assert f"leads to {run.run_dir}0 for process 0 and to {run.run_dir}1 for process 1" in done.stderr
    assert not list(tmp_path.glob("run*"))


@pytest.mark.slow
def test_torchrun_restarts_what_was_killed_with_the_same_command(launch: Callable[..., Any]) -> None:
    run = launch("run", *SHORT, *AUTO, "--max_steps", "12", "--ckpt_freq", "2")
    words = run.command(ranks=2)
    words.insert(words.index("--standalone"), "--max-restarts=2")
    process = Cold(words)
    wait_for(process, lambda: bool(run.store.steps()))
    worker = next(
        path.parent.name
        for path in Path("/proc").glob("[0-9]*/stat")
        if path.read_text().split()[3] == str(process.pid)
    )
    os.kill(int(worker), signal.SIGKILL)
    status = process.wait()
    stderr = process.stderr
    assert status == 0, stderr[-3000:]
    assert "resuming at step" in stderr
    assert [record["step"] for record in run.records] == list(range(1, 13)) and run.store.newest_valid() == 12


@pytest.mark.slow
def test_carried_recordings_begin_anew_where_another_order_is_accepted(launch: Callable[..., Any]) -> None:
    stateful = (*SHORT, "--train.stateful", "true", "--train.context_frames", "16")
    run = launch("run", *stateful)
    run.run("--max_steps", "3")
    refused = run.run(*AUTO, "--max_steps", "5", "--batch_size", "2", status=2).stderr
    assert "--checkpoint.accept_changes '[batch]'" in refused
    done = run.run(*AUTO, "--max_steps", "5", "--batch_size", "2", "--checkpoint.accept_changes", "[batch]")
    assert "the recordings begin anew" in done.stderr
    fresh = launch("fresh", *stateful, "--batch_size", "2", "--max_steps", "2")
    fresh.run()
    heard = [[record["sample_ids"] for record in one.records] for one in (run, fresh)]
    assert heard[0][3:] == heard[1]
