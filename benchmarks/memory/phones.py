"""A language that is the same for all, in a voice that is new in every recording.

Moshi speaks phones of one fixed Markov chain. Which semantic code stands for which phone is drawn anew for every
recording. So the more of a recording has been heard, the better its next code can be predicted, and all of that is
knowledge of this recording: nothing trained into the weights helps with it.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np

from ttt_moshi.synthetic.recall.recordings import write_data_set
from ttt_moshi.synthetic.recall.task import ABSENT, CARD, MOSHI_SEMANTIC, STREAMS, Example

PHONES = 24
_CHAIN_SEED = 2_000_000


def chain() -> np.ndarray:
    """Transition probabilities, float64 [PHONES, PHONES]; each phone has a few likely successors."""
    return np.random.default_rng(_CHAIN_SEED).dirichlet(np.full(PHONES, 0.15), PHONES)


def entropy_rate() -> float:
    """Nats per phone for a listener who knows the chain and the voice: no model can do better on average."""
    transitions = chain()
    stationary = np.linalg.matrix_power(transitions, 10_000)[0]
    logs = np.log(transitions, out=np.zeros_like(transitions), where=transitions > 0)
    return float(-(stationary[:, None] * transitions * logs).sum())


def make_document(rng: np.random.Generator, frames: int) -> Example:
    """A recording of one voice. Everything but Moshi's semantic codebook is absent."""
    cumulative = chain().cumsum(axis=1)
    voice = rng.permutation(CARD)[:PHONES]
    draws = rng.random(frames)
    phones = np.empty(frames, np.int64)
    phone = int(rng.integers(PHONES))
    for frame in range(frames):
        phone = min(int(np.searchsorted(cumulative[phone], draws[frame])), PHONES - 1)
        phones[frame] = phone
    codes = np.full((STREAMS, frames), ABSENT)
    codes[MOSHI_SEMANTIC] = voice[phones]
    return Example(codes, given=0)


def write_recordings(folder: Path, lengths: Iterable[int], seed: int) -> Path:
    """One recording for each length in frames; returns the jsonl file that lists them in order."""
    rng = np.random.default_rng([seed, 1])
    return write_data_set(folder, (make_document(rng, frames) for frames in lengths))
