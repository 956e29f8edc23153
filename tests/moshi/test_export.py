"""Exports: what official loaders and our own make of them, and what they refuse."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from moshi.models.loaders import CheckpointInfo, get_moshi_lm
from safetensors.torch import load_file, save_file

from ttt_moshi.config import ModelPaths
from ttt_moshi.moshi import (
    MoshiError,
    cast_for_inference,
    describe_base,
    export_documents,
    export_file_name,
    export_plan,
    load_initial_weights,
    load_trained,
    materialise,
    trained_base,
)


@pytest.fixture
def export(base_folder, info, tmp_path):
    """Writes a model's `consolidated/` folder the way a checkpoint does; returns the checkpoint folder."""

    def write(model, kind="adapters", dtype=torch.float32, name="checkpoint_000001") -> Path:
        folder = tmp_path / name / "consolidated"
        folder.mkdir(parents=True)
        parameters = dict(model.named_parameters())
        tensors = {e.name: materialise(e, parameters.__getitem__) for e in export_plan(model, kind, dtype)}
        save_file(tensors, folder / export_file_name(kind))
        base = describe_base(ModelPaths(hf_repo_id=str(base_folder)), info)
        for file, document in export_documents(model, info, base, kind).items():
            (folder / file).write_text(json.dumps(document))
        return folder.parent

    return write


def logits(model, codes) -> list[torch.Tensor]:
    with torch.no_grad():
        output = model(codes)
    return [output.text_logits, torch.nan_to_num(output.logits)]


def assert_same(a, b) -> None:
    assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_lora_adapters_load_in_the_official_loader(make_model, make_codes, export, base_folder, dtype):
    folder = export(make_model(layers="none", lora=True), dtype=dtype) / "consolidated"
    assert not (folder / "ttt.json").exists()
    official = CheckpointInfo.from_hf_repo(
        "absent/absent",
        moshi_weights=base_folder / "model.safetensors",
        mimi_weights=base_folder / "mimi.safetensors",
        tokenizer=base_folder / "tokenizer.model",
        config_path=folder / "config.json",
        lora_weights=folder / "lora.safetensors",
    ).get_moshi(dtype=dtype, fuse_lora=False)
    assert_same(logits(load_trained(folder, dtype=dtype), make_codes()), logits(official, make_codes()))


@pytest.mark.parametrize("settings", [{"lora": True}, {"full_finetuning": True}])
def test_merged_weights_load_in_the_official_loader(make_model, make_codes, export, base_folder, settings):
    model = make_model(layers="none", **settings)
    folder = export(model, kind="full") / "consolidated"
    config = json.loads((folder / "config.json").read_text())
    assert config["lora"] is False
    official = CheckpointInfo.from_hf_repo(
        "absent/absent",
        moshi_weights=folder / "consolidated.safetensors",
        mimi_weights=base_folder / "mimi.safetensors",
        tokenizer=base_folder / "tokenizer.model",
        config_path=folder / "config.json",
    ).get_moshi(dtype=torch.float32)
    assert_same(logits(load_trained(folder, dtype=torch.float32), make_codes()), logits(official, make_codes()))
    # Merging is algebra: the sum of base and adapter, up to rounding.
    for merged, apart in zip(logits(official, make_codes()), logits(model, make_codes()), strict=True):
        torch.testing.assert_close(merged, apart, rtol=1e-4, atol=1e-4)


def test_merged_folders_of_moshi_finetune_load(make_model, make_codes, export):
    """It leaves `lora: true` in config.json, and records no base model."""
    folder = export(make_model(layers="none", lora=True), kind="full") / "consolidated"
    ours = logits(load_trained(folder, dtype=torch.float32), make_codes())
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "lora": True, "lora_rank": 2, "lora_scaling": 2.0}))
    (folder / "base_model.json").unlink()
    assert_same(logits(load_trained(folder, dtype=torch.float32), make_codes()), ours)


def test_ft_embed_tables_travel_with_the_adapters(make_model, export):
    model = make_model(lora=True)
    with torch.no_grad():
        model.emb[1].weight.requires_grad_().add_(1.0)
    folder = export(model)
    assert torch.equal(load_trained(folder, dtype=torch.float32).emb[1].weight, model.emb[1].weight)


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("adapters", {"lora": True}),
        ("full", {"inner": "linear", "preset": "paper_lm", "base_lr": 0.3}),
        ("adapters", {"inner": "delta", "half_life_frames": [3, 30], "forget": "gated", "target": "both"}),
    ],
)
def test_every_tensor_comes_back_in_a_fresh_process(make_model, make_codes, export, tmp_path, kind, settings):
    model = make_model(**settings)
    codes, prefix = make_codes(), torch.tensor([5, 0])
    folder = export(model, kind)
    save_file({"codes": codes, "prefix": prefix}, tmp_path / "input.safetensors")
    program = f"""
import torch
from moshi.utils.compile import no_compile
from safetensors.torch import load_file, save_file
from ttt_moshi.moshi import load_trained
torch.set_num_threads(1)
given = load_file({str(tmp_path / "input.safetensors")!r})
model = load_trained({str(folder)!r}, dtype=torch.float32)
with torch.no_grad(), no_compile():
    output = model(given["codes"], prefix_lengths=given["prefix"])
tensors = {{n: p.detach() for n, p in model.named_parameters()}}
save_file({{**tensors, "text_logits": output.text_logits}}, {str(tmp_path / "output.safetensors")!r})
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=120)
    found = load_file(tmp_path / "output.safetensors")
    with torch.no_grad():
        expected = model.eval()(codes, prefix_lengths=prefix).text_logits
    tensors = {name: parameter.detach() for name, parameter in model.named_parameters()}
    assert found.keys() - {"text_logits"} == tensors.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in tensors.items())
    torch.testing.assert_close(found["text_logits"], expected, rtol=1e-4, atol=1e-4)


def test_bfloat16_exports_compute_like_the_cast_model(make_model, make_codes, export):
    model = make_model(lora=True)
    folder = export(model, dtype=torch.bfloat16)
    stored = load_file(folder / "consolidated" / "lora.safetensors")
    types = {name: tensor.dtype for name, tensor in stored.items()}
    assert types["transformer.layers.1.ttt.inner.W1"] == torch.float32
    assert types["transformer.layers.1.ttt.forward_gating.gating_alpha"] == torch.float32
    assert types["transformer.layers.1.ttt.wq.weight"] == torch.bfloat16
    back = load_trained(folder, dtype=torch.bfloat16)
    model.requires_grad_(True)
    assert_same(logits(cast_for_inference(model, torch.bfloat16), make_codes()), logits(back, make_codes()))


def test_the_attention_window_of_training_is_exported(make_model, export):
    from ttt_moshi.moshi import set_context

    model = make_model()
    set_context(model, 6)
    assert load_trained(export(model), dtype=torch.float32).layers[3].self_attn.context == 6


def test_adapters_are_not_put_on_another_base_model(make_model, export, base_folder, tmp_path):
    folder = export(make_model())
    moved = shutil.copytree(base_folder, tmp_path / "moved")
    load_trained(folder, base=ModelPaths(hf_repo_id=str(moved)))
    tensors = load_file(moved / "model.safetensors")
    tensors["emb.0.weight"][0, 0] += 1
    save_file(tensors, moved / "model.safetensors")
    with pytest.raises(MoshiError, match="trained on another base model"):
        load_trained(folder, base=ModelPaths(hf_repo_id=str(moved)))


def test_a_vanished_base_model_is_named(make_model, export, tmp_path):
    folder = export(make_model())
    path = folder / "consolidated" / "base_model.json"
    document = json.loads(path.read_text())
    document["moshi_paths"] = {**asdict(ModelPaths()), "hf_repo_id": "/gone/model"}
    path.write_text(json.dumps(document))
    with pytest.raises(MoshiError, match=r"base model of .* cannot be used.*/gone/model"):
        load_trained(folder)
    path.unlink()
    with pytest.raises(MoshiError, match=r"no base_model\.json"):
        trained_base(folder)


@pytest.mark.parametrize("kind", ["adapters", "full"])
def test_damaged_exports_are_refused_in_words(make_model, export, kind):
    folder = export(make_model(lora=True), kind) / "consolidated"
    path = folder / export_file_name(kind)
    tensors = load_file(path)
    gate = tensors.pop("transformer.layers.2.ttt.forward_gating.gating_alpha")
    save_file(tensors, path)
    with pytest.raises(MoshiError, match=r"lacks 1 tensor: transformer\.layers\.2\.ttt\.forward_gating"):
        load_trained(folder)
    save_file({**tensors, "transformer.layers.3.ttt.forward_gating.gating_alpha": gate}, path)
    with pytest.raises(MoshiError, match=r"unknown to the model, 1 tensor: transformer\.layers\.3"):
        load_trained(folder)
    ttt = json.loads((folder / "ttt.json").read_text())
    (folder / "ttt.json").write_text(json.dumps({**ttt, "layers": [1, 2, 3]}))
    with pytest.raises(MoshiError, match=r"lacks 20 tensors: transformer\.layers"):
        load_trained(folder)
    (folder / "ttt.json").write_text(json.dumps({**ttt, "rate_scale": 2 * ttt["rate_scale"]}))
    with pytest.raises(MoshiError, match="trained with inner steps of"):
        load_trained(folder)
    (folder / "ttt.json").write_text(json.dumps({**ttt, "inner": "cnn"}))
    with pytest.raises(MoshiError, match="does not describe TTT layers"):
        load_trained(folder)
    path.unlink()
    with pytest.raises(MoshiError, match="holds neither"):
        load_trained(folder)
    with pytest.raises(MoshiError, match="not a checkpoint"):
        load_trained(folder / "nothing")


def test_stock_lora_files_start_a_run_of_ours(make_model, make_codes, export, tmp_path):
    stock = make_model(layers="none", lora=True, seed=5)
    file = load_file(export(stock) / "consolidated" / "lora.safetensors")
    # Older files of moshi-finetune keep all steps of the depth transformer in one tensor.
    for part in ("in_proj", "out_proj"):
        for side in ("lora_A", "lora_B"):
            steps = [file.pop(f"depformer.layers.0.self_attn.{part}s.{i}.{side}.weight") for i in range(3)]
            file[f"depformer.layers.0.self_attn.{part}.{side}.weight"] = torch.cat(steps)
    model = make_model(lora=True, perturbed=False)
    outcome = load_initial_weights(model, file)
    assert all(".lora_" in name for name in outcome.loaded) and len(outcome.loaded) == len(
        [n for n, _ in model.named_parameters() if ".lora_" in n]
    )
    assert {n for n in outcome.kept if ".ttt." in n} == {n for n, _ in model.named_parameters() if ".ttt." in n}
    assert_same(logits(model, make_codes()), logits(stock, make_codes()))


def test_full_exports_start_a_run_with_adapters(make_model, make_codes, export):
    trained = make_model(full_finetuning=True)
    with torch.no_grad():
        for parameter in trained.parameters():
            parameter.add_(0.01)
    file = load_file(export(trained, "full") / "consolidated" / "consolidated.safetensors")
    model = make_model(lora=True, perturbed=False, dtype=torch.float32)
    load_initial_weights(model, file)
    assert_same(logits(model, make_codes()), logits(trained, make_codes()))


def test_incomplete_starts_are_refused(make_model, export):
    file = load_file(export(make_model(lora=True)) / "consolidated" / "lora.safetensors")
    with pytest.raises(MoshiError, match="unknown to the model"):
        load_initial_weights(make_model(), file)
    with pytest.raises(MoshiError, match="has 40 of the model's 80 ttt tensors"):
        load_initial_weights(make_model(layers="all", lora=True), file)
    some = {name: tensor for name, tensor in file.items() if "linears" not in name}
    with pytest.raises(MoshiError, match=r"lora tensors; it lacks 6 tensors: linears\.0"):
        load_initial_weights(make_model(lora=True), some)
    with pytest.raises(MoshiError, match="no tensor of this model"):
        load_initial_weights(make_model(lora=True), {})


def test_official_function_accepts_the_configuration_directly(make_model, export, base_folder):
    """`get_moshi_lm` with the language model's part of config.json, as moshi-finetune's own users call it."""
    folder = export(make_model(layers="none", lora=True)) / "consolidated"
    info = CheckpointInfo.from_hf_repo(
        "absent/absent", *[base_folder / n for n in ("model.safetensors", "mimi.safetensors", "tokenizer.model")],
        config_path=folder / "config.json",
    )  # fmt: skip
    model = get_moshi_lm(info.moshi_weights, info.lm_config, lora_weights=folder / "lora.safetensors", fuse_lora=True)
    assert not any("lora" in name for name, _ in model.named_parameters())
