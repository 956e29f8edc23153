"""Speech that several tests look at."""

from __future__ import annotations

import pytest
from moshi.models.compression import MimiModel

from ttt_moshi.synthetic.espeak import Utterance
from ttt_moshi.synthetic.material import fitting_speech
from ttt_moshi.synthetic.small_mimi import MimiSize, fit_mimi


@pytest.fixture(scope="session")
def utterances() -> list[Utterance]:
    return fitting_speech(seed=0, sentences=54)


@pytest.fixture(scope="session")
def mimi_size() -> MimiSize:
    return MimiSize(bins=64)


@pytest.fixture(scope="session")
def mimi(utterances: list[Utterance], mimi_size: MimiSize) -> MimiModel:
    return fit_mimi(utterances, mimi_size)
