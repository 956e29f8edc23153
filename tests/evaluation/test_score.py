"""The likelihood of every token: alignment, edges, and models whose answer is known."""

import math

import pytest
import torch
from moshi.models.lm import LMModel

from ttt_moshi.evaluation import EvaluationError, score
from ttt_moshi.evaluation.scoring.score import frame_counts

CARD, TEXT_CARD = 24, 40


def test_equals_a_step_by_step_computation_from_the_definition(model, new_codes):
    """An independent path: delayed tokens are fed one growing prefix at a time, and each head's prediction at the last
    step is compared with the token that this head must produce there (its own delay later)."""
    codes = new_codes(1, 7)
    found = score(model, codes)
    initial = model._get_initial_token()
    delayed = initial.repeat(1, 1, 8 + max(model.delays))
    for k, delay in enumerate(model.delays):
        delayed[:, k, 1 + delay : 1 + delay + 7] = codes[:, k]
    for step in range(7):
        hidden, text_logits = model.forward_text(delayed[:, :, : step + 1])
        audio = model.forward_depformer_training(delayed[:, :, step + 1 : step + 2], hidden[:, -1:])
        text = -torch.log_softmax(text_logits[0, 0, -1], -1)[codes[0, 0, step]]
        assert found.nll[0, 0, step] == pytest.approx(text.item(), abs=1e-5)
        for k in range(1, 9):
            frame = step - model.delays[k]
            if frame >= 0:
                expected = -torch.log_softmax(audio[0, k - 1, 0], -1)[codes[0, k, frame]]
                assert found.nll[0, k, frame] == pytest.approx(expected.item(), abs=1e-5)


def test_padding_a_recording_changes_neither_its_scores_nor_its_count(model, new_codes):
    codes = new_codes(1, 20)
    padded = torch.nn.functional.pad(codes, (0, 13), value=-1)
    alone, in_batch = score(model, codes), score(model, padded)
    assert int(alone.mask[0, 2].sum()) == int(in_batch.mask[0, 2].sum()) == 19
    assert torch.equal(alone.mask, in_batch.mask[..., :20])
    assert not in_batch.mask[..., 20:].any()
    torch.testing.assert_close(alone.nll, in_batch.nll[..., :20], equal_nan=True, atol=1e-5, rtol=0)


def test_scores_do_not_depend_on_the_batch_or_its_order(model, new_codes):
    codes = new_codes(8, 15)
    together = score(model, codes).nll
    for row in range(8):
        torch.testing.assert_close(score(model, codes[row : row + 1]).nll[0], together[row], equal_nan=True)
    reverse = score(model, codes.flip(0)).nll.flip(0)
    torch.testing.assert_close(reverse, together, equal_nan=True)


def test_length_is_explicit_when_the_last_frames_are_absent_but_real(model, new_codes):
    codes = new_codes(1, 10)
    codes[:, :, 8:] = -1
    assert frame_counts(codes).tolist() == [8]
    shorter = score(model, codes)
    longer = score(model, codes, frames=torch.tensor([10]))
    assert int(shorter.mask[0, 2].sum()) == 7  # the delayed codebook has no prediction for frame 7 of 8 ...
    assert int(longer.mask[0, 2].sum()) == 8  # ... and has one when the recording goes on


def test_absent_text_is_not_scored_and_user_tokens_never_are(model, new_codes):
    codes = new_codes(2, 9)
    codes[:, 0] = -1
    found = score(model, codes)
    assert found.nll.shape == (2, 9, 9)
    assert not found.mask[:, 0].any()
    assert torch.isnan(found.nll[:, 0]).all()


def test_masked_tokens_are_nan_so_that_a_careless_sum_shows_itself(model, new_codes):
    found = score(model, new_codes(1, 5))
    assert torch.isnan(found.nll.sum())
    assert torch.isfinite(found.nll[found.mask]).all()


def test_prefix_frames_are_given_not_predicted(new_codes):
    class WithPrefix(LMModel):
        def forward(self, codes, condition_tensors=None, prefix_lengths=None):
            self.seen = prefix_lengths
            return super().forward(codes, condition_tensors)

    prefixed = WithPrefix(
        delays=[0, 0, 1, 0, 1], n_q=4, dep_q=2, card=8, text_card=9, dim=16, num_heads=2, num_layers=1, context=9,
        depformer_dim=16, depformer_num_heads=2, depformer_num_layers=1, depformer_weights_per_step=True,
        depformer_multi_linear=True, depformer_pos_emb="none", gating="silu", norm="rms_norm_f32",
    ).eval()  # fmt: skip
    codes = new_codes(2, 8)[:, :5] % 8
    lengths = torch.tensor([0, 3])
    found = score(prefixed, codes, prefix_lengths=lengths)
    assert torch.equal(prefixed.seen, lengths)
    assert found.mask[0, 1].all()
    assert found.mask[1, 1].tolist() == [False] * 3 + [True] * 5
    assert found.mask[1, 2].tolist() == [False] * 3 + [True] * 4 + [False]


def make_uniform(model):
    for head in [model.text_linear, *model.linears]:
        torch.nn.init.zeros_(head.weight)
    return model


def test_a_uniform_model_scores_ln_card_in_every_component(new_model, new_codes):
    found = score(make_uniform(new_model()), new_codes(2, 11))
    text, audio = found.nll[:, 0][found.mask[:, 0]], found.nll[:, 1:][found.mask[:, 1:]]
    torch.testing.assert_close(text, torch.full_like(text, math.log(TEXT_CARD)))
    torch.testing.assert_close(audio, torch.full_like(audio, math.log(CARD)))


def test_a_model_that_knows_the_answer_scores_zero(new_model, new_codes):
    """It knows because each head always says the one token that the recording repeats: any shift or swap of channels
    would show as a large number."""
    model = make_uniform(new_model())
    codes = torch.arange(17).view(1, 17, 1).repeat(1, 1, 12)
    codes[:, 0] = 30
    for k, head in enumerate([model.text_linear, *model.linears]):
        head.bias = torch.nn.Parameter(torch.zeros(head.out_features))
        head.bias.data[codes[0, k, 0]] = 200.0
    found = score(model, codes)
    assert found.nll[found.mask].abs().max() == 0.0
    wrong = codes.clone()
    wrong[:, 1:9] = codes[:, 1:9].roll(1, dims=1)
    assert score(model, wrong).nll[:, 1:][found.mask[:, 1:]].min() > 100


def test_a_prediction_that_is_not_finite_is_an_error_with_its_place(new_model, new_codes):
    model = new_model()
    model.linears[3].weight.data[:] = float("nan")
    with pytest.raises(EvaluationError, match="channel 4, frame 0"):
        score(model, new_codes(1, 4))


def test_low_precision_models_are_scored_in_float32(new_model, new_codes):
    model, codes = new_model(), new_codes(1, 12)
    exact = score(model, codes)
    rounded = score(model.bfloat16(), codes)
    assert rounded.nll.dtype == torch.float32
    # bfloat16 logits, float32 log-softmax: the normaliser keeps more digits than bfloat16 has.
    values = rounded.nll[rounded.mask]
    assert not torch.equal(values, values.bfloat16().float())
    torch.testing.assert_close(values, exact.nll[exact.mask], atol=0.2, rtol=0.05)
