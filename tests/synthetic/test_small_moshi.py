"""The small language model and its pre-training."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from moshi.models import loaders

from ttt_moshi.config import ModelPaths
from ttt_moshi.data.codec import Codec
from ttt_moshi.data.corpus import Corpus
from ttt_moshi.data.loader import ClipLoader, EvalSet
from ttt_moshi.moshi import resolve_model
from ttt_moshi.synthetic.material import TINY, Material
from ttt_moshi.synthetic.small_moshi import (
    Pretraining,
    hide_text,
    learning_rate,
    lm_config,
    mean_nll,
    new_lm,
    pretrain,
    pretraining_loss,
)

PLAN = Pretraining(steps=4, batch_size=2, clip_seconds=2.0)


@pytest.fixture(scope="module")
def corpus(tiny_material: Material) -> Corpus:
    info = resolve_model(ModelPaths(hf_repo_id=str(tiny_material.base_model)))
    codec = Codec(info.get_mimi(), info.mimi_config)
    return Corpus(str(tiny_material.train_data), codec, info.get_text_tokenizer(), PLAN.clip_seconds)


def test_config_has_the_keys_of_moshi_7b() -> None:
    assert lm_config(TINY.moshi, 160, 64).keys() == loaders._lm_kwargs.keys()
    assert lm_config(TINY.moshi, 160, 64)["delays"] == loaders._lm_kwargs["delays"]


def test_pretraining_learns_and_is_deterministic(corpus: Corpus) -> None:
    config = lm_config(TINY.moshi, 160, 64)
    losses: list[list[float]] = [[], []]
    states = []
    for seen in losses:
        model = new_lm(config, seed=3)

        def note(step: int, steps: int, loss: float, seen: list[float] = seen) -> None:
            seen.append(loss)

        pretrain(model, ClipLoader(corpus, seed=1, shuffle=True), PLAN, note)
        states.append(model.state_dict())
        assert not model.training
    assert len(losses[0]) == PLAN.steps
    assert losses[0][-1] < losses[0][0]
    assert losses[0] == losses[1]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_new_model_depends_on_the_seed_alone() -> None:
    config = lm_config(replace(TINY.moshi, layers=1), 160, 64)
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = new_lm(config, 0).state_dict()
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    second, other = new_lm(config, 0).state_dict(), new_lm(config, 1).state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(first["text_emb.weight"], other["text_emb.weight"])


def test_a_model_that_knows_nothing_scores_the_logarithm_of_the_vocabulary(corpus: Corpus) -> None:
    model = new_lm(lm_config(TINY.moshi, 160, 64), seed=0)
    torch.nn.init.zeros_(model.text_linear.weight)
    for linear in model.linears:
        torch.nn.init.zeros_(linear.weight)
    nll = mean_nll(model, EvalSet(corpus))
    expected = {"text_word": 160, "text_padding": 160, "semantic": 64, "acoustic": 64}
    assert nll == pytest.approx({name: math.log(card) for name, card in expected.items()}, rel=1e-5)


def test_loss_weights_padding_half_and_semantics_eightfold() -> None:
    nll, mask = torch.zeros(1, 9, 2), torch.ones(1, 9, 2, dtype=torch.bool)
    targets = torch.full((1, 9, 2), 7)
    targets[0, 0, 1] = 3
    nll[0, 0] = torch.tensor([1.0, 4.0])
    nll[0, 1] = 1.0
    assert pretraining_loss(nll, mask, targets).item() == pytest.approx((1 + 0.5 * 4) / 1.5 + 16 / (16 + 14))


def test_hidden_text_depends_on_the_position_alone() -> None:
    codes = torch.arange(20 * 17 * 3).view(20, 17, 3)
    together = hide_text(codes, 0, 0.4)
    hidden = (together[:, 0] == -1).all(1)
    assert hidden.sum() == 8
    assert torch.equal(together[~hidden], codes[~hidden])
    assert torch.equal(together[:, 1:], codes[:, 1:])
    assert torch.equal(torch.cat([hide_text(codes[k : k + 4], k, 0.4) for k in range(0, 20, 4)]), together)
    assert torch.equal(hide_text(codes, 0, 0.0), codes)
    assert (hide_text(codes, 0, 1.0)[:, 0] == -1).all()


def test_learning_rate_rises_to_its_peak_and_falls() -> None:
    plan = Pretraining(steps=100, lr=1.0, warmup=0.1)
    rates = [learning_rate(plan, step) for step in range(100)]
    assert rates[9] == max(rates) == 1.0
    assert rates[:10] == sorted(rates[:10]) and rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[-1] == pytest.approx(0.01, abs=0.001)
