"""The model around its TTT layers: equal to the base at step 0, strictly causal, without a trace of a forward."""

import copy
import hashlib
import json

import pytest
import torch
from moshi.conditioners import ConditionAttributes
from moshi.models.loaders import CheckpointInfo, get_moshi_lm
from safetensors.torch import save_file
from torch.utils._python_dispatch import TorchDispatchMode

from ttt_moshi.config import LoraArgs, ModelPaths, TTTArgs
from ttt_moshi.moshi import MoshiError, build_model, resolve_model

VARIANTS = [
    {"preset": "speech", "inner": "mlp"},
    {"preset": "speech", "inner": "linear"},
    {"preset": "speech", "inner": "delta"},
    {"preset": "paper_lm", "inner": "mlp", "base_lr": 0.1},
    {"preset": "paper_lm", "inner": "linear"},
    {"preset": "video_causal", "inner": "mlp", "base_lr": 0.1},
    {"preset": "video_causal", "inner": "linear", "base_lr": 0.1},
]


def same(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Bit for bit, with NaN (outside of a stream's delay) equal to NaN."""
    return a.shape == b.shape and torch.equal(torch.nan_to_num(a, 12345.0), torch.nan_to_num(b, 12345.0))


def official(info, dtype: torch.dtype = torch.float32) -> torch.nn.Module:
    """The base model as the official loader gives it."""
    return get_moshi_lm(info.moshi_weights, info.lm_config, dtype=dtype)


def fingerprint(model: torch.nn.Module) -> str:
    digest = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        digest.update(name.encode() + tensor.contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("variant", VARIANTS)
def test_step_zero_is_the_base_model_bit_for_bit(make_model, make_codes, info, variant, dtype):
    base = official(info, dtype)
    model = make_model(layers="all", perturbed=False, dtype=dtype, **variant)
    codes = make_codes()
    with torch.no_grad():
        expected, output = base(codes), model(codes)
    for field in ("logits", "mask", "text_logits", "text_mask"):
        assert same(getattr(output, field), getattr(expected, field)), field


class _Products(TorchDispatchMode):
    """Notes how many rows each batched product multiplies at a time."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[int] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.aten.bmm.default:
            self.rows.append(args[0].shape[1])
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("lora", [False, True])
def test_frozen_weights_of_the_depth_transformer_multiply_all_rows_at_once(make_model, make_codes, info, lora):
    """Else they are read anew for every frame, which makes an evaluation in bfloat16 a hundred times slower."""
    model, frozen = make_model(lora=lora), official(info).requires_grad_(False)
    with torch.no_grad(), _Products() as ours:
        model(make_codes())
    with torch.no_grad(), _Products() as without:
        frozen(make_codes())
    assert 1 in without.rows  # what the test looks for is there in the official model
    assert 1 not in ours.rows


def test_step_zero_with_lora_is_the_base_model_bit_for_bit(make_model, make_codes, info):
    base = official(info)
    model = make_model(layers="all", lora=True, perturbed=False)
    with torch.no_grad():
        expected, output = base(make_codes()), model(make_codes())
    assert same(output.logits, expected.logits) and same(output.text_logits, expected.text_logits)


@pytest.mark.parametrize("variant", VARIANTS)
def test_no_logit_depends_on_the_future(make_model, make_codes, variant):
    model = make_model(layers="all", **variant)
    codes, t = make_codes(T=14), 9
    changed = codes.clone()
    changed[:, :, t:] = (changed[:, :, t:] + 5) % 24
    with torch.no_grad():
        before, after = model(codes), model(changed)
    assert same(before.text_logits[:, :, :t], after.text_logits[:, :, :t])
    assert same(before.logits[:, 0, :t], after.logits[:, 0, :t])
    assert same(before.logits[:, 1:, : t - 1], after.logits[:, 1:, : t - 1])
    # What may depend on it does, so the comparison above compares something.
    assert not same(before.text_logits[:, :, t + 1], after.text_logits[:, :, t + 1])
    assert not same(before.logits[:, 1:, t - 1], after.logits[:, 1:, t - 1])


@pytest.mark.parametrize("variant", VARIANTS)
def test_conversation_after_a_prefix_is_strictly_causal(make_model, make_codes, variant):
    model = make_model(layers="all", **variant)
    codes, prefix = make_codes(B=3, T=14), torch.tensor([6, 0, 5])
    for t in range(5, 10):
        changed = codes.clone()
        changed[:, :, t:] = (changed[:, :, t:] + 5) % 24
        with torch.no_grad():
            before, after = model(codes, prefix_lengths=prefix), model(changed, prefix_lengths=prefix)
        for row, given in enumerate(prefix.tolist()):
            if t < given:
                continue
            assert same(before.text_logits[row, :, :t], after.text_logits[row, :, :t]), (row, t)
            assert same(before.logits[row, 0, :t], after.logits[row, 0, :t]), (row, t)
            assert same(before.logits[row, 1:, : t - 1], after.logits[row, 1:, : t - 1]), (row, t)


def test_prefix_is_read_in_both_directions_and_not_predicted(make_model, make_codes):
    model = make_model(layers="all")
    codes, prefix = make_codes(T=14), torch.tensor([6, 0])
    with torch.no_grad():
        with_prefix, without = model(codes, prefix_lengths=prefix), model(codes)
        changed = codes.clone()
        changed[0, 0, 5] = (changed[0, 0, 5] + 5) % 24
        later = model(changed, prefix_lengths=prefix)
    # Frame 5 is the last given one: even logits of the first frame see it.
    assert not same(later.text_logits[0, :, 1], with_prefix.text_logits[0, :, 1])
    assert same(with_prefix.text_logits[1], without.text_logits[1])
    assert not with_prefix.text_mask[0, :, :6].any() and not with_prefix.mask[0, :, :6].any()
    assert torch.equal(with_prefix.text_mask[0, :, 6:], without.text_mask[0, :, 6:])
    assert torch.equal(with_prefix.mask[1], without.mask[1])


def test_prefix_longer_than_the_clip_gives_everything(make_model, make_codes):
    output = make_model()(make_codes(T=6), prefix_lengths=torch.tensor([6, 40]))
    assert not output.text_mask.any() and not output.mask.any()


def test_backward_gate_learns_from_prefixes_only(make_model, make_codes):
    model = make_model()
    gate = model.transformer.layers[1].ttt.backward_gating.gating_alpha
    model(make_codes()).text_logits.sum().backward()
    assert gate.grad is None
    model(make_codes(), prefix_lengths=torch.tensor([5, 0])).text_logits.sum().backward()
    assert gate.grad is not None and gate.grad.abs().sum() > 0


def test_forward_and_streaming_change_no_tensor(make_model, make_codes):
    model = make_model()
    model.eval()
    before = fingerprint(model)
    model(make_codes())
    with torch.no_grad(), model.streaming(2):
        for frame in make_codes(T=6).split(1, dim=2):
            model.forward_text(frame)
    model.forward_chunk(make_codes(), model.start_stream(2))
    assert fingerprint(model) == before


def test_a_forward_after_streaming_is_one_without(make_model, make_codes):
    model, codes = make_model(), make_codes()

    def gradients() -> list[torch.Tensor]:
        model.zero_grad()
        output = model(codes)
        (output.text_logits.square().mean() + output.logits[output.mask].square().mean()).backward()
        return [output.text_logits.detach(), *(p.grad.clone() for p in model.parameters() if p.grad is not None)]

    alone = gradients()
    with torch.no_grad(), model.streaming(2):
        for frame in make_codes(T=7, seed=3).split(1, dim=2):
            model.forward_text(frame)
    for a, b in zip(alone, gradients(), strict=True):
        assert torch.equal(a, b)


def test_gradient_checkpointing_changes_nothing(make_model, make_codes):
    codes, prefix = make_codes(), torch.tensor([4, 0])
    gradients = []
    for checkpointing in (False, True):
        model = make_model(gradient_checkpointing=checkpointing)
        model.train()
        model(codes, prefix_lengths=prefix).text_logits.square().mean().backward()
        gradients.append({n: p.grad for n, p in model.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys() and len(gradients[0]) == 40
    for name, gradient in gradients[0].items():
        assert torch.equal(gradient, gradients[1][name]), name


def test_models_with_conditions(tmp_path, make_base, make_codes):
    """As the speech-to-speech translation models have them; conditions are computed outside, in float32."""
    lut = {"n_bins": 5, "dim": 8, "tokenizer": "noop", "possible_values": ["good", "bad"]}
    config = {
        **json.loads((make_base(tmp_path) / "config.json").read_text()),
        "conditioners": {"quality": {"type": "lut", "lut": lut}},
        "fuser": {"sum": ["quality"], "cross": [], "prepend": []},
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(MoshiError, match=r"wants conditions \(quality\)"):
        resolve_model(ModelPaths(hf_repo_id=str(tmp_path)))
    files = tmp_path / "model.safetensors", tmp_path / "mimi.safetensors", tmp_path / "tokenizer.model"
    info = CheckpointInfo.from_hf_repo("", *files, config_path=tmp_path / "config.json")
    kwargs = info.lm_config
    torch.manual_seed(0)
    save_file(
        get_moshi_lm(None, copy.deepcopy(kwargs), dtype=torch.float32).state_dict(), tmp_path / "model.safetensors"
    )

    ttt, lora = TTTArgs(enable=True, layers="1"), LoraArgs(enable=True, rank=2)
    model = build_model(info, ttt, lora, dtype=torch.float32)
    base = get_moshi_lm(info.moshi_weights, copy.deepcopy(kwargs), dtype=torch.float32)
    attributes = [ConditionAttributes(text={"quality": word}, tensor={}) for word in ("good", "bad")]
    found = []
    with torch.no_grad():
        for either in (base, model):
            conditions = either.condition_provider(either.condition_provider.prepare(attributes))
            found.append(either(make_codes(), conditions).text_logits)
    assert same(*found) and not same(found[0][0], found[0][1])
    assert not any(p.requires_grad for n, p in model.named_parameters() if n.startswith("condition_provider."))
