"""One tiny set of benchmarks that every test reads."""

from __future__ import annotations

from pathlib import Path

import pytest

from ttt_moshi.synthetic import Material
from ttt_moshi.synthetic.benchmarks import make_bench


@pytest.fixture(scope="session")
def bench(tmp_path_factory: pytest.TempPathFactory, tiny_material: Material) -> Path:
    folder = tmp_path_factory.mktemp("bench")
    make_bench(folder, tiny_material.train_data, seed=0, size="tiny")
    return folder
