"""Settings and material of the whole test process."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest
import torch
from filelock import FileLock
from hypothesis import settings

from tests.processes import Warm

if TYPE_CHECKING:
    from ttt_moshi.synthetic import Material

# Two test processes share two cores; more threads would only make them wait for one another.
torch.set_num_threads(1)

# A loaded machine is slow, not wrong. Continuous integration draws the same cases every time: a failure there means
# that the change broke something; new cases are drawn wherever people work.
settings.register_profile("anywhere", deadline=None)
settings.register_profile("ci", deadline=None, derandomize=True, max_examples=40)
settings.load_profile("ci" if os.environ.get("CI") else "anywhere")


@pytest.fixture(scope="session")
def tiny_material(tmp_path_factory: pytest.TempPathFactory) -> Material:
    """Generated speech and a tiny base model, made once for all test processes. Read-only."""
    from ttt_moshi.synthetic import make_tiny_material

    shared = tmp_path_factory.getbasetemp()
    if shared.name.startswith("popen-"):
        shared = shared.parent
    with FileLock(shared / "tiny_material.lock"):
        return make_tiny_material(shared / "tiny_material")


@pytest.fixture(scope="session")
def warm() -> Iterator[Warm]:
    """Starts Python commands without importing PyTorch anew."""
    process = Warm()
    yield process
    process.close()
