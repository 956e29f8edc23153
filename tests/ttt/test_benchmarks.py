"""The doors of the benchmarks: everything that a GPU would be asked for runs, at tiny sizes, on a CPU."""

from __future__ import annotations

import json

import pytest
import torch

from benchmarks.ttt import gpu, public

TINY = gpu.Sizes(
    device="cpu", dim=32, heads=2, num_layers=3, num_ttt_layers=1, context=16, scan_lengths=(20,), lengths=(16, 40),
    mini_batches=(4, 8), batch_size=2, sample=16, hour=3,
)  # fmt: skip


@pytest.fixture(scope="module")
def result():
    if torch.cuda.is_available():
        pytest.skip("would take CUDA's clock")
    return gpu.measure(TINY)


def test_every_gpu_measurement_runs(result, tmp_path):
    measured = [
        row for part in ("inner_scan", "layers", "streaming", "temporal_model") for row in result[part].values()
    ]
    assert len(measured) == 2 + 2 + 2 + 3
    for row in measured:
        assert "error" not in row
        assert all(value > 0 for value in row.values())
    gpu.plot(tmp_path / "plot.png", result["layers"])
    assert (tmp_path / "plot.png").stat().st_size > 1000


def test_a_measurement_that_fails_is_reported_and_left_out(tmp_path):
    def out_of_memory():
        raise torch.OutOfMemoryError("too much")

    row = gpu.attempt(out_of_memory)
    assert "too much" in row["error"]
    whole = {"eager_ms": 12.0, "graph_ms": 3.0, "ttt_graph_ms": 4.0, "attention_ms": 2.0, "step_ms": 1.0}
    result = {
        "inner_scan": {"T=1250 K=64": whole},
        "layers": {"T=3000 K=64": whole, "T=30000 K=64": row},
        "streaming": {"K=64": row},
        "temporal_model": {"base": whole, "TTT K=64": row},
    }
    figures = {name: value for name, value, _ in gpu.bars(result)}
    assert figures["layer over attention, 3000 frames"] == 2.0
    assert len(figures) == 3


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so(capsys, tmp_path):
    assert gpu.main(["--json", str(tmp_path / "gpu.json")]) == 0
    assert "not run: no GPU" in capsys.readouterr().out
    assert json.loads((tmp_path / "gpu.json").read_text())["status"] == "not run"


def test_a_folder_without_the_public_code_is_refused(capsys, tmp_path):
    with pytest.raises(SystemExit):
        public.main(["--clone", str(tmp_path)])
    assert "does not exist" in capsys.readouterr().err
