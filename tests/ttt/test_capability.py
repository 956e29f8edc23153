"""What the default recipe can do before any outer training; the full figures come from `make bench-ttt`."""

from __future__ import annotations

import pytest

from benchmarks.ttt import capability


def test_recall_of_64_pairs_after_one_pass():
    assert capability.recall("speech", 1.0) <= 0.40
    assert capability.recall("speech", 1.0, passes=8) <= 0.02
    assert capability.recall("video_causal", 0.1) >= 0.8, (
        "the published recipe would do as well: the bar proves nothing"
    )


def test_position_in_the_mini_batch_does_not_show():
    assert capability.ripple("speech", 1.0, T=1024) <= 1.2
    assert capability.ripple("paper_lm", 1.0, T=1024) >= 2.0


@pytest.mark.parametrize("kind", ["independent", "constant", "speech-like"])
def test_ten_times_the_step_size_stays_bounded(kind):
    found = capability.stability(10.0, kind, T=1200)
    assert found["finite"] == 1.0
    assert found["growth"] <= 6.0
    assert found["max_abs_out"] <= 10.0


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["independent", "constant", "speech-like"])
def test_thirty_thousand_frames_stay_bounded(kind):
    found = capability.stability(10.0, kind)
    assert found["finite"] == 1.0
    assert found["growth"] <= 6.0
    assert found["max_abs_out"] <= 10.0


def test_gradient_reaches_two_thousand_frames_back():
    assert 1e-3 <= capability.gradient_reach() <= 10.0
