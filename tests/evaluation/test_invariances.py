"""What must not matter to a score: order, batch, chunks, streaming, neighbours, evaluation itself, a closed gate."""

import hashlib
from itertools import pairwise

import pytest
import torch
from torch.overrides import TorchFunctionMode

from ttt_moshi.evaluation import score
from ttt_moshi.evaluation.scoring.chunked import score_in_chunks
from ttt_moshi.evaluation.scoring.sampled_text import score_with_sampled_text
from ttt_moshi.evaluation.scoring.score import Scores, valid_tokens
from ttt_moshi.evaluation.scoring.scorer import ModelScorer, ScoringOptions

B = 4  # mini-batch of the TTT layers
MODELS = [("linear", "speech"), ("mlp", "speech"), ("mlp", "paper_lm"), ("linear", "video_causal")]
kinds = pytest.mark.parametrize(("inner", "preset"), MODELS)


def close(a: Scores, b: Scores, atol: float = 1e-4) -> None:
    assert torch.equal(a.mask, b.mask)
    torch.testing.assert_close(a.nll, b.nll, atol=atol, rtol=0, equal_nan=True)


def padded(new_codes, lengths: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    codes = new_codes(len(lengths), max(lengths))
    for row, length in zip(codes, lengths, strict=True):
        row[:, length:] = -1
    return codes, torch.tensor(lengths)


@kinds
def test_order_and_batch_size_do_not_matter(new_ttt_model, new_codes, inner, preset):
    model = new_ttt_model(inner, preset)
    codes, frames = padded(new_codes, [33, 20, 7, 33, 5, 1, 18, 26])
    together = score(model, codes, frames)
    order = torch.tensor([3, 0, 6, 5, 1, 7, 2, 4])
    shuffled = score(model, codes[order], frames[order])
    close(Scores(together.nll[order], together.mask[order]), shuffled)
    for row, length in enumerate(frames.tolist()):
        alone = score(model, codes[row : row + 1, :, :length])
        close(alone, Scores(together.nll[row : row + 1, :, :length], together.mask[row : row + 1, :, :length]))


@kinds
@pytest.mark.parametrize("chunk", [1, 7, B, B + 1, 64])
def test_chunks_equal_the_whole_beyond_the_window(new_ttt_model, new_codes, inner, preset, chunk):
    model = new_ttt_model(inner, preset, context=16)
    codes, frames = padded(new_codes, [70, 41, 66])
    close(score_in_chunks(model, codes, frames, chunk), score(model, codes, frames))


class Keys(TorchFunctionMode):
    """Notes how many keys each temporal attention looks at; the depth transformer has a row for every frame."""

    def __init__(self, rows: int):
        super().__init__()
        self.rows, self.seen = rows, []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is torch.nn.functional.scaled_dot_product_attention and len(args[0]) == self.rows:
            self.seen.append(args[1].shape[2])
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("window", [40, 70, 1000])
def test_a_window_wider_than_what_was_heard_costs_and_changes_nothing(new_ttt_model, new_codes, window):
    model = new_ttt_model("linear", "speech", context=window)
    codes, frames = padded(new_codes, [70, 41])
    whole = score(model, codes, frames)
    with Keys(rows=2) as keys:
        in_chunks = score_in_chunks(model, codes, frames, 16)
    close(in_chunks, whole)
    heard = [*range(16, 70, 16), 70]
    expected = {min(stop + 1, window) - 1 + stop - start for start, stop in pairwise([0, *heard])}
    assert set(keys.seen) == expected
    assert model.context == window and model.layers[0].self_attn.context == window


@kinds
def test_one_frame_at_a_time_in_the_official_streaming_mode_equals_the_whole(new_ttt_model, new_codes, inner, preset):
    model = new_ttt_model(inner, preset, context=16)
    codes = new_codes(2, 40)
    T, scored = codes.shape[-1], 1 + model.dep_q
    steps = model._get_initial_token().repeat(2, 1, T + 1)
    for k, delay in enumerate(model.delays):
        steps[:, k, 1 + delay :] = codes[:, k, : T - delay]
    nll = torch.full((2, scored, T), float("nan"))
    with torch.no_grad(), model.streaming(2):
        for t in range(T):
            hidden, text = model.forward_text(steps[..., t : t + 1])
            audio = model.forward_depformer_training(steps[..., t + 1 : t + 2], hidden)
            for k in range(scored):
                logits = text[:, 0, 0] if k == 0 else audio[:, k - 1, 0]
                frame = t - model.delays[k]
                if frame >= 0:
                    nll[:, k, frame] = -logits.log_softmax(-1).gather(-1, codes[:, k, frame, None])[:, 0]
    mask = valid_tokens(model, codes)
    close(Scores(nll.masked_fill(~mask, float("nan")), mask), score(model, codes))


@kinds
def test_the_first_member_of_a_pair_teaches_the_second_nothing(new_ttt_model, new_codes, inner, preset):
    scorer = ModelScorer(new_ttt_model(inner, preset), "s")
    codes = new_codes(2, 30)
    frames = torch.tensor([30])
    a_first = [scorer.score(codes[i : i + 1], frames).nll for i in (0, 1)]
    b_first = [scorer.score(codes[i : i + 1], frames).nll for i in (1, 0)]
    for x, y in zip(a_first, reversed(b_first), strict=True):
        assert torch.equal(x.nan_to_num(), y.nan_to_num())


def fingerprint(model) -> str:
    digest = hashlib.sha256()
    for name, value in [*model.named_parameters(), *model.named_buffers()]:
        digest.update(name.encode() + value.detach().numpy().tobytes())
    return digest.hexdigest()


@kinds
@pytest.mark.parametrize("chunk", [0, 5])
def test_evaluation_changes_no_weight_and_no_mode(new_ttt_model, new_codes, inner, preset, chunk):
    model = new_ttt_model(inner, preset).train()
    model.transformer.layers[0].eval()
    before, modes = fingerprint(model), [part.training for part in model.modules()]
    in_training = ModelScorer(model, "s", ScoringOptions(chunk_frames=chunk)).score(
        new_codes(2, 30), torch.tensor([30, 30])
    )
    assert fingerprint(model) == before
    assert [part.training for part in model.modules()] == modes
    assert all(p.grad is None for p in model.parameters())
    in_eval = ModelScorer(model.eval(), "s", ScoringOptions(chunk_frames=chunk)).score(
        new_codes(2, 30), torch.tensor([30, 30])
    )
    assert torch.equal(in_training.nll.nan_to_num(), in_eval.nll.nan_to_num())


@kinds
def test_a_closed_gate_is_the_base_model_bit_for_bit(new_ttt_model, new_model, new_codes, inner, preset):
    model, base = new_ttt_model(inner, preset), new_model(seed=1)
    base.load_state_dict({k: v for k, v in model.state_dict().items() if ".ttt." not in k})
    codes = new_codes(2, 30)
    open_gate, expected = score(model, codes).nll, score(base, codes).nll
    assert not torch.allclose(open_gate.nan_to_num(), expected.nan_to_num(), atol=1e-2)
    for name, parameter in model.named_parameters():
        if "gating_alpha" in name:
            torch.nn.init.zeros_(parameter)
    assert torch.equal(score(model, codes).nll.nan_to_num(), expected.nan_to_num())


def test_the_window_and_position_code_are_those_of_the_model(new_model, new_codes):
    """Evaluation neither widens attention nor changes its rotary period: beyond the window nothing is seen."""
    model = new_model(context=8, num_layers=1)
    codes = new_codes(1, 40)
    other = codes.clone()
    other[..., :20] = new_codes(1, 40, seed=9)[..., :20]
    same = (score(model, codes).nll == score(model, other).nll)[0, :, 30:-1]
    assert same.all()
    assert model.context == 8


def test_sampled_text_of_a_model_that_always_says_one_word_is_given_text(new_model, new_codes):
    """The text head is made certain; then every sample is that text, and the estimate is the exact conditional."""
    model = new_model()
    torch.nn.init.zeros_(model.text_linear.weight)
    model.text_linear.bias = torch.nn.Parameter(torch.zeros(40))
    model.text_linear.bias.data[17] = 100.0
    codes = new_codes(2, 15)
    given = codes.clone()
    given[:, 0] = 17
    expected = score(model, given)
    frames = torch.tensor([15, 15])
    for samples in (1, 4):
        found = score_with_sampled_text(model, codes, frames, samples, seed=0)
        assert not found.mask[:, 0].any()
        torch.testing.assert_close(found.nll[:, 1:], expected.nll[:, 1:], equal_nan=True, atol=1e-4, rtol=0)


def test_sampled_text_estimates_the_marginal(new_model, new_codes):
    """With a text vocabulary of three words and two frames the marginal is a sum over nine texts."""
    model = new_model(text_card=3, existing_text_padding_id=2)
    codes = new_codes(1, 2)
    joint = []
    for text in [(a, b) for a in range(3) for b in range(3)]:
        codes[0, 0] = torch.tensor(text)
        nll = score(model, codes).nll[0]
        joint.append(-nll[nll.isfinite()].sum())
    # p(audio) = sum over texts of p(text, audio); the last frame's acoustic codes are not predicted
    exact = -torch.logsumexp(torch.stack(joint), dim=0)
    found = score_with_sampled_text(model, codes, torch.tensor([2]), 600, seed=0).nll[0]
    assert found[found.isfinite()].sum() == pytest.approx(exact.item(), abs=0.05)


def test_sampled_texts_depend_on_the_row_and_the_seed_alone(new_ttt_model, new_codes):
    model = new_ttt_model()
    codes, frames = padded(new_codes, [12, 9])
    both = score_with_sampled_text(model, codes, frames, 3, seed=1).nll
    alone = score_with_sampled_text(model, codes[1:, :, :9], frames[1:], 3, seed=1).nll
    torch.testing.assert_close(both[1:, :, :9], alone, equal_nan=True, atol=1e-5, rtol=0)
    other = score_with_sampled_text(model, codes, frames, 3, seed=2).nll
    assert not torch.equal(both.nan_to_num(), other.nan_to_num())


def test_controls_switch_off_what_they_say_and_are_other_models_to_the_cache(new_ttt_model, new_model, new_codes):
    model, base = new_ttt_model(), new_model(seed=1)
    base.load_state_dict({k: v for k, v in model.state_dict().items() if ".ttt." not in k})
    codes, frames = new_codes(2, 24), torch.tensor([24, 24])

    def scored(**options) -> torch.Tensor:
        return ModelScorer(model, "s", ScoringOptions(**options)).score(codes, frames).nll.nan_to_num()

    whole = scored()
    assert torch.equal(scored(gate=0.0), score(base, codes).nll.nan_to_num())
    silent = scored(inner_lr=0.0)
    assert not torch.allclose(silent, whole) and not torch.allclose(silent, scored(gate=0.0))
    reset = scored(reset_every=8)
    torch.testing.assert_close(reset[..., :7], whole[..., :7])
    assert not torch.allclose(reset[..., 9:], whole[..., 9:])
    for options in ({"inner_lr": 0.0}, {"reset_every": 8}, {"gate": 0.0}):
        torch.testing.assert_close(scored(**options, chunk_frames=5), scored(**options), atol=1e-4, rtol=0)
    assert torch.equal(scored(), whole)  # nothing stays switched off
    identities = [
        ModelScorer(model, "s", ScoringOptions(**o)).identity
        for o in ({}, {"gate": 0.0}, {"inner_lr": 0.0}, {"reset_every": 8}, {"chunk_frames": 5}, {"sampled_texts": 1})
    ]
    identities += [ModelScorer(model, "other").identity, ModelScorer(new_ttt_model(context=8), "s").identity]
    assert len(set(identities)) == len(identities)
