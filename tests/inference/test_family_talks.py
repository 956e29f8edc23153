"""Other kinds of the family hear the user and answer."""

from __future__ import annotations

import json
import re
import shutil

import pytest
import torch
from moshi.models.loaders import get_conditioner_provider
from safetensors.torch import load_file, save_file

from ttt_moshi.config import ModelPaths
from ttt_moshi.inference import Conversation, Sampling
from ttt_moshi.inference.speaker import open_base

LUT = {"type": "lut", "lut": {"n_bins": 5, "dim": 8, "tokenizer": "noop", "possible_values": ["very_good", "very_bad"]}}
LOUD = Sampling(temp=2.0, temp_text=2.0)


@pytest.fixture
def repository(material, tmp_path):
    """A copy of the tiny base model to change: its folder, configuration and tensors."""
    folder = shutil.copytree(material.base_model, tmp_path / "model")
    return folder, json.loads((folder / "config.json").read_text()), load_file(folder / "model.safetensors")


def write(folder, config, tensors) -> None:
    (folder / "config.json").write_text(json.dumps(config))
    save_file({name: tensor.contiguous().clone() for name, tensor in tensors.items()}, folder / "model.safetensors")


def talk(folder, seed: int = 0, loudness: float = 0.1) -> torch.Tensor:
    speaker = open_base(ModelPaths(hf_repo_id=str(folder)), "cpu", torch.float32)
    heard = loudness * torch.randn(10, 1920, generator=torch.Generator().manual_seed(seed))
    with Conversation(speaker, LOUD) as conversation:
        return torch.stack([conversation.hear(frame).tokens for frame in heard])


def test_personaplex_hears_the_user_and_says_what_its_half_says(material, repository):
    """Every depth step is there twice; as Moshi it is the base model."""
    folder, config, tensors = repository
    dep_q = config["dep_q"]
    for name in list(tensors):
        step = re.search(r"(linears|depformer_in|gating|in_projs|out_projs|depformer_emb)\.(\d+)\.", name)
        if step is not None and (name.startswith(("linears", "depformer"))):
            other = name.replace(step[0], f"{step[1]}.{int(step[2]) + dep_q}.", 1)
            tensors[other] = torch.randn_like(tensors[name])
    last = f"depformer_emb.{dep_q - 1}.weight"
    tensors[last] = torch.randn_like(tensors["depformer_emb.0.weight"])
    write(folder, {**config, "dep_q": 2 * dep_q, "model_type": "personaplex"}, tensors)
    assert torch.equal(talk(folder), talk(material.base_model))
    assert not torch.equal(talk(folder), talk(folder, seed=1)), "it hears nobody"


def test_hibiki_speaks_under_its_condition(material, repository):
    folder, config, tensors = repository
    conditioners = {"conditioners": {"description": LUT}}
    torch.manual_seed(0)
    provider = get_conditioner_provider(config["dim"], "cpu", json.loads(json.dumps(conditioners)))
    weights = {f"condition_provider.{name}": torch.randn_like(t) for name, t in provider.state_dict().items()}
    fuser = {"sum": ["description"], "cross": [], "prepend": []}
    write(folder, {**config, **conditioners, "fuser": fuser, "model_type": "hibiki"}, {**tensors, **weights})
    said = talk(folder)
    assert not torch.equal(said, talk(folder, seed=1))
    assert not torch.equal(said, talk(material.base_model)), "the condition does nothing"
