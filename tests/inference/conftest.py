"""A tiny Moshi with codec and tokenizer, whose TTT layers matter, and a checkpoint of it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from ttt_moshi.config import DataArgs, LoraArgs, ModelPaths, TrainArgs, TTTArgs
from ttt_moshi.inference import Speaker
from ttt_moshi.moshi import build_model, resolve_model
from ttt_moshi.training import run

TTT = TTTArgs(enable=True, layers="all", mini_batch_size=4)


@pytest.fixture(scope="session")
def material(tiny_material):
    return tiny_material


@pytest.fixture(scope="session")
def make_speaker(material):
    """Builds a speaker; `ttt=False` makes one without TTT layers."""

    def make(ttt: bool = True, state_id: str = "a" * 64) -> Speaker:
        info = resolve_model(ModelPaths(hf_repo_id=str(material.base_model)))
        args = TTT if ttt else TTTArgs(enable=False)
        model = build_model(info, args, LoraArgs(enable=False), dtype=torch.float32).eval()
        generator = torch.Generator().manual_seed(5)
        with torch.no_grad():
            # The tiny model has learned little more than silence: shaken, it says something else in every frame.
            for name, parameter in model.named_parameters():
                if ".ttt." not in name:
                    noise = torch.randn(parameter.shape, generator=generator)
                    parameter.add_(2.0 * float(parameter.std(correction=0)) * noise)
            for layer in model.layers:
                if layer.ttt is not None:
                    layer.ttt.wo.weight.normal_(std=0.3, generator=generator)
        mimi, tokenizer = info.get_mimi("cpu"), info.get_text_tokenizer()
        return Speaker(state_id, model, mimi, tokenizer, info.model_type, info.lm_gen_config)

    return make


@pytest.fixture
def speaker(make_speaker) -> Speaker:
    return make_speaker()


@pytest.fixture(scope="session")
def trained(material, tmp_path_factory) -> Path:
    """A run of two steps."""
    run_dir = tmp_path_factory.mktemp("talking") / "run"
    args = TrainArgs(
        run_dir=str(run_dir),
        data=DataArgs(train_data=str(material.train_data)),
        moshi_paths=ModelPaths(hf_repo_id=str(material.base_model)),
        duration_sec=4.0,
        batch_size=2,
        max_steps=2,
        param_dtype="float32",
        ttt=TTT,
        lora=LoraArgs(enable=False),
    )
    run(args)
    return run_dir


@pytest.fixture(scope="session")
def recording(material) -> Path:
    """A dialogue: Moshi left, the user right."""
    return sorted(material.eval_data.parent.rglob("*.wav"))[0]


class Server:
    """A server of its own process, with a port of its own."""

    def __init__(self, trained, folder, *options: str) -> None:
        script = "import sys; from ttt_moshi.cli.main import main; sys.exit(main(sys.argv[1:]))"
        command = [sys.executable, "-c", script, "serve", "--checkpoint_dir", str(trained), "--no_ttt_verify"]
        command += ["--host", "127.0.0.1", *([] if "--port" in options else ["--port", "0"]), *options]
        self.process = subprocess.Popen(
            command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
        )  # fmt: skip
        self.lines: list[str] = []
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(line)
            if found := re.search(r"listening on http://127.0.0.1:(\d+)", line):
                self.port = int(found[1])
                self.url = f"ws://127.0.0.1:{self.port}/api/chat?events=1&format=pcm"
                return
        raise AssertionError("".join(self.lines))

    def stop(self, number: int) -> tuple[int, float]:
        """Exit status, and how long it took."""
        began = time.monotonic()
        self.process.send_signal(number)
        assert self.process.stdout is not None
        self.lines += self.process.stdout.readlines()
        return self.process.wait(120), time.monotonic() - began


@pytest.fixture
def serve(trained, tmp_path):
    """Starts servers, and ends those that are left."""
    servers: list[Server] = []

    def start(*options: str) -> Server:
        servers.append(Server(trained, tmp_path, *options))
        return servers[-1]

    yield start
    for server in servers:
        if server.process.poll() is None:
            server.process.kill()
        server.process.wait()
