"""`data where` tells what a step heard, from the run's folder and the recordings alone, or says that it cannot."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ttt_moshi.cli.main import main

LINE = re.compile(r"(?P<file>.+\.wav) (?P<start>[\d.]+)-(?P<end>[\d.]+) s: (?P<text>.*)")


def test_what_a_step_heard(
    launch: Callable[..., Any], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = launch("run", "--max_steps", "3", "--log_freq", "1")
    folder = shutil.copytree(made.material.train_data.parent, tmp_path / "train")
    made = replace(made, material=replace(made.material, train_data=folder / "data.jsonl"))
    made.run("--data.train_data", str(folder / "data.jsonl"), "--do_ckpt", "false")
    heard = []
    for step in (1, 2, 3):
        assert main(["data", "where", str(made.run_dir), "--step", str(step)]) == 0
        lines = [LINE.fullmatch(line) for line in capsys.readouterr().out.splitlines()]
        assert len(lines) == 2 and all(lines)
        heard += [line.groupdict() for line in lines if line]
    assert len({(part["file"], part["start"]) for part in heard}) == 6
    for part in heard:
        words = json.loads(Path(part["file"]).with_suffix(".json").read_text())["alignments"]
        inside = [
            w for w, (at, _), who in words if who == "SPEAKER_MAIN" and float(part["start"]) <= at < float(part["end"])
        ]
        assert part["text"] == (" ".join(inside) or "silent")
    assert sum(part["text"] != "silent" for part in heard) >= 3

    # Relative paths count from where training was started: of this run, had it been started beside its data.
    (record,) = (made.run_dir / "launches").iterdir()
    there = record.read_text()
    record.write_text(there.replace(str(folder / "data.jsonl"), "train/data.jsonl"))
    assert record.read_text() != there
    monkeypatch.chdir(tmp_path)
    assert main(["data", "where", str(made.run_dir), "--step", "1"]) == 0
    capsys.readouterr()
    monkeypatch.chdir(folder)
    assert main(["data", "where", str(made.run_dir), "--step", "1"]) == 2
    told = capsys.readouterr().err
    assert "no data at train/data.jsonl" in told and "training was started" in told and told.count("\n") == 1
    record.write_text(there)

    # Without what the first step heard the others move up; the metrics know what was heard.
    gone = Path(heard[0]["file"]).name
    lines_of_list = (folder / "data.jsonl").read_text().splitlines()
    (folder / "data.jsonl").write_text("".join(f"{line}\n" for line in lines_of_list if gone not in line))
    assert main(["data", "where", str(made.run_dir), "--step", "2"]) == 2
    assert "have changed" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["none", "--step", "1"], "no run at none"),
        (["{run}", "--step", "0"], "no launch that made step 0"),
        (["{run}", "--step", "x"], "invalid int value"),
        (["{run}"], "--step"),
        (["{run}", "--step", "1"], r"0001\.yaml is no record"),
    ],
)
def test_bad_values_are_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    (tmp_path / "launches").mkdir()
    record = "[1]" if words == ["{run}", "--step", "1"] else "{start_step: 0, world_size: 1, config: {}}"
    (tmp_path / "launches" / "0001.yaml").write_text(record)
    assert main(["data", "where", *(word.format(run=tmp_path) for word in words)]) == 2
    told = capsys.readouterr()
    assert re.search(message, told.err) and told.err.count("\n") == 1 and not told.out
