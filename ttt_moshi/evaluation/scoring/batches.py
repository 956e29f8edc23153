"""Which sequences share a forward pass."""

from __future__ import annotations

from collections.abc import Sequence


def plan(lengths: Sequence[int], keys: Sequence[str], max_frames: int, max_rows: int) -> list[list[int]]:
    """Batches of indices, longest sequences first, so that a batch that does not fit into memory fails at once.

    A batch has at most `max_rows` rows and, padding included, `max_frames` frames (a single longer sequence is a batch
    by itself). The plan depends on lengths and keys alone, never on what is already done or on the order of arrival:
    an evaluation that is continued computes the very batches it would have computed.
    """
    order = sorted(range(len(lengths)), key=lambda i: (-lengths[i], keys[i]))
    batches: list[list[int]] = []
    for i in order:
        longest = lengths[batches[-1][0]] if batches else 0
        if batches and len(batches[-1]) < max_rows and longest * (len(batches[-1]) + 1) <= max_frames:
            batches[-1].append(i)
        else:
            batches.append([i])
    return batches
