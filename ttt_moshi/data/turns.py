"""Which voiced spans of a stereo dialogue belong to which turn of its transcript."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ttt_moshi.data.voiced import Span, letter_count

_WIDEST = 60
"""spans that a turn may have, or four times the average where that is more: bounds the search"""


@dataclass
class Turn:
    """Consecutive words of one speaker, and the spans of his channel in which they were probably spoken."""

    channel: int
    words: list[str]
    spans: list[Span]


def assign_spans(turns: Sequence[tuple[int, Sequence[str]]], spans: Sequence[Sequence[Span]]) -> list[Turn]:
    """Turns `(channel, words)` in the order of the transcript, with voiced spans of their channels.

    The spans of both channels, ordered by start, are cut into one block per turn. The cut is the one that fits best: it
    minimises, over all turns, how far the turn's share of its channel's voiced time is from its share of the channel's
    letters, plus the other channel's voiced time inside the block. A turn that no block was found for joins the next
    turn of its speaker, or the one before. So a wrong guess about one turn does not shift all that follow.

    Every channel that has turns must have spans.
    """
    merged = sorted((span.start, span.end, channel) for channel, own in enumerate(spans) for span in own)
    blocks = _best_cut(turns, merged)
    found = [
        Turn(channel, list(words), [Span(start, end) for start, end, owner in merged[a:b] if owner == channel])
        for (channel, words), (a, b) in zip(turns, blocks, strict=True)
    ]
    return [
        turn
        for channel, own in enumerate(spans)
        for turn in _join_empty([turn for turn in found if turn.channel == channel], own)
    ]


def _best_cut(
    turns: Sequence[tuple[int, Sequence[str]]], merged: Sequence[tuple[float, float, int]]
) -> list[tuple[int, int]]:
    n, m = len(merged), len(turns)
    # Voiced seconds of each channel before each span: [channels, n + 1].
    voiced = np.zeros((2, n + 1))
    for i, (start, end, channel) in enumerate(merged):
        voiced[:, i + 1] = voiced[:, i]
        voiced[channel, i + 1] += end - start
    letters = [letter_count(words) for _, words in turns]
    totals = [sum(count for count, (c, _) in zip(letters, turns, strict=True) if c == channel) for channel in (0, 1)]

    best = np.full(n + 1, np.inf)  # cost of the turns so far, if they end before span b
    best[0] = 0.0
    widths = np.zeros((m, n + 1), np.int64)
    for j, (channel, _) in enumerate(turns):
        expected = letters[j] * voiced[channel, -1] / totals[channel]
        cost = best + 2 * expected + 1  # an empty block
        for width in range(1, min(n, max(_WIDEST, 4 * n // m)) + 1):
            own = voiced[channel, width:] - voiced[channel, :-width]
            other = voiced[1 - channel, width:] - voiced[1 - channel, :-width]
            candidate = best[:-width] + np.square(own - expected) / (expected + 0.5) + other
            candidate[own == 0] = np.inf
            better = candidate < cost[width:]
            cost[width:][better] = candidate[better]
            widths[j, width:][better] = width
        best = cost
    # Spans after the last turn are nobody's; they cost what they last.
    end = int(np.argmin(best + voiced[:, -1].sum() - voiced.sum(axis=0)))
    blocks = []
    for j in reversed(range(m)):
        start = end - int(widths[j, end])
        blocks.append((start, end))
        end = start
    return blocks[::-1]


def _join_empty(turns: list[Turn], spans: Sequence[Span]) -> list[Turn]:
    """The turns of one channel without those that have no spans; every word is kept."""
    joined: list[Turn] = []
    waiting: list[str] = []
    for turn in turns:
        if turn.spans:
            joined.append(Turn(turn.channel, waiting + turn.words, turn.spans))
            waiting = []
        else:
            waiting += turn.words
    if waiting and joined:
        joined[-1].words += waiting
    elif waiting:
        joined.append(Turn(turns[0].channel, waiting, list(spans)))
    return joined
