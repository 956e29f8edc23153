"""Teaching a finished model: what each way of it changes, what is measured, and what is made of it."""

import argparse
import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.memory import measure, phones, teach
from benchmarks.memory.arms import WINDOW
from ttt_moshi.config import LoraArgs, ModelPaths, TTTArgs, flatten
from ttt_moshi.moshi import build_model, resolve_model, set_context
from ttt_moshi.synthetic.recall.base_model import reach, write_base_model


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return write_base_model(tmp_path_factory.mktemp("teach") / "base", seed=0)


@pytest.fixture
def lessons(tmp_path, base):
    return teach.Lessons(tmp_path, base, seed=0, steps=2)


def test_ways_differ_in_their_aid_alone_and_train_nothing_of_the_base(base):
    def arguments(name):
        stages = teach.stages_of(teach.WAYS[name], 200)
        made = [teach.teaching(s.way, s.schedule(0), base, Path("data.jsonl"), Path("run")) for s in stages]
        return [flatten(asdict(args)) for args in made]

    clips, carried = plain = arguments("likelihood")
    for stage in plain:
        assert (stage["full_finetuning"], stage["lora.enable"], stage["ttt.enable"]) == (False, False, True)
        assert stage["train.context_frames"] == WINDOW
    assert (clips["max_steps"], carried["max_steps"]) == (150, 50)
    assert (clips["train.stateful"], carried["train.stateful"]) == (False, True)
    assert carried["optim.ttt_lr"] == clips["optim.ttt_lr"] / 2
    changed = {
        name: [
            {k: v for k, v in stage.items() if usual[k] != v}
            for stage, usual in zip(arguments(name), plain, strict=True)
        ]
        for name in teach.WAYS
        if name != "both-no-clips"
    }
    teacher, start = {"train.distill.context_frames": teach.WIDE}, {"ttt.init": "attention"}
    start |= {"ttt.initial_gating_alpha": teach.GATES}
    both = teacher | start
    assert changed == {
        "likelihood": [{}, {}],
        "distill": [teacher, teacher],
        "plant": [{}, {}],  # the recordings are others
        "attention": [start, start],
        "both": [both, both],
        "both-next": [both | {"ttt.target": "both"}] * 2,
        "both-small": [both | {"batch_size": plain[0]["batch_size"] // 2}] * 2,
        "both-no-writes": [both | {"ttt.base_lr": teach.NO_WRITES}] * 2,
        "both-lora": [both | {"lora.enable": True}] * 2,
        "both-inherit": [both, both | {"train.inherit_memory": pytest.approx(0.4)}],  # of 50 steps: a tenth of 200
    }
    (only,) = arguments("both-no-clips")
    assert {k: v for k, v in only.items() if clips[k] != v} == {"max_steps": 200, "train.stateful": True, **both}


def test_planted_recordings_are_the_same_with_passages_that_return_beyond_the_window(lessons):
    plain, planted = lessons.recordings(), lessons.planted()
    returns = json.loads((planted / "planted.json").read_text())
    assert len(returns) >= 10
    model = lessons.base_model()
    codes, before = (measure.read_codes(model, folder / "data.jsonl", 4096)[:, 1] for folder in (planted, plain))
    for one in returns:
        own = codes[int(one["path"].split(".")[0])]
        first, again, frames = (round(one[key] * 12.5) for key in ("first_sec", "again_sec", "duration"))
        assert torch.equal(own[first : first + frames], own[again : again + frames])
        assert again - first - frames >= teach.PLAN.distance[0] >= reach(WINDOW)
    added = sum(round(one["duration"] * 12.5) for one in returns)
    assert (codes >= 0).sum() == (before >= 0).sum() + added


def test_the_finished_model_has_the_weights_that_were_trained(tmp_path, base):
    other = write_base_model(tmp_path / "other", seed=1)
    consolidated = tmp_path / "checkpoint" / "consolidated"
    consolidated.mkdir(parents=True)
    (other / "model.safetensors").rename(consolidated / "consolidated.safetensors")
    teach.finished(base, tmp_path / "checkpoint", tmp_path / "finished")
    found, old = (teach.Lessons(tmp_path, folder, 0, 1).base_model() for folder in (tmp_path / "finished", base))
    (other / "model.safetensors").symlink_to(consolidated / "consolidated.safetensors")
    wanted = teach.Lessons(tmp_path, other, 0, 1).base_model()
    for name, tensor in wanted.state_dict().items():
        assert torch.equal(found.state_dict()[name], tensor), name
    assert not torch.equal(old.emb[0].weight, found.emb[0].weight)


def test_layers_trained_without_writing_write_like_others_when_they_are_measured(tmp_path, base):
    def build(base_lr):
        args = TTTArgs(enable=True, layers="all", inner="delta", base_lr=base_lr, bidirectional_prefix=False)
        model = build_model(resolve_model(ModelPaths(hf_repo_id=str(base))), args, LoraArgs(), dtype=torch.float32)
        set_context(model, WINDOW)
        with torch.no_grad():
            for layer in model.layers:
                layer.ttt.wo.weight.normal_(std=0.3, generator=torch.Generator().manual_seed(1))
        return model.eval()

    writes, silent = build(1.0), build(teach.NO_WRITES)
    data = phones.write_recordings(tmp_path / "data", [teach.TEST_FRAMES], seed=0)
    codes = measure.read_codes(writes, data, teach.TEST_FRAMES)
    written = teach.measure_taught(writes, teach.WAYS["likelihood"], codes)
    silenced = teach.measure_taught(silent, teach.WAYS["both-no-writes"], codes)
    for what in (teach.WRITING, teach.NOT_WRITING, teach.OFF):
        np.testing.assert_allclose(silenced[what], written[what], atol=2e-4, err_msg=what)
    finished = teach.measure_base(teach.Lessons(tmp_path, base, 0, 1).base_model(), codes)
    np.testing.assert_array_equal(written[teach.OFF], finished[teach.NARROW_WINDOW])
    assert np.abs(np.subtract(written[teach.WRITING], written[teach.NOT_WRITING])).max() > 1e-2
    assert np.abs(np.subtract(written[teach.NOT_WRITING], written[teach.OFF])).max() > 1e-2


@pytest.fixture
def runs():
    """Two seeds of recordings that differ by far more than models do: the wide window gains 1 nat beyond its length."""
    rng = np.random.default_rng(0)
    bins = len(teach.BINS) - 1

    def run(**levels):
        return {"by_bin": {what.replace("_", " "): (hard + level).tolist() for what, level in levels.items()}}

    found = {}
    for seed in range(2):
        hard = rng.normal(4, 1, (24, 1)) + rng.normal(0, 0.01, (24, bins))
        found[f"base/{seed}"] = {"by_bin": {teach.NARROW_WINDOW: (hard + 1).tolist(), teach.WIDE_WINDOW: hard.tolist()}}
        found[f"likelihood/{seed}"] = run(writing=0.6 + 0.2 * seed, not_writing=0.9, memory_off=1.0)
        found[f"distill/{seed}"] = run(writing=0.1, not_writing=0.9, memory_off=1.0)
        found[f"both/{seed}"] = run(writing=0.2, not_writing=0.9, memory_off=1.0)
        found[f"both-lora/{seed}"] = run(writing=0.1, not_writing=0.9, memory_off=0.8)
    return found


def test_shares_of_the_ceiling_pool_seeds_and_pair_recordings(runs):
    found = {entry["name"]: entry for entry in teach.summarise(runs)}
    assert found[f"{teach.WIDE_WINDOW} - {teach.NARROW_WINDOW}, nats"]["value"] == pytest.approx(-1)
    plain, taught = (found[f"{name}, writing, share of the ceiling"] for name in ("likelihood", "distill"))
    assert (plain["value"], taught["value"]) == (pytest.approx(0.3), pytest.approx(0.9))
    assert (plain["met"], taught["met"], plain["seeds"]) == (False, True, 2)
    assert plain["by_seed"] == pytest.approx([0.4, 0.2])
    assert plain["ci95"] == pytest.approx([0.3, 0.3]), "the recordings' own difficulty is nowhere in it"
    assert found["distill, not writing, share of the ceiling"]["value"] == pytest.approx(0.1)
    assert found["distill - likelihood, writing, nats"]["value"] == pytest.approx(-0.6)
    assert found["distill, memory off - finished model, nats"]["value"] == pytest.approx(0)
    assert found["both-lora - both, writing, nats"]["value"] == pytest.approx(-0.1)
    assert found["both-lora, memory off - finished model, nats"]["value"] == pytest.approx(-0.2)


def test_a_wide_window_that_gains_nothing_is_no_ceiling(runs):
    for seed in range(2):
        by_bin = runs[f"base/{seed}"]["by_bin"]
        by_bin[teach.WIDE_WINDOW] = (np.array(by_bin[teach.NARROW_WINDOW]) + np.linspace(-1, 1, 24)[:, None]).tolist()
    assert not any("share" in entry["name"] or entry.get("met") for entry in teach.summarise(runs))


def test_only_frames_beyond_the_wide_window_count():
    nats = [9.0, 9.0, 1.0, 2.0, 3.0]  # of 64-128, 128-256, 256-512, 512-1024, 1024-2048
    assert teach.beyond([nats]) == pytest.approx([(256 * 1 + 512 * 2 + 1024 * 3) / 1792])


def test_an_unknown_way_is_named_with_those_that_there_are():
    with pytest.raises(argparse.ArgumentTypeError, match="no way listen; there are likelihood, distill"):
        teach.chosen("plant,listen")
