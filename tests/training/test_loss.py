"""The objective against the formula of moshi-finetune, written out token by token."""

from __future__ import annotations

import math

import pytest
import torch
from moshi.models.lm import LMModel
from torch import Tensor

from ttt_moshi.training.loss import (
    LossWeights,
    component_names,
    component_sums,
    nll_per_token,
    objective,
    target_mask,
    target_weights,
)

WEIGHTS = LossWeights(first_codebook=100.0, text_padding=0.5, text_padding_ids=(3, 0))
DELAYS = [0, 0, 1, 1, 0, 1, 1]
DEP_Q = 3


def small_model() -> LMModel:
    torch.manual_seed(0)
    return LMModel(
        delays=DELAYS, n_q=6, dep_q=DEP_Q, card=11, text_card=13, dim=32, num_heads=2, num_layers=1, hidden_scale=2,
        causal=True, context=16, norm="rms_norm_f32", gating="silu", positional_embedding="rope", depformer_dim=16,
        depformer_num_heads=2, depformer_num_layers=1, depformer_multi_linear=True, depformer_weights_per_step=True,
        depformer_pos_emb="none", depformer_gating="silu", depformer_context=3,
    )  # fmt: skip


def random_codes(rows: int, frames: int) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    codes = torch.randint(0, 11, (rows, 7, frames), generator=generator)
    codes[:, 0][torch.rand(rows, frames, generator=generator) < 0.5] = 3
    return codes


def by_hand(model: LMModel, codes: Tensor) -> tuple[float, float]:
    """moshi-finetune's two weighted means, one token at a time in double precision."""
    output = model(codes)
    text, text_weight, audio, audio_weight = 0.0, 0.0, 0.0, 0.0
    for b in range(codes.shape[0]):
        for t in range(codes.shape[2]):
            if output.text_mask[b, 0, t]:
                target = int(codes[b, 0, t])
                weight = 0.5 if target in (3, 0) else 1.0
                text -= weight * float(output.text_logits[b, 0, t].double().log_softmax(-1)[target])
                text_weight += weight
            for k in range(DEP_Q):
                if output.mask[b, k, t]:
                    weight = 100.0 if k == 0 else 1.0
                    target = int(codes[b, 1 + k, t])
                    audio -= weight * float(output.logits[b, k, t].double().log_softmax(-1)[target])
                    audio_weight += weight
    return text / text_weight, audio / audio_weight


@torch.no_grad()
def test_one_micro_batch_is_moshi_finetunes_loss() -> None:
    model, codes = small_model(), random_codes(2, 9)
    codes[1, :, 6:] = -1
    output = model(codes)
    mask = target_mask(codes, DELAYS, DEP_Q)
    assert torch.equal(mask, torch.cat([output.text_mask, output.mask], dim=1))
    nll = nll_per_token(output.text_logits, output.logits, codes, mask)
    weights = target_weights(codes, mask, WEIGHTS)
    text, audio = by_hand(model, codes)
    got = objective(nll, weights, weights[:, 0].sum(), weights[:, 1:].sum())
    assert float(got) == pytest.approx(text + audio, rel=1e-5)


@torch.no_grad()
def test_the_parts_of_a_split_batch_add_up_to_the_whole() -> None:
    model, codes = small_model(), random_codes(3, 8)
    codes[0, :, 3:] = -1
    mask = target_mask(codes, DELAYS, DEP_Q)
    weights = target_weights(codes, mask, WEIGHTS)
    text_total, audio_total = weights[:, 0].sum(), weights[:, 1:].sum()

    def loss(rows: slice) -> float:
        output = model(codes[rows])
        nll = nll_per_token(output.text_logits, output.logits, codes[rows], mask[rows])
        return float(objective(nll, weights[rows], text_total, audio_total))

    assert loss(slice(0, 1)) + loss(slice(1, 3)) == pytest.approx(loss(slice(0, 3)), rel=1e-5)


def test_a_given_prefix_is_not_predicted() -> None:
    codes = random_codes(2, 6)
    mask = target_mask(codes, DELAYS, DEP_Q, torch.tensor([0, 4]))
    assert mask[0, 0].all()
    assert not mask[1, :, :4].any()
    assert mask[1, 0, 4:].all()


def test_components_add_up_and_keep_words_and_padding_apart() -> None:
    codes = random_codes(2, 10)
    mask = target_mask(codes, DELAYS, DEP_Q)
    values = torch.rand(mask.shape) * mask
    sums = component_sums(values, codes, WEIGHTS)
    assert component_names(DEP_Q) == ["text_words", "text_padding", "semantic", "acoustic_2", "acoustic_3"]
    padding = (codes[:, 0] == 3) | (codes[:, 0] == 0)
    expected = [values[:, 0][~padding].sum(), values[:, 0][padding].sum(), *(values[:, k].sum() for k in (1, 2, 3))]
    assert torch.allclose(sums.float(), torch.stack(expected))


def test_logits_beyond_a_streams_delay_do_not_spread_nan() -> None:
    codes = random_codes(1, 5)
    mask = target_mask(codes, DELAYS, DEP_Q)
    text, audio = torch.zeros(1, 1, 5, 13), torch.full((1, DEP_Q, 5, 11), math.nan)
    audio[:, 0] = 0
    audio[:, 1:, :4] = 0
    audio.requires_grad_()
    nll = nll_per_token(text, audio, codes, mask)
    nll.sum().backward()
    assert torch.isfinite(nll).all()
    assert float(nll[0, 1, 0].detach()) == pytest.approx(math.log(11))
