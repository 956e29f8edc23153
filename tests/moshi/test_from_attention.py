"""Memories that begin with the projections of the attention beside them."""

from __future__ import annotations

import pytest
import torch
from einops import rearrange
from moshi.modules.transformer import expand_repeated_kv

from ttt_moshi.config import LoraArgs, ModelPaths, TTTArgs
from ttt_moshi.moshi import MoshiError, build_model, resolve_model
from ttt_moshi.ttt.functional import rms_norm


def build(folder, init="attention", lora=False, **ttt):
    info = resolve_model(ModelPaths(hf_repo_id=str(folder)))
    args = TTTArgs(enable=True, layers="1,3", init=init, **ttt)
    return build_model(info, args, LoraArgs(enable=lora, rank=4), dtype=torch.float32).eval()


@pytest.mark.parametrize(("repeat", "lora"), [(1, False), (1, True), (2, False)])
def test_what_is_looked_up_and_said_is_what_the_attention_looks_up_and_says(tmp_path, make_base, repeat, lora):
    """Against the official modules: its norm, its joint projection cut as it cuts it, its output."""
    model = build(make_base(tmp_path / "base", kv_repeat=repeat, num_heads=4), lora=lora)
    x = torch.randn(2, 5, 32, generator=torch.Generator().manual_seed(0)) * 3
    for index in (1, 3):
        layer, ttt = model.layers[index], model.layers[index].ttt
        assert layer.norm1.alpha.std() > 0.01, "norms of a trained model are not ones"
        attention = layer.self_attn
        joint = attention.in_projs[0](layer.norm1(x))
        q, k, v = joint.split([32, 32 // repeat, 32 // repeat], dim=-1)
        q, k, v = (rearrange(part, "b t (h d) -> b h t d", d=8) for part in (q, k, v))
        if repeat > 1:
            k, v = expand_repeated_kv(k, repeat), expand_repeated_kv(v, repeat)
        normed = rms_norm(x)
        for projection, wanted in ((ttt.wq, q), (ttt.wk, k), (ttt.wv, v)):
            torch.testing.assert_close(ttt._heads(projection(normed)), wanted, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(ttt.wo(x), attention.out_projs[0](x))


def test_with_closed_gates_it_is_the_base_model_and_with_open_ones_it_is_not(tmp_path, make_base):
    folder = make_base(tmp_path / "base")
    codes = torch.randint(0, 24, (2, 7, 20), generator=torch.Generator().manual_seed(0))
    base = build_model(
        resolve_model(ModelPaths(hf_repo_id=str(folder))), TTTArgs(), LoraArgs(), dtype=torch.float32
    ).eval()
    with torch.no_grad():
        wanted = base(codes).logits
        found = {
            (init, alpha): build(folder, init, initial_gating_alpha=alpha)(codes).logits
            for init in ("random", "attention")
            for alpha in (0.0, 0.2)
        }
    same = {key: torch.equal(logits.nan_to_num(), wanted.nan_to_num()) for key, logits in found.items()}
    assert same == {
        ("random", 0.0): True, ("random", 0.2): True, ("attention", 0.0): True, ("attention", 0.2): False
    }  # fmt: skip


def test_a_base_without_rms_norms_is_refused(tmp_path, make_base):
    folder = make_base(tmp_path / "base", norm="layer_norm")
    build(folder, "random")
    with pytest.raises(MoshiError, match=r"ttt\.init: attention.*RMS norms, layer 1 has LayerNorm.*ttt\.init: random"):
        build(folder)
