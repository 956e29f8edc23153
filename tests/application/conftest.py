"""A finished tiny run, made once, and copied for every case."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.application.harness import Place, copy
from tests.application.tally import TALLY

if TYPE_CHECKING:
    from tests.processes import Warm
    from ttt_moshi.synthetic import Material


@pytest.fixture(scope="session")
def material(tiny_material: Material, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the material, whose codes are cached by the first run."""
    folder = tmp_path_factory.mktemp("application") / "material"
    copy(tiny_material.folder, folder)
    return folder


@pytest.fixture(scope="session")
def finished(material: Path, warm: Warm, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of six steps with checkpoints of steps 2, 4 and 6: what every interrupted one must end as."""
    place = Place(tmp_path_factory.mktemp("finished"), material, warm)
    ended = place.do(*place.train("--do_eval", "true"))
    assert ended.status == 0, ended
    return place.run


@pytest.fixture()
def new_place(tmp_path: Path, material: Path, warm: Warm) -> Callable[[str], Place]:
    """Makes empty folders of cases: `new_place("name")`."""

    def make(name: str) -> Place:
        (tmp_path / name).mkdir()
        return Place(tmp_path / name, material, warm)

    return make


@pytest.fixture()
def place(new_place: Callable[[str], Place], finished: Path) -> Place:
    """A folder with a copy of the finished run."""
    made = new_place("case")
    copy(finished, made.run)
    return made


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """One table of what was tried, where the commands were tried in this process."""
    if TALLY.tried:
        terminalreporter.section("commands from outside")
        for line in TALLY.lines():
            terminalreporter.write_line(line)
