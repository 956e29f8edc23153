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


def test_delta_holds_more_and_silence_does_not_take_it():
    """64 pairs in heads of 128, and the same after ten minutes of frames that nearly look alike."""
    at_once = capability.left("delta", 64)
    assert at_once <= 0.20 < 0.30 <= capability.left("mlp", 64)
    assert capability.left("delta", 64, silent=7500) <= at_once + 0.05
    assert capability.left("mlp", 64, K=64, silent=64) >= 2 * capability.left("mlp", 64, K=64), (
        "frames written together would not overshoot: the bar proves nothing"
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
