"""The wheel works outside of the repository, with everything that it needs in it: `make test-wheel`."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.application.harness import ROOT, environment

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder outside of the repository; `site` in it holds the installed wheel."""
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "build", "--wheel", "--outdir", str(folder), str(ROOT)]
    done = subprocess.run(build, capture_output=True, text=True, check=False, cwd=folder)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    (wheel,) = folder.glob("*.whl")
    install = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-deps",
        "--target",
        str(folder / "site"),
        str(wheel),
    ]
    subprocess.run(install, check=True)
    return folder


def do(elsewhere: Path, *words: str) -> str:
    """Output of a `ttt-moshi` command of the wheel, run where the repository is not."""
    env = {**environment(), "PYTHONPATH": str(elsewhere / "site")}
    where = "import ttt_moshi; print(ttt_moshi.__file__)"
    found = subprocess.run(
        [sys.executable, "-c", where], capture_output=True, text=True, check=True, cwd=elsewhere, env=env
    )
    assert found.stdout.startswith(str(elsewhere / "site"))
    command = [sys.executable, "-m", "ttt_moshi", *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=elsewhere, env=env)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return done.stdout


def test_everything_is_in_it(elsewhere: Path) -> None:
    (wheel,) = elsewhere.glob("*.whl")
    packed = set(zipfile.ZipFile(wheel).namelist())
    listed = subprocess.run(["git", "ls-files", "ttt_moshi"], capture_output=True, text=True, check=True, cwd=ROOT)
    assert set(listed.stdout.split()) - packed == set()


def test_help_and_the_system(elsewhere: Path) -> None:
    assert "ttt-moshi COMMAND" in do(elsewhere, "--help")
    assert "7,830,720,576" in do(elsewhere, "status", "--check-system")


def test_the_demo(elsewhere: Path) -> None:
    do(elsewhere, "demo", "--out", str(elsewhere / "demo"))
    assert (elsewhere / "demo/index.html").stat().st_size > 10_000
