"""Settings and material of the whole test process."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch
from filelock import FileLock

if TYPE_CHECKING:
    from ttt_moshi.data.speech import Material

# Two test processes share two cores; more threads would only make them wait for one another.
torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tiny_material(tmp_path_factory: pytest.TempPathFactory) -> Material:
    """Generated speech and a tiny base model, made once for all test processes. Read-only."""
    from ttt_moshi.data.speech import make_tiny_material

    shared = tmp_path_factory.getbasetemp()
    if shared.name.startswith("popen-"):
        shared = shared.parent
    with FileLock(shared / "tiny_material.lock"):
        return make_tiny_material(shared / "tiny_material")
