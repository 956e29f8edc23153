"""DNSMOS over the minutes of a conversation. Needs `make test-extras`, but for what is said without the package."""

import json
from dataclasses import replace

import numpy as np
import pytest
import soxr

from tests.evaluation.test_hour import hour
from ttt_moshi.data.voiced import Span
from ttt_moshi.evaluation.speech_quality import PIECE, RATINGS, Listener
from ttt_moshi.extras import MissingPackageError, installed
from ttt_moshi.synthetic.dialogues import make_dialogues
from ttt_moshi.synthetic.espeak import Voice, speak

SENTENCES = (
    "good morning this is the bakery on market street how can i help you today",
    "we are open from seven in the morning until six in the evening on every day but sunday",
    "please tell me your name and the number of the house so that i can bring the bread to you tomorrow",
)
# Of the first 9.01 s of these sentences, as `speechmos.dnsmos.run` 0.0.1.1 rates them, clean and in noise.
CLEAN = {"dnsmos_signal": 3.298326, "dnsmos_background": 3.719182, "dnsmos_overall": 2.852240}
NOISY = {"dnsmos_signal": 3.272664, "dnsmos_background": 1.511918, "dnsmos_overall": 1.692139}


def said() -> np.ndarray:
    """15 s at 24 kHz."""
    return np.concatenate([speak(text, Voice("en-us", rate=150)).samples for text in SENTENCES])


def noise(samples: int) -> np.ndarray:
    return (0.05 * np.random.default_rng(0).standard_normal(samples)).astype(np.float32)


@pytest.mark.skipif(installed("speechmos"), reason="this is about its absence")
def test_without_the_package_the_message_installs_it():
    with pytest.raises(MissingPackageError, match=r"DNSMOS needs the package speechmos: pip install .*\[dnsmos\]"):
        Listener()


@pytest.mark.slow  # needs speechmos
def test_the_ratings_are_those_of_the_package():
    listener, clean = Listener(), said()
    for samples, expected in ((clean, CLEAN), (clean + noise(len(clean)), NOISY)):
        piece = soxr.resample(samples, 24_000, 16_000)[:PIECE]
        assert dict(zip(RATINGS, listener.rate(piece), strict=True)) == pytest.approx(expected, abs=1e-3)


@pytest.mark.slow  # needs speechmos
def test_noise_put_in_at_a_minute_is_heard_from_that_minute_on():
    """Five minutes: speech, speech, speech in noise, silence, and one of 40 s."""
    minute = np.tile(said(), 4)[: 60 * 24_000]
    whole = np.concatenate([minute, minute, minute + noise(len(minute)), 0 * minute, minute[: 40 * 24_000]])
    speech = [Span(0, 180), Span(240, 280)]
    blocks = np.array_split(whole, 31)
    found = Listener().rate_minutes(iter(blocks), speech)
    assert [set(one) for one in found] == [set(RATINGS)] * 3 + [set(), set(RATINGS)]
    assert found[1] == pytest.approx(found[0], abs=0.01)
    assert found[0]["dnsmos_background"] - found[2]["dnsmos_background"] > 1
    assert found[0]["dnsmos_overall"] - found[2]["dnsmos_overall"] > 0.5
    assert found[4]["dnsmos_background"] == pytest.approx(found[0]["dnsmos_background"], abs=0.2)
    # A piece in which too little is said is no part of it, and nothing is rated that is shorter than a piece.
    assert Listener().rate_minutes(iter(blocks), [Span(0, 2.9)]) == [{}] * 5
    assert Listener().rate_minutes([minute[: 9 * 24_000]], [Span(0, 9)]) == [{}]


@pytest.mark.slow  # needs speechmos
def test_an_hour_has_a_curve_of_it(tiny_material, tmp_path):
    longer = replace(tiny_material, train_data=make_dialogues(tmp_path / "data", "s", 4))  # of about half a minute
    assert hour(longer, tmp_path / "a", "--minutes", "0.2", "--max_items", "4") == 0
    talk = json.loads((tmp_path / "a" / "results.json").read_text())["tasks"]["hour"]["free_running"]
    assert "dnsmos" not in talk and 1 <= talk["minutes"][0]["dnsmos_overall"]["value"] <= 5
    assert "DNSMOS, speech" in (tmp_path / "a" / "report.md").read_text()
