"""One call makes everything the demo needs, once."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from moshi.models.lm import LMModel
from moshi.models.loaders import CheckpointInfo

from ttt_moshi.config import ModelPaths
from ttt_moshi.data import DataError
from ttt_moshi.data.codec import Codec
from ttt_moshi.data.corpus import Corpus
from ttt_moshi.data.loader import pick_source
from ttt_moshi.data.sources import split_spec
from ttt_moshi.moshi import resolve_model
from ttt_moshi.synthetic.material import (
    DEMO,
    RECORD,
    TINY,
    Material,
    make_demo_material,
    make_tiny_material,
    pretraining_mix,
)
from ttt_moshi.synthetic.small_moshi import hide_text

SMALLEST = replace(
    TINY,
    train_dialogues=1,
    eval_dialogues=1,
    pretraining_dialogues=1,
    pretraining_monologues=1,
    pretraining_tales=1,
    pretraining=replace(TINY.pretraining, steps=1),
)


def contents(folder: Path) -> dict[str, bytes]:
    """Every file but the cached codes, of which other users of the folder may have made more."""
    files = [path for path in folder.rglob("*") if path.is_file() and ".mimi_codes" not in path.parts]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def test_base_folder_is_that_of_a_hub_repository(tiny_material: Material) -> None:
    base = tiny_material.base_model
    config = json.loads((base / "config.json").read_text())
    info = CheckpointInfo.from_hf_repo(
        "nobody/nothing",
        moshi_weights=base / config["moshi_name"],
        mimi_weights=base / config["mimi_name"],
        tokenizer=base / config["tokenizer_name"],
        config_path=base / "config.json",
        mimi_config_path=base / config["mimi_config_name"],
    )
    assert info.model_type == config["model_type"] == "moshi"
    model, mimi, tokenizer = info.get_moshi(), info.get_mimi(), info.get_text_tokenizer()
    assert type(model) is LMModel and model.num_codebooks == 17
    assert model.card == mimi.cardinality and mimi.num_codebooks == 8
    assert model.text_card == tokenizer.vocab_size()
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}


def test_codes_of_both_data_sets_are_ready(tiny_material: Material) -> None:
    info = resolve_model(ModelPaths(hf_repo_id=str(tiny_material.base_model)))
    codec = Codec(info.get_mimi(), info.mimi_config)
    for data in (tiny_material.train_data, tiny_material.eval_data):
        corpus = Corpus(str(data), codec, info.get_text_tokenizer(), 4.0)
        assert all(corpus._cache(recording).has(recording.audio) for recording in corpus.recordings)


def test_base_model_has_learned_something(tiny_material: Material) -> None:
    assert tiny_material.eval_nll.keys() == tiny_material.uniform_nll.keys()
    for part in ("text_padding", "semantic", "acoustic"):
        assert tiny_material.eval_nll[part] < tiny_material.uniform_nll[part] - 0.5


@pytest.mark.parametrize(
    ("dialogues", "shares", "with_text"),
    [("d", {"d": 200, "m": 100, "t": 100}, "d"), (None, {"m": 200, "t": 200}, "m")],
)
def test_every_second_clip_is_of_one_kind_and_only_that_keeps_its_text(
    tmp_path: Path, dialogues: str | None, shares: dict[str, int], with_text: str
) -> None:
    mix = pretraining_mix(tmp_path / "m", tmp_path / "t", tmp_path / dialogues if dialogues else None)
    entries = split_spec(mix)
    names = [path.name for path, _ in entries]
    chosen = [names[pick_source([weight for _, weight in entries], position)[0]] for position in range(400)]
    assert Counter(chosen) == shares
    for first in range(0, 400, DEMO.pretraining.batch_size):
        size = DEMO.pretraining.batch_size
        codes = hide_text(torch.zeros(size, 17, 3, dtype=torch.long), first, DEMO.pretraining.hidden_text)
        hidden = (codes[:, 0] == -1).all(dim=1).tolist()
        assert hidden == [name != with_text for name in chosen[first : first + size]]


def test_a_second_call_changes_nothing_and_another_folder_is_equal(tiny_material: Material, tmp_path: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in tiny_material.folder.rglob("*")}
    assert make_tiny_material(tiny_material.folder) == tiny_material
    assert {path: path.stat().st_mtime_ns for path in tiny_material.folder.rglob("*")} == before
    make_tiny_material(tmp_path)
    assert contents(tmp_path) == contents(tiny_material.folder)


@pytest.mark.parametrize("stage", ["speaking", "fitting", "encoding", "pre-training"])
def test_an_interrupted_call_is_made_again(stage: str, tiny_material: Material, tmp_path: Path) -> None:
    def interrupt(what: str, done: int, total: int) -> None:
        if what.startswith(stage):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make_demo_material(tmp_path, size=SMALLEST, progress=interrupt)
    assert not json.loads((tmp_path / RECORD).read_text())["complete"]
    material = make_demo_material(tmp_path, size=SMALLEST)
    assert len(material.train_data.read_text().splitlines()) == 1
    assert resolve_model(ModelPaths(hf_repo_id=str(material.base_model))).get_moshi() is not None
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base", "eval", RECORD, "train"]


def test_other_settings_make_it_anew(tmp_path: Path) -> None:
    make_demo_material(tmp_path, size=SMALLEST)
    stray = tmp_path / "eval" / "data_stereo" / "dialogue_0009.wav"
    stray.write_bytes(b"")
    first = (tmp_path / "train" / "data.jsonl").read_bytes()
    make_demo_material(tmp_path, seed=1, size=SMALLEST)
    assert (tmp_path / "train" / "data.jsonl").read_bytes() != first
    assert not stray.exists()


def test_a_folder_of_somebody_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "thesis.txt").write_text("ten years of work")
    with pytest.raises(DataError, match="not empty"):
        make_tiny_material(tmp_path)
    assert (tmp_path / "train" / "thesis.txt").read_text() == "ten years of work"


def test_a_damaged_record_is_an_error_for_people(tmp_path: Path) -> None:
    (tmp_path / RECORD).write_text("{")
    with pytest.raises(DataError, match="not valid JSON"):
        make_tiny_material(tmp_path)
