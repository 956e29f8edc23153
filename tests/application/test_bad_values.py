"""Nothing ordinary ends in a traceback: a bad value is one line that names it, and nothing is touched."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.application.harness import Ended, Place, changes, copy, snapshot
from tests.application.tally import TALLY
from tests.application.values import CASES, Case, fill, furnish

EVERY = 8  # of so many cases one is in the daily tests, the rest in `make test-doors`
# What a command may have said before it found what it must refuse.
PROGRESS = ("mode ", "encoding audio: ", "digests cannot be remembered ")


def complaint(ended: Ended, case: Case, named: str) -> str | None:
    """What is wrong with an answer, if anything is."""
    if "Traceback" in ended.err + ended.out:
        return "a traceback"
    if ended.status != case.status:
        return f"status {ended.status}, not {case.status}"
    # After an unknown command its usage is told as well.
    said = ended.err.split("\n\nusage: ")[0].strip().splitlines()
    said = [line for line in said if not line.startswith(PROGRESS)]
    if len(said) != 1 or not said[0].startswith("error: "):
        return "not one line of error"
    if named not in ended.err:
        return f"does not name {named}"
    return None


@pytest.mark.parametrize("group", CASES)
def test_a_bad_value_is_one_line_and_touches_nothing(
    group: str, new_place: Callable[[str], Place], finished: Path, material: Path
) -> None:
    check(CASES[group][::EVERY], new_place, finished, material)


@pytest.mark.slow
@pytest.mark.parametrize("group", CASES)
def test_every_bad_value(group: str, new_place: Callable[[str], Place], finished: Path, material: Path) -> None:
    check([case for i, case in enumerate(CASES[group]) if i % EVERY], new_place, finished, material)


def check(cases: list[Case], new_place: Callable[[str], Place], finished: Path, material: Path) -> None:
    """Types every line of a list; fails with all that is wrong."""
    wrong = []
    place, before = None, {}
    for number, case in enumerate(cases):
        if place is None:
            place = new_place(f"case{number}")
            copy(finished, place.run)
            copy(material, place.folder / "material")
            furnish(place)
            before = snapshot(place.folder)
        if case.prepare is not None:
            case.prepare(place)
            before = snapshot(place.folder)
        ended = place.do(*shlex.split(fill(place, case.words)))
        TALLY.saw(case.words.split()[0], "a bad value", ended)
        touched = changes(before, snapshot(place.folder))
        problem = complaint(ended, case, fill(place, case.names))
        if problem or touched:
            wrong.append(f"{case.id}: {problem or ''} {touched[:4] or ''}\n    " + "\n    ".join(ended.lines[-3:]))
        if touched or case.prepare is not None:
            place = None
    assert not wrong, f"{len(wrong)} of {len(cases)}:\n" + "\n".join(wrong)
