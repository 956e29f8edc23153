"""Work shared out among processes that do not talk to one another: all of them find the same parts."""

from __future__ import annotations

from collections.abc import Sequence


def part_of(sizes: Sequence[float], rank: int, parts: int) -> list[int]:
    """Indices, ascending, of what belongs to part `rank`, from 0: the largest first, each to the part with least."""
    loads = [0.0] * parts
    mine = []
    for index in sorted(range(len(sizes)), key=lambda i: -sizes[i]):
        least = loads.index(min(loads))
        loads[least] += sizes[index]
        if least == rank:
            mine.append(index)
    return sorted(mine)
