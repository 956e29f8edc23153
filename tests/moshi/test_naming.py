"""What names say about tensors, on a model that has every kind of them."""

from ttt_moshi.moshi import decays, export_name, is_fp32, parameter_role, tensor_group


def test_every_tensor_has_its_group_role_and_decay(make_model):
    names = [name for name, _ in make_model(layers="1", lora=True).named_parameters()]
    by_role = {role: [n for n in names if parameter_role(n) == role] for role in map(parameter_role, names)}
    inside = "transformer.layers.1.ttt."
    assert sorted(by_role["fast_weight"]) == [f"{inside}inner.{w}" for w in ("W1", "W2", "b1", "b2")]
    assert sorted(by_role["gate"]) == [f"{inside}{d}_gating.gating_alpha" for d in ("backward", "forward")]
    assert len(by_role["ttt"]) == 20 - 4 - 2
    assert {tensor_group(n) for n in by_role["ttt"] + by_role["gate"] + by_role["fast_weight"]} == {"ttt"}
    assert len(by_role["lora"]) == 2 * sum("frozen_W" in n for n in by_role["base"])

    fixed = {n.removeprefix(inside) for n in names if tensor_group(n) == "ttt" and decays(n)}
    assert fixed == {"wq.weight", "wk.weight", "wv.weight", "wo.weight"}
    assert all(decays(n) for n in by_role["lora"])
    undecayed = {n for n in by_role["base"] if not decays(n)}
    assert undecayed == {n for n in by_role["base"] if "norm" in n}
    assert "emb.0.weight" not in undecayed


def test_inner_tensors_and_gates_stay_float32():
    inside = "transformer.layers.11.ttt."
    assert is_fp32(f"{inside}inner.learnable_ttt_lr_weight") and is_fp32(f"{inside}forward_gating.gating_alpha")
    assert not is_fp32(f"{inside}wq.weight") and not is_fp32("transformer.layers.11.norm1.alpha")


def test_adapters_disappear_from_official_names():
    assert export_name("linears.0.frozen_W.weight") == "linears.0.weight"
    assert export_name("linears.0.lora_A.weight") == "linears.0.lora_A.weight"
