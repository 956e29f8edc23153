"""Memory that runs out and processes that die: one line that says so and how to go on."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.processes import ENV

SHORT = ("--duration_sec", "0.8", "--batch_size", "1", "--ckpt_freq", "2", "--num_ckpt_keep", "null")


def children(pid: int) -> list[int]:
    return [
        int(path.parent.name)
        for path in Path("/proc").glob("[0-9]*/stat")
        if path.read_text().rpartition(")")[2].split()[1] == str(pid)
    ]


def test_a_process_that_dies_ends_the_others_with_a_line_and_nothing_is_lost(launch: Callable[..., Any]) -> None:
    run = launch("run", *SHORT, "--max_steps", "400")
    process = run.start(ranks=2)
    while not run.store.steps():
        assert process.poll() is None, process.stderr
    os.kill(children(process.pid)[1], signal.SIGKILL)
    assert process.wait(120) == 1
    assert "Traceback" not in process.stderr, process.stderr
    assert re.search(r"another process of the run ended .* Step \d+ can be resumed", process.stderr), process.stderr
    assert "Continue with:" in process.stderr
    last = run.store.steps()[-1]
    done = run.run("--checkpoint.resume", "true", "--max_steps", str(last + 1), ranks=2)
    assert f"resuming at step {last}" in done.stderr
    assert "[Gloo]" not in done.stdout + done.stderr


@pytest.mark.parametrize(("step", "status"), [(0, 2), (3, 1)])
def test_memory_that_runs_out_is_said_in_a_line(
    launch: Callable[..., Any], tmp_path: Path, step: int, status: int
) -> None:
    """The device has nothing left when the model is built, or in the third step."""
    (tmp_path / "sitecustomize.py").write_text(
        "import torch\n"
        f"calls, real = [0], torch.Tensor.{'backward' if step else 'to'}\n"
        "def full(*args, **options):\n"
        "    calls[0] += 1\n"
        f"    if calls[0] >= {max(step, 1)}:\n"
        "        raise torch.OutOfMemoryError('CUDA out of memory. Tried to allocate 2.00 GiB')\n"
        "    return real(*args, **options)\n"
        f"torch.Tensor.{'backward' if step else 'to'} = full\n"
    )
    run = launch("run", *SHORT, "--max_steps", "4")
    process = run.run(status=status, PYTHONPATH=f"{tmp_path}:{ENV['PYTHONPATH']}")
    assert "Traceback" not in process.stderr
    assert "out of memory (CUDA out of memory. Tried to allocate 2.00 GiB): lower batch_size" in process.stderr
    if step:
        assert "Step 2 can be resumed" in process.stderr and run.store.steps() == [2]
        run.run("--checkpoint.resume", "true")
        assert run.store.steps() == [2, 4]
    else:
        assert not run.run_dir.exists()
