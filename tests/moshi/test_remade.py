"""Base models that are changed before training keep everything else, and the official loader reads the result."""

from __future__ import annotations

import io
import json

import pytest
import sentencepiece
import torch
from moshi.models.loaders import get_moshi_lm
from safetensors.torch import load_file, save_file

from ttt_moshi.config import ConfigError, DataArgs, LoraArgs, ModelPaths, TrainArgs, TTTArgs
from ttt_moshi.moshi import MoshiError, build_model, own_codebooks
from ttt_moshi.moshi.loading import own_depth_steps
from ttt_moshi.moshi.remade import TEXT_TENSORS, base_to_train, new_text_tensors, user_depth_steps
from ttt_moshi.moshi.supported import REPOSITORY_KEYS

NO_TTT = TTTArgs(enable=False)
USER = DataArgs(train_user_stream=True)
NEW_TEXT = DataArgs(new_text_embeddings=True)


@pytest.fixture(scope="session")
def other_tokenizer(tmp_path_factory) -> str:
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["今日は天気がいいですね", "明日は雨です"] * 20), model_writer=model, vocab_size=280,
        model_type="bpe", unk_id=0, bos_id=1, eos_id=2, pad_id=3, byte_fallback=True, hard_vocab_limit=False,
        num_threads=1, minloglevel=2,
    )  # fmt: skip
    path = tmp_path_factory.mktemp("tokenizer") / "japanese.model"
    path.write_bytes(model.getvalue())
    return str(path)


def paths(folder, tokenizer: str | None = None) -> ModelPaths:
    return ModelPaths(hf_repo_id=str(folder), tokenizer_path=tokenizer)


def test_the_user_is_predicted_by_copies_of_the_depth_steps(base_folder, make_codes):
    before = build_model(base_to_train(paths(base_folder), DataArgs()), NO_TTT, LoraArgs(), dtype=torch.float32).eval()
    info = base_to_train(paths(base_folder), USER)
    assert info.lm_config["dep_q"] == info.raw_config["dep_q"] == info.raw_config["depformer_context"] == 6
    after = build_model(info, NO_TTT, LoraArgs(), full_finetuning=True, dtype=torch.float32).eval()
    assert (after.dep_q, own_codebooks(after), own_codebooks(before)) == (6, 3, 3)
    codes = make_codes(T=12)
    with torch.no_grad():
        old, new = before(codes), after(codes)
    assert torch.equal(new.text_logits[new.text_mask], old.text_logits[old.text_mask])
    own = new.mask[:, :3]
    # Nothing that was known is lost; some processors round products of another number of depth steps differently.
    torch.testing.assert_close(new.logits[:, :3][own], old.logits[old.mask], rtol=1e-5, atol=1e-5)
    assert bool(new.mask[:, 3:].any()) and bool(new.logits[:, 3:][new.mask[:, 3:]].isfinite().all())
    state = after.state_dict()
    copied = 0
    for name in ("linears.{}.weight", "depformer_in.{}.weight", "depformer.layers.1.gating.{}.linear_in.weight",
                 "depformer.layers.0.self_attn.in_projs.{}.weight"):  # fmt: skip
        for step in range(3):
            assert torch.equal(state[name.format(step)], state[name.format(step + 3)])
            copied += 1
    assert copied == 12
    table = "depformer_emb.{}.weight"
    assert [torch.equal(state[table.format(a)], state[table.format(b)]) for a, b in ((0, 2), (0, 3), (1, 4))] == [
        True
    ] * 3


@pytest.mark.parametrize("joined", [False, True])
def test_added_depth_steps_are_those_that_are_left_out_again(base_folder, joined):
    tensors = load_file(base_folder / "model.safetensors")
    if joined:
        for projection, name in (("in_projs", "in_proj_weight"), ("out_projs", "out_proj.weight")):
            for layer in range(2):
                place = f"depformer.layers.{layer}.self_attn"
                steps = [tensors.pop(f"{place}.{projection}.{step}.weight") for step in range(3)]
                tensors[f"{place}.{name}"] = torch.cat(steps)
    back = own_depth_steps(user_depth_steps(tensors, 3), 3, 6)
    assert back.keys() == tensors.keys()
    assert all(torch.equal(back[name], tensors[name]) for name in tensors)


def test_a_file_that_has_the_user_s_steps_keeps_them(tmp_path, base_folder):
    """PersonaPlex has trained ones."""
    tensors = user_depth_steps(load_file(base_folder / "model.safetensors"), 3)
    tensors["linears.5.weight"] += 1.0
    config = json.loads((base_folder / "config.json").read_text())
    for name in ("mimi.safetensors", "tokenizer.model"):
        (tmp_path / name).write_bytes(b"not looked at")
    (tmp_path / "config.json").write_text(json.dumps({**config, "dep_q": 6}))
    save_file(tensors, tmp_path / "model.safetensors")
    model = build_model(
        base_to_train(paths(tmp_path), USER), NO_TTT, LoraArgs(), full_finetuning=True, dtype=torch.float32
    )
    assert torch.equal(model.linears[5].weight, tensors["linears.5.weight"])
    geometry = {key: value for key, value in config.items() if key not in REPOSITORY_KEYS} | {"dep_q": 6}
    official = get_moshi_lm(tmp_path / "model.safetensors", geometry, dtype=torch.float32)
    assert torch.equal(official.linears[5].weight, model.linears[5].weight)


@pytest.mark.parametrize("lora", [False, True])
def test_new_text_embeddings_are_trained_and_the_rest_is_kept(base_folder, other_tokenizer, lora):
    info = base_to_train(paths(base_folder, other_tokenizer), NEW_TEXT)
    pieces = sentencepiece.SentencePieceProcessor(other_tokenizer).get_piece_size()
    assert info.raw_config["text_card"] == pieces != 40
    old = load_file(base_folder / "model.safetensors")
    ttt = TTTArgs(enable=True, layers="1")
    model = build_model(info, ttt, LoraArgs(enable=lora), dtype=torch.float32, new_text_embeddings=True)
    trained = {name.replace(".frozen_W", "") for name, p in model.named_parameters() if p.requires_grad}
    base = {
        name.replace(".frozen_W", ""): p
        for name, p in model.named_parameters()
        if ".ttt." not in name and "lora_" not in name
    }
    assert {name for name in trained if name in old} == {name for name in TEXT_TENSORS if name in old}
    for name, tensor in old.items():
        if name not in TEXT_TENSORS:
            assert torch.equal(base[name], tensor), name
            continue
        new = base[name].detach()
        rows = pieces + (name != "text_linear.weight")
        assert new.shape == (rows, tensor.shape[1])
        for kept in (0, 3):
            assert torch.equal(new[kept], tensor[kept])
        assert (new[5:-1] - tensor.mean(dim=0)).abs().max() < 0.05 * tensor.std()
        assert new[5:-1].std(dim=0).min() > 0
        if rows > pieces:
            assert torch.equal(new[-1], tensor[-1])  # how a recording begins


def test_new_rows_depend_on_the_seed_alone(base_folder):
    old = load_file(base_folder / "model.safetensors")
    first, again, other = (new_text_tensors(old, 50, (3, 0), seed) for seed in (1, 1, 2))
    assert all(torch.equal(first[name], again[name]) and not torch.equal(first[name], other[name]) for name in first)
    assert not torch.equal(first["text_emb.weight"][5], first["depformer_text_emb.weight"][5, :1].expand(32))


def test_what_cannot_be_is_refused(tmp_path, base_folder, make_base):
    with pytest.raises(ConfigError, match="needs `full_finetuning: true`"):
        TrainArgs(run_dir=str(tmp_path), data=USER)
    with pytest.raises(MoshiError, match="tokenizer"):
        base_to_train(paths(base_folder), NEW_TEXT)  # it is no SentencePiece model
    with pytest.raises(MoshiError, match="share weights"):
        base_to_train(paths(make_base(tmp_path / "shared", depformer_weights_per_step_schedule=[0, 1, 1])), USER)
    with pytest.raises(MoshiError, match="3 depth steps for 5 codebooks"):
        base_to_train(paths(make_base(tmp_path / "odd", n_q=5, delays=[0, 0, 1, 1, 0, 1])), USER)
