"""Draws follow the distribution, and depend on nothing but their conversation."""

import torch

from ttt_moshi.inference.draws import choose, exponential

ROWS = 40_000


def draws(logits, temperature=1.0, top_k=0, frame=0, codebook=0, seeds=None):
    """`choose` for many conversations at once."""
    seeds = torch.arange(ROWS) if seeds is None else seeds
    frames = torch.full_like(seeds, frame)
    return choose(logits.expand(len(seeds), -1), temperature, top_k, seeds, frames, codebook)


def chi_square(tokens, probabilities) -> float:
    expected = probabilities * len(tokens)
    counts = torch.bincount(tokens, minlength=len(probabilities)).double()
    return float(((counts - expected) ** 2 / expected).sum())


def test_tokens_come_as_often_as_the_model_says():
    """Over conversations, over frames and over codebooks; 20 cells, so 43.8 is exceeded once in a thousand times."""
    logits = torch.randn(20, generator=torch.Generator().manual_seed(0)).double().float()
    wanted = (logits / 0.8).softmax(-1).double()
    assert chi_square(draws(logits, 0.8), wanted) < 43.8
    frames = torch.arange(ROWS)
    alone = choose(logits.expand(ROWS, -1), 0.8, 0, torch.full_like(frames, 7), frames, 3)
    assert chi_square(alone, wanted) < 43.8


def test_draws_of_neighbouring_keys_have_nothing_to_do_with_one_another():
    logits = torch.zeros(4)
    first = draws(logits)
    others = [draws(logits, frame=1), draws(logits, codebook=1), draws(logits, seeds=torch.arange(ROWS) + 1)]
    for other in others:
        assert chi_square(4 * first + other, torch.full((16,), 1 / 16, dtype=torch.double)) < 37.7  # 15 degrees


def test_only_the_likeliest_are_candidates():
    logits = torch.linspace(0, 1, 30)
    assert set(draws(logits, top_k=3).tolist()) == {27, 28, 29}
    assert set(draws(logits, temperature=0.0).tolist()) == {29}
    assert len(set(draws(logits).tolist())) == 30


def test_a_draw_is_the_same_in_any_company():
    logits = torch.randn(9, 50, generator=torch.Generator().manual_seed(1))
    seeds, frames = torch.arange(9) * 2**59, torch.arange(9)
    together = choose(logits, 0.7, 25, seeds, frames, 2)
    for row in range(9):
        only = slice(row, row + 1)
        assert together[row] == choose(logits[only], 0.7, 25, seeds[only], frames[only], 2)[0]


def test_exponentials_are_finite_and_of_mean_one():
    tokens = torch.arange(2048).expand(500, -1)
    found = exponential(torch.arange(500), torch.zeros(500, dtype=torch.int64), 0, tokens)
    assert bool(found.isfinite().all()) and float(found.min()) > 0
    assert abs(float(found.mean()) - 1) < 0.01 and abs(float(found.var()) - 1) < 0.02
