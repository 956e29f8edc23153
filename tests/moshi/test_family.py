"""A tiny model of each kind of the family, in its repository's layout, beside the official loader."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
import torch
from moshi.conditioners import ConditionAttributes
from moshi.models.loaders import get_moshi_lm
from safetensors.torch import load_file, save_file

from ttt_moshi.config import LoraArgs, ModelPaths, TTTArgs
from ttt_moshi.moshi import MoshiError, build_model, first_silence, resolve_model, writing_delay
from ttt_moshi.moshi import supported as supported_module
from ttt_moshi.moshi.loading import own_depth_steps

LUT = {"type": "lut", "lut": {"n_bins": 5, "dim": 8, "tokenizer": "noop", "possible_values": ["very_good", "very_bad"]}}
KINDS = {
    "Moshiko, Moshika, J-Moshi": {},
    "Hibiki": {
        "model_type": "hibiki",
        "conditioners": {"description": LUT},
        "fuser": {"sum": ["description"], "cross": [], "prepend": []},
        "delays": [0, 0, 2, 2, 0, 2, 2],
    },
    "Hibiki Zero": {"model_type": "hibiki", "kv_repeat": 2, "num_heads": 4},
    "J-Moshi-ext": {"dep_q": 6},
    "PersonaPlex": {"dep_q": 6, "model_type": "personaplex"},
}

STT = {
    "model_type": "stt", "dep_q": 0, "delays": [0] * 7, "conditioners": {}, "extra_heads_num_heads": 4,
    "extra_heads_dim": 6, "stt_config": {"audio_delay_seconds": 0.5, "audio_silence_prefix_seconds": 1.0},
}  # fmt: skip
"""as the published ones are configured"""


def tiny(folder: Path, base_folder: Path, kind: str) -> dict:
    """Writes a repository of that kind; returns its configuration for the official loader."""
    folder.mkdir()
    config = {**json.loads((base_folder / "config.json").read_text()), **copy.deepcopy({**KINDS, "STT": STT}[kind])}
    official = {key: value for key, value in config.items() if key not in supported_module.REPOSITORY_KEYS}
    torch.manual_seed(3)
    model = get_moshi_lm(None, copy.deepcopy(official), dtype=torch.float32)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    save_file(model.state_dict(), folder / "model.safetensors")
    for name in ("mimi.safetensors", "tokenizer.model"):
        (folder / name).write_bytes(b"not looked at")
    (folder / "config.json").write_text(json.dumps(config))
    return official


@pytest.mark.parametrize("kind", KINDS)
def test_logits_are_those_of_the_official_loader(tmp_path, base_folder, make_codes, kind):
    """Bit for bit; of models that predict the user's audio too, Moshi's half, to rounding."""
    config = tiny(tmp_path / "model", base_folder, kind)
    official = get_moshi_lm(tmp_path / "model" / "model.safetensors", config, dtype=torch.float32)
    if kind.startswith("Hibiki"):  # as the official loader does: an early end of sequence is padding
        official.text_emb.weight.data[2] = official.text_emb.weight.data[3]
    info = resolve_model(ModelPaths(hf_repo_id=str(tmp_path / "model")))
    model = build_model(info, TTTArgs(enable=True, layers="1"), LoraArgs(), dtype=torch.float32).eval()
    codes = make_codes(T=14)
    conditions = None
    if official.condition_provider is not None:
        attributes = [ConditionAttributes(text={"description": "very_good"}, tensor={})] * len(codes)
        conditions = official.condition_provider.prepare_and_provide(attributes)
    with torch.no_grad():
        expected, found = official(codes, conditions), model(codes)
    assert torch.equal(found.text_logits[found.text_mask], expected.text_logits[expected.text_mask])
    assert model.dep_q == 3 and bool(found.mask.any())
    own = expected.logits[:, :3][expected.mask[:, :3]]
    if official.dep_q == 3:
        assert torch.equal(found.logits[found.mask], own)
    torch.testing.assert_close(found.logits[found.mask], own, rtol=1e-5, atol=1e-5)


def test_logits_of_speech_to_text_are_those_of_the_official_loader(tmp_path, base_folder, make_codes):
    """Bit for bit; the official class has no forward pass over clips for it, but the temporal one."""
    config = tiny(tmp_path / "model", base_folder, "STT")
    official = get_moshi_lm(tmp_path / "model" / "model.safetensors", config, dtype=torch.float32)
    info = resolve_model(ModelPaths(hf_repo_id=str(tmp_path / "model")))
    model = build_model(info, TTTArgs(enable=True, layers="1"), LoraArgs(), dtype=torch.float32).eval()
    codes = make_codes(T=14)
    before = torch.cat([official._get_initial_token().expand(len(codes), -1, -1), codes[:, :, :-1]], dim=2)
    with torch.no_grad():
        expected, found = official.forward_text(before)[1], model(codes)
    assert torch.equal(found.text_logits, expected) and bool(found.text_mask.any())
    assert found.logits.shape == (len(codes), 0, 14, model.card)
    assert (writing_delay(info.raw_config), first_silence(info.raw_config)) == (6, 12)


@pytest.mark.parametrize("joined", [False, True])
def test_the_user_s_depth_steps_are_left_out(tmp_path, base_folder, joined):
    """In files that keep every step's projections apart, and in older ones that keep them in one tensor."""
    tiny(tmp_path / "model", base_folder, "PersonaPlex")
    tensors = load_file(tmp_path / "model" / "model.safetensors")
    if joined:
        for projection, name in (("in_projs", "in_proj_weight"), ("out_projs", "out_proj.weight")):
            for layer in range(2):
                place = f"depformer.layers.{layer}.self_attn"
                steps = [tensors.pop(f"{place}.{projection}.{step}.weight") for step in range(6)]
                tensors[f"{place}.{name}"] = torch.cat(steps)
        save_file(tensors, tmp_path / "model" / "model.safetensors")
    own = own_depth_steps(tensors, 3, 6)
    dropped = {name.split(".")[0] for name in tensors.keys() - own.keys()}
    assert dropped == {"linears", "depformer_in", "depformer_emb", "depformer"}
    info = resolve_model(ModelPaths(hf_repo_id=str(tmp_path / "model")))
    assert info.lm_config["dep_q"] == info.raw_config["dep_q"] == 3
    build_model(info, TTTArgs(enable=False), LoraArgs(), dtype=torch.float32)


def test_personaplex_is_known_by_its_name(tmp_path, base_folder, monkeypatch):
    """Its config.json has no geometry."""
    official = tiny(tmp_path / "model", base_folder, "PersonaPlex")
    (tmp_path / "model" / "config.json").write_text(
        json.dumps({"model_type": "personaplex", "version": "1", "mimi_name": "mimi.safetensors",
                    "tokenizer_name": "tokenizer.model"})
    )  # fmt: skip
    monkeypatch.setattr("moshi.models.loaders._lm_kwargs", {**official, "dep_q": 3})
    info = resolve_model(ModelPaths(hf_repo_id=str(tmp_path / "model")))
    model = build_model(info, TTTArgs(enable=False), LoraArgs(), dtype=torch.float32)
    assert (model.n_q, model.dep_q, info.model_type) == (6, 3, "personaplex")


def test_conditions_that_nobody_knows_are_refused(tmp_path, base_folder):
    tiny(tmp_path / "model", base_folder, "Hibiki")
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    (tmp_path / "model" / "config.json").write_text(json.dumps({**config, "model_type": "moshi"}))
    with pytest.raises(MoshiError, match=r"wants conditions \(description\)"):
        resolve_model(ModelPaths(hf_repo_id=str(tmp_path / "model")))
