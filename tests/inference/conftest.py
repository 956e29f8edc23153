"""A tiny Moshi with codec and tokenizer, whose TTT layers matter, and a checkpoint of it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from ttt_moshi.config import DataArgs, LoraArgs, ModelPaths, TrainArgs, TTTArgs
from ttt_moshi.inference import Speaker
from ttt_moshi.moshi import build_model, resolve_model
from ttt_moshi.synthetic import make_tiny_material
from ttt_moshi.training import run

TTT = TTTArgs(enable=True, layers="all", mini_batch_size=4)


@pytest.fixture(scope="session")
def material(tmp_path_factory):
    return make_tiny_material(tmp_path_factory.mktemp("talking") / "material")


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
