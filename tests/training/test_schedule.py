"""The learning rate against PyTorch's stateful scheduler."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ttt_moshi.schedule import one_cycle


@settings(deadline=None, max_examples=40)
@given(max_steps=st.integers(5, 300), pct_start=st.floats(0.3, 0.95))
def test_it_is_the_curve_of_one_cycle_lr(max_steps: int, pct_start: float) -> None:
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=1.0, total_steps=max_steps, pct_start=pct_start, cycle_momentum=False
    )
    for step in range(max_steps):
        assert one_cycle(step, max_steps, pct_start) == pytest.approx(scheduler.get_last_lr()[0], rel=1e-9, abs=1e-12)
        optimizer.step()
        if step + 1 < max_steps:
            scheduler.step()


@pytest.mark.parametrize("pct_start", [0.0, 0.05, 0.5, 1.0])
@pytest.mark.parametrize("max_steps", [1, 2, 3, 20])
def test_short_runs_have_a_rate_at_every_step(max_steps: int, pct_start: float) -> None:
    rates = [one_cycle(step, max_steps, pct_start) for step in range(max_steps)]
    assert all(0 < rate <= 1 for rate in rates)


def test_steps_outside_of_the_run_are_refused() -> None:
    with pytest.raises(ValueError, match="step 10 is outside of a run of 10 steps"):
        one_cycle(10, 10, 0.05)
