"""Finding a base model and building from it: exact accounting, no network, repeatable start values."""

from __future__ import annotations

import copy
import json
import shutil
import socket

import pytest
import torch
from moshi.models import loaders
from safetensors.torch import load_file, save_file

from ttt_moshi.config import LoraArgs, ModelPaths, TTTArgs
from ttt_moshi.moshi import (
    MoshiError,
    build_model,
    count_tensors,
    parse_layers,
    resolve_model,
    select_trainable,
    set_context,
)

TTT = TTTArgs(enable=True, layers="1,2", mini_batch_size=4)


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    """Any attempt to reach the hub fails the test."""

    def refuse(*args, **kwargs):
        raise AssertionError(f"network access: {args} {kwargs}")

    monkeypatch.setattr("socket.socket.connect", refuse)
    monkeypatch.setattr("socket.getaddrinfo", refuse)


@pytest.fixture
def folder(base_folder, tmp_path):
    """A copy of the base model to damage."""
    return shutil.copytree(base_folder, tmp_path / "model")


def test_a_local_folder_stands_for_a_repository(folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "mimi.json").write_text('{"sample_rate": 24000}')
    (folder / "config.json").write_text(json.dumps({**config, "mimi_config_name": "mimi.json"}))
    info = resolve_model(ModelPaths(hf_repo_id=str(folder)))
    assert info.moshi_weights == folder / "model.safetensors"
    assert info.mimi_weights == folder / "mimi.safetensors"
    assert info.tokenizer == folder / "tokenizer.model"
    assert info.mimi_config == {"sample_rate": 24000}
    assert info.lm_config["dim"] == 32 and "mimi_name" not in info.lm_config


def test_explicit_paths_replace_files_or_stand_alone(folder, tmp_path):
    other = tmp_path / "other.safetensors"
    shutil.copy(folder / "model.safetensors", other)
    assert resolve_model(ModelPaths(hf_repo_id=str(folder), moshi_path=str(other))).moshi_weights == other
    for repository in (None, "kyutai/moshiko-pytorch-bf16"):
        alone = ModelPaths(
            hf_repo_id=repository,
            moshi_path=str(other),
            mimi_path=str(folder / "mimi.safetensors"),
            tokenizer_path=str(folder / "tokenizer.model"),
            config_path=str(folder / "config.json"),
        )
        assert resolve_model(alone).moshi_weights == other


@pytest.mark.parametrize(
    ("paths", "words"),
    [
        ({"hf_repo_id": "./nowhere"}, "looks like a folder"),
        ({"hf_repo_id": None}, "config_path"),
        ({"hf_repo_id": "not a repository name"}, "neither a folder here nor"),
        ({"moshi_path": "gone.safetensors"}, r"gone\.safetensors.*moshi_path"),
    ],
)
def test_what_is_missing_is_named(folder, paths, words):
    with pytest.raises(MoshiError, match=words):
        resolve_model(ModelPaths(**{"hf_repo_id": str(folder), **paths}))


def test_a_hub_that_cannot_be_reached_is_not_taken_for_an_old_repository(folder, monkeypatch, recwarn):
    def no_such_name(*args, **kwargs):
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr("socket.getaddrinfo", no_such_name)
    monkeypatch.setattr("time.sleep", lambda seconds: None)  # the hub's library tries five times, with pauses
    files = {"moshi_path": "model.safetensors", "mimi_path": "mimi.safetensors", "tokenizer_path": "tokenizer.model"}
    paths = ModelPaths(hf_repo_id="nobody/absent", **{key: str(folder / name) for key, name in files.items()})
    with pytest.raises(MoshiError, match="hub cannot be reached and 'nobody/absent' is not in the local cache"):
        resolve_model(paths)
    assert not recwarn.list


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "mimi.safetensors", "tokenizer.model"])
def test_a_missing_file_is_named_with_its_place(folder, name):
    (folder / name).unlink()
    with pytest.raises(MoshiError, match=name) as error:
        resolve_model(ModelPaths(hf_repo_id=str(folder)))
    assert str(folder) in str(error.value)


def test_a_broken_configuration_is_named(folder):
    (folder / "config.json").write_text("{")
    with pytest.raises(MoshiError, match=r"config\.json is not valid JSON"):
        resolve_model(ModelPaths(hf_repo_id=str(folder)))


def build(folder, **changes):
    info = resolve_model(ModelPaths(hf_repo_id=str(folder)))
    return build_model(info, TTT, LoraArgs(), dtype=torch.float32, **changes)


def test_base_weights_are_accounted_for_key_by_key(folder):
    path = folder / "model.safetensors"
    tensors = load_file(path)
    emb = tensors.pop("emb.2.weight")
    save_file(tensors, path)
    with pytest.raises(MoshiError, match=r"lacks 1 tensor: emb\.2\.weight"):
        build(folder)
    save_file({**tensors, "emb.2.weight": emb, "emb.99.weight": emb.clone()}, path)
    with pytest.raises(MoshiError, match=r"unknown to the model, 1 tensor: emb\.99\.weight"):
        build(folder)
    save_file({**tensors, "emb.2.weight": emb[:, :7].contiguous()}, path)
    with pytest.raises(MoshiError, match=r"does not fit this model.*emb\.2\.weight"):
        build(folder)
    trained = "transformer.layers.1.ttt.wq.bias"
    save_file({**tensors, "emb.2.weight": emb, trained: torch.zeros(32)}, path)
    with pytest.raises(MoshiError, match=r"should not have 1 tensor: transformer\.layers\.1\.ttt\.wq\.bias"):
        build(folder)
    path.write_bytes(b"\x10" * 50)
    with pytest.raises(MoshiError, match="corrupt or not a safetensors file"):
        build(folder)


def test_older_names_of_base_tensors_load(base_folder, folder):
    """Released checkpoints keep the projections of all depth steps in one tensor."""
    path = folder / "model.safetensors"
    tensors = load_file(path)
    for layer in ("transformer.layers.0", "depformer.layers.0"):
        for part in ("in_proj", "out_proj"):
            old = f"{layer}.self_attn.{part}_weight" if part == "in_proj" else f"{layer}.self_attn.{part}.weight"
            steps = [tensors.pop(f"{layer}.self_attn.{part}s.{i}.weight") for i in range(3 if "dep" in layer else 1)]
            tensors[old] = torch.cat(steps)
    save_file(tensors, path)
    new, old = build(base_folder).state_dict(), build(folder).state_dict()
    assert all(torch.equal(new[name], old[name]) for name in new)


def test_frozen_weights_keep_the_type_and_trained_ones_are_masters(make_model):
    model = make_model(lora=True, dtype=torch.bfloat16)
    for name, parameter in model.named_parameters():
        assert parameter.dtype == (torch.float32 if parameter.requires_grad else torch.bfloat16), name
    full = make_model(layers="none", full_finetuning=True, dtype=torch.bfloat16)
    assert {p.dtype for p in full.parameters()} == {torch.float32}


def test_start_values_depend_on_seed_and_name_alone(make_model):
    before = torch.random.get_rng_state()
    one = make_model(layers="2", lora=True, perturbed=False).state_dict()
    assert torch.equal(before, torch.random.get_rng_state())
    torch.manual_seed(99)
    more = make_model(layers="all", lora=True, perturbed=False).state_dict()
    other = make_model(layers="2", lora=True, perturbed=False, seed=1).state_dict()
    name = "transformer.layers.2.ttt.inner.W1"
    assert all(torch.equal(one[n], more[n]) for n in one)
    assert not torch.equal(one[name], other[name])
    assert not torch.equal(more[name], more["transformer.layers.1.ttt.inner.W1"])
    lora = "transformer.layers.0.gating.linear_in.lora_A.weight"
    assert not torch.equal(one[lora], other[lora]) and one[lora].abs().max() <= 32**-0.5


def test_moshi_7b_counts_without_memory():
    before = copy.deepcopy(loaders._lm_kwargs)
    info = loaders.CheckpointInfo("absent", "absent", "absent")
    ttt = TTTArgs(enable=True, layers="1,2")
    counts = count_tensors(build_model(info, ttt, LoraArgs(), device="meta", load_weights=False))
    assert str(counts.groups["base"]) == "439 tensors / 7,687,729,152 elements"
    assert str(counts.total_trainable) == str(counts.groups["ttt"]) == "40 tensors / 142,991,424 elements"
    assert str(counts.total) == "479 tensors / 7,830,720,576 elements"
    assert loaders._lm_kwargs == before


def test_modes_train_exactly_their_tensors(make_model):
    def trained(model):
        return {n for n, p in model.named_parameters() if p.requires_grad}

    ttt = make_model()
    assert ttt.mode == "ttt" and len(trained(ttt)) == 40
    assert all(".ttt." in name for name in trained(ttt))
    lora = make_model(layers="none", lora=True)
    assert lora.mode == "lora" and all(".lora_" in name for name in trained(lora)) and trained(lora)
    both = make_model(lora=True)
    assert both.mode == "lora+ttt" and trained(both) == trained(ttt) | trained(lora)
    assert not any(".ttt." in name and "lora" in name for name in trained(both))
    full = make_model(full_finetuning=True)
    assert full.mode == "full" and trained(full) == {n for n, _ in full.named_parameters()}
    frozen = make_model(layers="none")
    assert frozen.mode == "frozen" and not trained(frozen)

    mode = select_trainable(both, TTT, LoraArgs(enable=True, ft_embed=True), False)
    tables = {"text_emb.weight", "depformer_text_emb.weight"}
    tables |= {f"emb.{k}.weight" for k in range(6)} | {f"depformer_emb.{k}.weight" for k in range(2)}
    assert mode == "lora+ttt" and trained(both) == trained(ttt) | trained(lora) | tables
    with pytest.raises(MoshiError, match=r"\['lora'\]"):
        select_trainable(ttt, TTTArgs(), LoraArgs(enable=True), False)


def test_layers_by_name():
    assert parse_layers("all", 4) == [0, 1, 2, 3]
    assert parse_layers("middle", 32) == list(range(8, 24))
    assert parse_layers("middle", 3) == [1]
    assert parse_layers("none", 4) == []
    assert parse_layers(" 3, 1,3", 4) == [1, 3]
    for bad, words in (("4", "layer 4"), ("-1", "layer -1"), ("first", "must be all"), ("", "must be all")):
        with pytest.raises(MoshiError, match=words):
            parse_layers(bad, 4)


def test_the_window_changes_in_the_temporal_layers_alone(make_model, make_codes):
    model = make_model(layers="none")
    codes = make_codes(T=20)
    depth = [layer.self_attn.context for layer in model.depformer.layers]
    with torch.no_grad():
        wide = model(codes).text_logits
        assert set_context(model, 3) == 4
        narrow = model(codes).text_logits
    assert [layer.self_attn.context for layer in model.depformer.layers] == depth
    # Up to position 2 a window of 3 is all there is.
    assert torch.equal(wide[:, :, :3], narrow[:, :, :3]) and not torch.equal(wide[:, :, 5], narrow[:, :, 5])
    with pytest.raises(MoshiError, match="at least one frame"):
        set_context(model, 0)


def test_a_base_model_with_adapters_of_its_own_is_refused(folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "lora": True, "lora_name": "lora.safetensors"}))
    with pytest.raises(MoshiError, match=r"lora\.safetensors"):
        build(folder)
    save_file({"x": torch.zeros(1)}, folder / "lora.safetensors")
    with pytest.raises(MoshiError, match="LoRA weights of its own"):
        build(folder)


def test_unknown_and_quantised_configurations_are_refused(folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "flux_capacitor": 1}))
    with pytest.raises(MoshiError, match="flux_capacitor"):
        build(folder)
    (folder / "config.json").write_text(json.dumps({**config, "quantize": True}))
    with pytest.raises(MoshiError, match="quantised"):
        build(folder)
