"""When does a model speak? Measures of Full-Duplex-Bench (arXiv 2503.04721) on words with times.

The model has taken the turn when it says anything but a backchannel, which is at most three words within less than a
second. All times are seconds from the start of the user's recording.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ttt_moshi.data.words import TimedWord

BACKCHANNEL_WORDS, BACKCHANNEL_SEC = 3, 1.0
PAUSE_SEC = 1.0  # of silence, between two utterances
BIN_SEC = 0.2  # of the distribution of backchannels over time


def takes_over(words: Sequence[TimedWord]) -> bool:
    """Whether these words, all of them together, are more than silence or one backchannel."""
    return bool(words) and not _is_backchannel(words)


def latency(words: Sequence[TimedWord], user_end: float) -> float:
    """Seconds from the end of the user's turn to the first of these words; 0 where it came before."""
    return max(0.0, min(word.start for word in words) - user_end)


def utterances(words: Sequence[TimedWord]) -> list[list[TimedWord]]:
    """Words in the order of their starts, cut where nothing is said for `PAUSE_SEC`."""
    found: list[list[TimedWord]] = []
    for word in sorted(words, key=lambda word: word.start):
        if found and word.start - max(w.end for w in found[-1]) < PAUSE_SEC:
            found[-1].append(word)
        else:
            found.append([word])
    return found


def backchannels(words: Sequence[TimedWord]) -> list[list[TimedWord]]:
    """The utterances that are backchannels."""
    return [utterance for utterance in utterances(words) if _is_backchannel(utterance)]


def over_time(starts: Sequence[float], seconds: float) -> np.ndarray:
    """How often in every bin of `BIN_SEC`; float64 [bins]."""
    bins = max(1, int(np.ceil(seconds / BIN_SEC - 1e-9)))
    places = [min(int(start / BIN_SEC + 1e-9), bins - 1) for start in starts]
    return np.bincount(places, minlength=bins).astype(np.float64)


def jensen_shannon(first: np.ndarray, second: np.ndarray) -> float:
    """Jensen-Shannon divergence in bits, in [0, 1], of two distributions given by weights; of a shorter one, the rest
    is 0. A model that never does a thing is as far from one that does as can be."""
    size = max(len(first), len(second))
    p, q = (np.pad(weights, (0, size - len(weights))) for weights in (first, second))
    if not p.sum() or not q.sum():
        return float(p.sum() != q.sum())
    p, q = p / p.sum(), q / q.sum()
    return float((_entropy((p + q) / 2) - (_entropy(p) + _entropy(q)) / 2).clip(0.0, 1.0))


def _entropy(p: np.ndarray) -> np.floating:
    present = p[p > 0]
    return -(present * np.log2(present)).sum()


def _is_backchannel(words: Sequence[TimedWord]) -> bool:
    span = max(word.end for word in words) - min(word.start for word in words)
    return len(words) <= BACKCHANNEL_WORDS and span < BACKCHANNEL_SEC
