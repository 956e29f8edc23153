"""Curves and lines as the reference tools read them: after a fresh start, a resumption, and another."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ttt_moshi.config import TrainArgs, WandbArgs
from ttt_moshi.training.run_dir import RunDir
from ttt_moshi.training.sinks import Metrics, cut_back


def log(run: RunDir, start: int, stop: int, args: TrainArgs | None = None) -> None:
    """A launch that begins after step `start` and is killed after `stop`; it evaluates and saves at even steps."""
    metrics = Metrics(args or TrainArgs(run_dir=str(run.path)), run, start)
    for step in range(start + 1, stop + 1):
        metrics.write("train", {"step": step, "loss": 1 / step, "nll": {"semantic": 2.0}})
        if step % 2 == 0:
            metrics.write("save", {"step": step, "bytes": 7.0})
            metrics.write("eval", {"step": step, "nll": {"text": 1 / step}})
    metrics.close()


LAUNCHES = [(0, 7), (4, 9), (8, 12)]


@pytest.mark.parametrize("launches", [1, 2, 3])
def test_tensorboard_shows_every_step_once(tmp_path: Path, launches: int) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.plugin_event_accumulator")
    multiplexer = pytest.importorskip("tensorboard.backend.event_processing.plugin_event_multiplexer")
    classic = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    run = RunDir(tmp_path)
    for number, (start, stop) in enumerate(LAUNCHES[:launches]):
        log(run, start, stop)
        # Launches are seconds apart; the names of their event files, by which they are read, say so.
        for file in run.tensorboard.glob("events.out.tfevents.1[0-9]*"):
            file.rename(file.with_name(f"events.out.tfevents.000000000{number}.host"))
    last = LAUNCHES[launches - 1][1]
    reader = classic.EventAccumulator(str(run.tensorboard), size_guidance={"scalars": 0})
    reader.Reload()
    assert [event.step for event in reader.Scalars("train/loss")] == list(range(1, last + 1))
    assert [event.value for event in reader.Scalars("train/loss")] == pytest.approx([1 / s for s in range(1, last + 1)])
    assert [event.step for event in reader.Scalars("eval/nll/text")] == list(range(2, last + 1, 2))
    assert [event.step for event in reader.Scalars("save/bytes")] == list(range(2, last + 1, 2))
    # What `tensorboard --load_fast=false` reads with.
    slow = multiplexer.EventMultiplexer(tensor_size_guidance={"scalars": 0})
    slow.AddRunsFromDirectory(str(tmp_path))
    slow.Reload()
    assert accumulator.TENSORS in slow.Runs()["tensorboard"]
    for tag in ("train/loss", "train/nll/semantic"):
        assert [event.step for event in slow.Tensors("tensorboard", tag)] == list(range(1, last + 1))


def test_lines_are_those_of_a_run_that_was_never_killed(tmp_path: Path) -> None:
    killed, whole = RunDir(tmp_path / "killed"), RunDir(tmp_path / "whole")
    for run in (killed, whole):
        run.path.mkdir()
    for start, stop in LAUNCHES:
        log(killed, start, stop)
    log(whole, 0, 12)
    assert killed.train_metrics.read_text() == whole.train_metrics.read_text()
    assert killed.eval_metrics.read_text() == whole.eval_metrics.read_text()


@pytest.mark.parametrize("line", ["", "   ", "[]", "3", '{"loss": 1}', '{"step": "1"}', "{", "\xff"])
def test_a_line_that_is_no_record_is_removed(tmp_path: Path, line: str) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1}\n' + line.encode("latin-1") + b'\n{"step": 2}\n')
    assert cut_back(path, 2) == 1
    assert [json.loads(text)["step"] for text in path.read_text().splitlines()] == [1, 2]


def log_records(data: bytes) -> Iterator[bytes]:
    """The records of W&B's file: LevelDB's log format, after a header of seven bytes."""
    place, whole = 7, b""
    while place + 7 <= len(data):
        if 32768 - place % 32768 < 7:
            place += 32768 - place % 32768
            continue
        length, kind = struct.unpack_from("<HB", data, place + 4)
        whole += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # a whole record, or the end of one
            yield whole
            whole = b""


@pytest.mark.slow
def test_weights_and_biases_sees_one_run_with_its_configuration(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wandb = pytest.importorskip("wandb")
    from wandb.proto import wandb_internal_pb2

    monkeypatch.setenv("WANDB_SILENT", "true")
    run = RunDir(tmp_path / "run")
    run.path.mkdir()
    args = TrainArgs(run_dir=str(run.path), seed=11, wandb=WandbArgs(project="p", offline=True, key="k" * 40))
    log(run, 0, 3, args)
    log(run, 2, 4, args)
    wandb.teardown()
    files = sorted(run.path.glob("wandb/offline-run-*/*.wandb"))
    assert len(files) == 2
    ids, steps = set(), []
    for file in files:
        config: dict[str, Any] = {}
        for data in log_records(file.read_bytes()):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(data)
            if record.WhichOneof("record_type") == "run":
                ids.add(record.run.run_id)
                config |= {item.key: json.loads(item.value_json) for item in record.run.config.update}
            if record.WhichOneof("record_type") == "history":
                items = {(i.key or "/".join(i.nested_key)): json.loads(i.value_json) for i in record.history.item}
                if "train/loss" in items:
                    steps.append(items["step"])
        assert config["seed"] == 11 and config["wandb"]["key"] is None
    assert ids == {(run.path / "wandb_id").read_text().strip()}
    assert steps == [1, 2, 3, 3, 4]
    written = [p for p in tmp_path.rglob("*") if p.is_file() and b"k" * 40 in p.read_bytes()]
    assert written == [] and os.environ.pop("WANDB_API_KEY") == "k" * 40
