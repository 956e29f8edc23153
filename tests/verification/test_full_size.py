"""The proof at full size, run on a small geometry: the same code, other numbers."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from moshi.models.loaders import CheckpointInfo

from ttt_moshi.checkpoint import CheckpointStore
from ttt_moshi.errors import UserError
from ttt_moshi.moshi import TensorCounts
from ttt_moshi.moshi.naming import Count
from ttt_moshi.verification import full_size
from ttt_moshi.verification.full_size import EXPORT, check_room, prove_full_size

SMALL = {
    "dim": 32, "text_card": 40, "existing_text_padding_id": 3, "n_q": 6, "dep_q": 3, "card": 24, "num_heads": 2,
    "num_layers": 4, "hidden_scale": 2, "causal": True, "layer_scale": None, "context": 10, "max_period": 10000,
    "gating": "silu", "norm": "rms_norm_f32", "positional_embedding": "rope", "depformer_dim": 16,
    "depformer_dim_feedforward": 32, "depformer_num_heads": 2, "depformer_num_layers": 2,
    "depformer_layer_scale": None, "depformer_multi_linear": True, "depformer_context": 3,
    "depformer_max_period": 10000, "depformer_gating": "silu", "depformer_pos_emb": "none",
    "depformer_weights_per_step": True, "delays": [0, 0, 1, 1, 0, 1, 1],
}  # fmt: skip
RAW = 1 << 20


def small() -> CheckpointInfo:
    return CheckpointInfo(Path(), Path(), Path(), lm_config=dict(SMALL), raw_config=dict(SMALL))


def test_a_whole_model_goes_to_disk_and_back(tmp_path: Path) -> None:
    said: list[str] = []
    found = prove_full_size(small(), "1,2", tmp_path, said.append, RAW)
    assert found.problems == []
    assert found.counts.groups["ttt"].tensors == 40
    assert (found.exported_tensors, found.exported_elements) == (
        found.counts.total.tensors,
        found.counts.total.elements,
    )
    assert set(found.seconds) == {"build", "save", "verify", "load"}
    assert all(found.ratio_to_disk(phase) > 0 for phase in ("save", "verify", "load"))
    assert found.bytes > 2 * found.counts.groups["base"].elements + 12 * found.counts.groups["ttt"].elements
    assert found.peak_bytes > 0 and said[-1] == "comparing every tensor"
    assert not (tmp_path / "raw").exists()


def test_damage_between_save_and_load_is_found(tmp_path: Path) -> None:
    def spoil(what: str) -> None:
        if what == "verifying every byte":
            file = CheckpointStore(tmp_path / "checkpoints").path(full_size.STEP) / EXPORT
            content = bytearray(file.read_bytes())
            content[-1] ^= 1
            file.write_bytes(content)

    found = prove_full_size(small(), "1,2", tmp_path, spoil, RAW)
    assert len(found.problems) == 1 and re.match(r"consolidated/consolidated.safetensors: tensor '", found.problems[0])
    assert "load" not in found.seconds


def test_a_machine_that_is_too_small_is_refused(tmp_path: Path) -> None:
    base, trained = Count(1, 10**15), Count(1, 10**3)
    counts = TensorCounts({"base": base, "ttt": trained}, {"ttt": trained})
    with pytest.raises(UserError, match=r"needs 2000001\.5 GB of free memory, and \d+\.\d GB are free"):
        check_room(counts, tmp_path, RAW)
    counts = TensorCounts({"ttt": trained}, {"ttt": trained})
    with pytest.raises(UserError, match=r"needs 1000000000000\.0 GB of disk, and .* free"):
        check_room(counts, tmp_path, 10**21)
