"""The README typed from its top to its end, by somebody who has nothing but a fresh clone: `make test-readme`."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import time
import urllib.request
from pathlib import Path

import pytest
import soundfile

from tests.application.harness import ROOT

pytestmark = pytest.mark.slow

README = (ROOT / "README.md").read_text(encoding="utf-8")
COMMANDS = [
    line.split("   #")[0].strip()
    for block in re.findall(r"^```\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
    for line in block.replace("\\\n", " ").splitlines()
    if re.match(r"(make|python|torchrun|huggingface-cli|ttt-moshi) ", line)
]
# What a reader has in the place of a name that stands for something of their own.
STANDS_FOR = {
    "RECORDINGS": "runs/demo/material/train/data_stereo",
    "BENCHMARKS": "runs/demo/bench",
    "checkpoint_002000": "checkpoint_000100",
}
NEEDS_A_NETWORK = ("huggingface-cli", "torchrun", "ttt-moshi data annotate")


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("fresh") / "ttt-moshi"
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(folder)], check=True)
    return folder


def typed(clone: Path, line: str) -> subprocess.CompletedProcess:
    """What a command typed into `make shell` (or a make target) does."""
    env = {**os.environ, "SHELL": "/bin/sh", "HF_HUB_OFFLINE": "1"}
    if line.startswith("make "):
        return subprocess.run(line, shell=True, cwd=clone, env=env, capture_output=True, text=True, check=False)
    return subprocess.run(
        ["make", "--silent", "shell"],
        input=f"{line}\n",
        cwd=clone,
        env=env,
        capture_output=True,
        text=True,
        check=False,
    )


def own_things(clone: Path) -> None:
    """Two questions and a downloaded data set."""
    sound, rate = soundfile.read(clone / "runs/demo/talk/heard.wav")
    for name in ("me.wav", "more.wav"):
        soundfile.write(clone / name, sound[: 2 * rate], rate)
    shutil.copytree(clone / "runs/demo/material/train", clone / "data/dailytalk")
    (clone / "data/dailytalk/data.jsonl").rename(clone / "data/dailytalk/dailytalk.jsonl")


def test_every_command_works_in_its_order(clone: Path) -> None:
    assert COMMANDS[:2] == ["make demo", "make shell"] and len(COMMANDS) >= 18
    for line in COMMANDS:
        for name, own in STANDS_FOR.items():
            line = line.replace(name, own)
        if line == "make shell" or line.startswith(NEEDS_A_NETWORK):
            continue
        if "runs/first/checkpoints" in line and not (clone / "runs/first").exists():  # as if the training had ended
            shutil.copytree(clone / "runs/demo/killed", clone / "runs/first")
        if line.startswith("ttt-moshi serve"):
            serve(clone, line)
            continue
        done = typed(clone, line)
        if line.startswith("python train.py") and "--estimate" not in line:  # 7B is not here: one line says so
            assert done.returncode == 2 and "\nerror: " in f"\n{done.stderr}", f"{line}\n{done}"
            assert not (clone / "runs/first").exists()
        else:
            assert done.returncode == 0, f"{line}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
        assert "Traceback" not in done.stdout + done.stderr
        if line == "make demo":
            assert (clone / "runs/demo/index.html").stat().st_size > 100_000
            own_things(clone)
            assert "runs/demo" not in git(clone)  # nothing that the demo makes is taken for a change of the program


def git(clone: Path) -> str:
    return subprocess.run(["git", "status", "--short"], cwd=clone, capture_output=True, text=True, check=True).stdout


def serve(clone: Path, line: str) -> None:
    """The page is there, and Ctrl-C ends it."""
    words = ["make", "--silent", "shell"]
    env = {**os.environ, "SHELL": "/bin/sh"}
    server = subprocess.Popen(words, cwd=clone, env=env, stdin=subprocess.PIPE, text=True, start_new_session=True)
    assert server.stdin is not None
    server.stdin.write(f"exec {line}\n")
    server.stdin.close()
    try:
        deadline = time.monotonic() + 120
        while True:
            try:
                with urllib.request.urlopen("http://localhost:8998", timeout=5) as answer:
                    assert answer.status == 200 and b"<title>" in answer.read()
                break
            except OSError:
                assert time.monotonic() < deadline and server.poll() is None, "no page at http://localhost:8998"
                time.sleep(1)
    finally:
        os.killpg(server.pid, signal.SIGINT)
        server.wait(timeout=60)
