"""The rehearsal of the 7B configuration, on a geometry that fits anywhere."""

from __future__ import annotations

import io
import json

import pytest
import torch
from rich.console import Console
from safetensors import safe_open

from benchmarks.moshi import rehearse
from ttt_moshi.config import LoraArgs, ModelPaths, TTTArgs
from ttt_moshi.data.tokenizer import check_tokenizer
from ttt_moshi.errors import UserError
from ttt_moshi.moshi import build_model, resolve_model
from ttt_moshi.moshi.loading import empty_model, geometry
from ttt_moshi.moshi.paths import audio_codec, text_tokenizer


@pytest.fixture(scope="module")
def config(tiny_material):
    """Two layers like those of Moshi 7B, a hundredth as wide."""
    values = json.loads((tiny_material.base_model / "config.json").read_text())
    return geometry({key: value for key, value in values.items() if not key.endswith("_name") and key != "model_type"})


def tiny_codec(material):
    return audio_codec(resolve_model(ModelPaths(hf_repo_id=str(material.base_model))), "cpu")


@pytest.mark.parametrize("vocabularies", [{}, {"text_card": 32_000, "card": 2048}])
def test_a_base_model_written_tensor_by_tensor_is_one_that_loads(tiny_material, tmp_path, config, vocabularies):
    """And one that trains and talks, with as many tokens as Moshi 7B."""
    config = {**config, **vocabularies}
    tensors = empty_model(config, torch.bfloat16).state_dict()
    base = rehearse.write_random_base(tmp_path / "base", config, tensors, tiny_material)
    info = resolve_model(ModelPaths(hf_repo_id=str(base)))
    with safe_open(info.moshi_weights, framework="pt") as file:
        assert set(file.keys()) == set(tensors)
        assert all(file.get_slice(name).get_shape() == list(t.shape) for name, t in tensors.items())
    model = build_model(info, TTTArgs(enable=True, layers="1"), LoraArgs())
    logits = model(torch.zeros(1, 17, 4, dtype=torch.long)).text_logits
    assert logits.isfinite().all() and logits.std() > 0.1 and logits.shape[-1] == config["text_card"]
    check_tokenizer(text_tokenizer(info), config["text_card"])
    codec, small = audio_codec(info, "cpu"), tiny_codec(tiny_material)
    sound = 0.1 * torch.randn(1, 1, 24_000, generator=torch.Generator().manual_seed(0))
    assert torch.equal(codec.encode(sound), small.encode(sound))  # what was added is chosen for no sound
    every = torch.arange(config["card"]).expand(1, codec.num_codebooks, -1)
    assert bool(codec.decode(every[..., -20:]).isfinite().all())


def test_7b_is_refused_without_the_memory_or_the_disk(tmp_path, monkeypatch):
    console = Console(file=io.StringIO())
    monkeypatch.setattr(rehearse, "available_memory", lambda: 16e9)
    with pytest.raises(UserError, match=r"needs 2\d\.\d GB of free memory and 16\.0 GB are free"):
        rehearse.rehearse(tmp_path, geometry(None), 1, console)
    monkeypatch.setattr(rehearse, "available_memory", lambda: 64e9)
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 9e9})())
    with pytest.raises(UserError, match=r"needs 2\d\.\d GB of disk and .* has 9\.0 GB free"):
        rehearse.rehearse(tmp_path, geometry(None), 1, console)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_the_whole_rehearsal(tmp_path, config):
    found = rehearse.rehearse(tmp_path, {**config, "text_card": 32_000, "card": 2048}, 1, Console(file=io.StringIO()))
    assert len(found.step_seconds) == rehearse.STEPS and min(found.step_seconds) > 0
    assert found.frame_seconds > 0 and found.checkpoint_bytes > 10_000 and found.peak_bytes > 1e8
    assert "resuming at step" in (tmp_path / "resume.log").read_text()
