"""When does a model speak? Measures of Full-Duplex-Bench (arXiv 2503.04721) on words with times.

The model has taken the turn when it says anything but a backchannel, which is at most three words within less than a
second. All times are seconds from the start of the user's recording.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from ttt_moshi.data.words import TimedWord

BACKCHANNEL_WORDS, BACKCHANNEL_SEC = 3, 1.0
PAUSE_SEC = 1.0  # of silence, between two utterances
BIN_SEC = 0.2  # of the distribution of backchannels over time
EPSILON = 1e-10  # added to every bin, as the benchmark does


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


def apart_from_people(found: Sequence[Sequence[TimedWord]], seconds: float, people: np.ndarray) -> float:
    """How far backchannels are over time from those of people: the benchmark's JSD, the smaller the better.

    It is the Jensen-Shannon distance of the two distributions over bins of `BIN_SEC`. Without a backchannel it is 1,
    more than any distance (0.83 at most).

    Args:
        seconds: length of the user's recording.
        people: weights of theirs in bins that divide it evenly; where those are of another number, weights of ours are
            read off the straight lines between them.
    """
    if not found:
        return 1.0
    own = over_time([(words[0].start, max(word.end for word in words)) for words in found], seconds) + EPSILON
    theirs = np.interp(np.linspace(0, 1, len(own)), np.linspace(0, 1, len(people)), people)
    return jensen_shannon(own, theirs)


def over_time(spans: Sequence[tuple[float, float]], seconds: float) -> np.ndarray:
    """How many of these spans [start, end] lie in every bin of `BIN_SEC`, or in a part of it; float64 [bins].

    What lies before 0 or after the last bin is in none.
    """
    counts = np.zeros(int(seconds / BIN_SEC) + 1)
    for start, end in spans:
        counts[max(0, math.floor(start / BIN_SEC)) : max(0, math.floor(end / BIN_SEC) + 1)] += 1
    return counts


def jensen_shannon(first: np.ndarray, second: np.ndarray) -> float:
    """Jensen-Shannon distance, in [0, sqrt(ln 2)], of two distributions given by as many weights, [n]: the square root
    of their divergence in nats."""
    p, q = first / first.sum(), second / second.sum()
    divergence = _entropy((p + q) / 2) - (_entropy(p) + _entropy(q)) / 2
    return float(np.sqrt(max(divergence, 0.0)))


def _entropy(p: np.ndarray) -> float:
    present = p[p > 0]
    return float(-(present * np.log(present)).sum())


def _is_backchannel(words: Sequence[TimedWord]) -> bool:
    span = max(word.end for word in words) - min(word.start for word in words)
    return len(words) <= BACKCHANNEL_WORDS and span < BACKCHANNEL_SEC
