"""Which differences from a checkpoint go on, which have to be accepted, and which are impossible."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from ttt_moshi.config import ConfigError, TrainArgs, flatten, to_dict
from ttt_moshi.training.identity import (
    ACCEPTABLE,
    BATCH,
    DATA,
    IMPOSSIBLE,
    KEY_CLASSES,
    ONWARD,
    ROUNDING,
    SAME,
    SEED,
    Identity,
    differences,
    refuse,
    table,
)

DELTA = {"ttt__enable": True, "ttt__inner": "delta"}
PATH = Path("runs/x/checkpoints/checkpoint_000004")


def identity(world_size: int = 1, data: str | None = "d" * 64, base: str = "b" * 64, **changes: Any) -> Identity:
    config = to_dict(TrainArgs(run_dir="x"))
    for key, value in changes.items():
        *path, last = key.split("__")
        section = config
        for part in path:
            section = section[part]
        section[last] = value
    rows = None
    if config["train"]["stateful"]:
        rows = [config["num_microbatches"], config["batch_size"] * world_size]
    return Identity(config, world_size, base, data, rows, [1] if config["ttt"]["enable"] else [])


def test_every_key_has_a_class() -> None:
    assert set(KEY_CLASSES) == set(flatten(asdict(TrainArgs(run_dir="x"))))
    assert set(KEY_CLASSES.values()) == {SAME, ROUNDING, ONWARD, SEED, IMPOSSIBLE}


@pytest.mark.parametrize(
    ("before", "now", "meaning"),
    [
        ({}, {"run_dir": "y"}, SAME),
        ({}, {"data__train_data": "/elsewhere/data.jsonl"}, SAME),
        ({}, {"moshi_paths__hf_repo_id": "/models/moshi"}, SAME),
        ({}, {"lora__rank": 3}, SAME),
        ({"lora__enable": True}, {"lora__enable": True, "lora__rank": 3}, IMPOSSIBLE),
        ({"ttt__enable": True}, {"ttt__enable": True, "ttt__mini_batch_size": 4}, IMPOSSIBLE),
        (DELTA, DELTA | {"ttt__mini_batch_size": 4}, SAME),
        ({"do_ckpt": False}, {"do_ckpt": False, "ckpt_freq": 4}, SAME),
        ({}, {"optim__lr": 1.0}, ONWARD),
        ({}, {"max_steps": 7}, ONWARD),
        ({}, {"seed": 1}, SEED),
        ({}, {"data__shuffle": True}, SEED),
        ({}, {"data": "e" * 64}, DATA),
        ({}, {"duration_sec": 5.0}, DATA),
        ({"duration_sec": 5.0}, {"train__clip_schedule": "0:5"}, SAME),
        ({"train__clip_schedule": "0:5,9:10"}, {"train__clip_schedule": "0:5,8:10"}, DATA),
        ({}, {"base": "c" * 64}, IMPOSSIBLE),
        ({"data": None}, {"data": "e" * 64}, None),
        ({}, {"param_dtype": "float32"}, IMPOSSIBLE),
        # Two processes with two clips, one with four: the same step. One with two: half of it.
        ({"world_size": 2, "batch_size": 2}, {"world_size": 1, "batch_size": 4}, ROUNDING),
        ({"world_size": 2, "batch_size": 2}, {"world_size": 1, "batch_size": 2, "num_microbatches": 2}, ROUNDING),
        ({"world_size": 2, "batch_size": 2}, {"world_size": 1, "batch_size": 2}, BATCH),
        ({"train__stateful": True}, {"train__stateful": True, "train__backprop_clips": 2}, BATCH),
        ({"train__stateful": True, "batch_size": 2}, {"train__stateful": True, "num_microbatches": 2}, BATCH),
        ({"train__stateful": True, "batch_size": 2}, {"train__stateful": True, "world_size": 2}, ROUNDING),
    ],
)
def test_what_a_difference_means(before: dict[str, Any], now: dict[str, Any], meaning: str | None) -> None:
    found = differences(identity(**before), identity(**now))
    assert (found[-1].meaning if found else None) == meaning
    for accepted in ((), ACCEPTABLE):
        if meaning == IMPOSSIBLE or (meaning in ACCEPTABLE and not accepted):
            with pytest.raises(ConfigError) as refused:
                refuse(found, accepted, PATH)
            assert found[-1].key in str(refused.value) and "\n" not in str(refused.value)
            assert (meaning in ACCEPTABLE) == (f"--checkpoint.accept_changes '[{meaning}]'" in str(refused.value))
        else:
            refuse(found, accepted, PATH)


def test_the_command_that_accepts_names_all_that_is_to_be_accepted() -> None:
    found = differences(identity(), identity(seed=2, data="e" * 64))
    with pytest.raises(ConfigError, match=r"accept_changes '\[data, seed\]'"):
        refuse(found, [SEED], PATH)
    refuse(found, [SEED, DATA], PATH)


def test_the_table_has_key_before_now_and_class() -> None:
    now = replace(identity(seed=2, optim__lr=0.5), world_size=2)
    lines = table(differences(identity(), now))
    assert [line.split()[0] for line in lines] == ["key", "processes", "optim.lr", "clips", "seed"]
    assert lines[0].split() == ["key", "before", "now", "class"]
    assert lines[2].split(maxsplit=3) == ["optim.lr", "0.0001", "0.5", ONWARD]
    assert lines[4].endswith("changes the run (seed)")


def test_a_key_of_a_later_version_is_no_difference() -> None:
    before = identity()
    del before.config["patience_minutes"], before.config["checkpoint"]["accept_changes"], before.config["seed"]
    assert differences(before, identity()) == []
    # The default of a later version is what was done before; anything else is a difference.
    del before.config["data"]["train_user_stream"]
    now = identity(data__train_user_stream=True)
    assert [(d.key, d.before, d.meaning) for d in differences(before, now)] == [
        ("data.train_user_stream", False, IMPOSSIBLE)
    ]
