"""Two and more processes on one folder: one writes, the others are refused and touch nothing."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.application.harness import Ended, Place, Running, copy
from tests.application.tally import TALLY

LONG = ("--max_steps", "12", "--ckpt_freq", "6")


@pytest.fixture()
def twin(finished: Path, material: Path, warm: object) -> str:
    """State id after six steps of a run that was left alone."""
    return Place(finished.parent, material, warm).state_id(6)  # type: ignore[arg-type]


def running(place: Place, *more: str) -> Running:
    """A training that has done its first step, and is held there."""
    began = time.time()
    process = place.start(*place.train(*more))
    metrics = place.run / "metrics.train.jsonl"  # of an earlier run, until this one replaces it
    while process.poll() is None and not (
        metrics.exists() and metrics.stat().st_size and metrics.stat().st_mtime > began
    ):
        time.sleep(0.005)
    os.kill(process.pid, signal.SIGSTOP)
    return process


def let_go(process: Running) -> Ended:
    """How a held training ends."""
    os.kill(process.pid, signal.SIGCONT)
    return process.wait()


def refused(ended: Ended) -> bool:
    """Whether a command ended as one that may not write here."""
    return ended.status == 2 and ended.lines[-1].startswith("error: ") and "Traceback" not in ended.err


@pytest.mark.parametrize(
    "name",
    ["overwrite", "prune", *(pytest.param(n, marks=pytest.mark.slow) for n in ("train", "resume", "auto", "repair"))],
)
def test_a_running_run_has_one_writer(name: str, new_place: Callable[[str], Place]) -> None:
    place = new_place("case")
    first = running(place, *LONG)
    second = place.do(
        *{
            "train": place.train(*LONG),
            "resume": place.train(*LONG, "--checkpoint.resume", "true"),
            "auto": place.train(*LONG, "--checkpoint.resume", "auto"),
            "overwrite": place.train(*LONG, "--overwrite_run_dir", "true"),
            "prune": ["ckpt", "prune", place.run, "--last", "1"],
            "repair": ["ckpt", "repair", place.run],
        }[name]
    )
    TALLY.saw("train", f"{name} beside it", second)
    ended = let_go(first)
    assert refused(second), second
    assert ended.status == 0 and place.store.steps() == [6, 12], ended
    assert len((place.run / "metrics.train.jsonl").read_text().splitlines()) == 12


def test_started_at_once_one_trains(new_place: Callable[[str], Place], twin: str) -> None:
    place = new_place("case")
    both = [place.start(*place.train("--checkpoint.resume", "auto")) for _ in range(3)]
    ended = [process.wait() for process in both]
    # Who comes after the first has finished finds nothing left to do, which is no error.
    assert any(one.status == 0 for one in ended) and all(one.status == 0 or refused(one) for one in ended), ended
    assert place.state_id(6) == twin
    assert len((place.run / "metrics.train.jsonl").read_text().splitlines()) == 6


def test_a_link_stays_a_link(new_place: Callable[[str], Place], finished: Path, twin: str) -> None:
    place = new_place("case")
    elsewhere = place.folder / "elsewhere"
    copy(finished, elsewhere)
    place.run.symlink_to(elsewhere)
    ended = place.do(*place.train("--overwrite_run_dir", "true"))
    assert ended.status == 0, ended
    assert place.run.is_symlink() and place.state_id(6) == twin
    assert (elsewhere / "checkpoints/checkpoint_000006").is_dir()
    first = running(place, *LONG, "--overwrite_run_dir", "true")
    direct = place.train(*LONG, "--overwrite_run_dir", "true", "--run_dir", str(elsewhere))
    second = place.do(*direct)
    assert refused(second), second
    assert let_go(first).status == 0


def test_nothing_old_is_deleted_before_the_new_can_start(place: Place, twin: str) -> None:
    for wrong in (
        ("--data.train_data", str(place.folder / "nowhere.jsonl")),
        ("--moshi_paths.hf_repo_id", str(place.folder)),
        ("--optim.lr", "-1"),
    ):
        ended = place.do(*place.train("--overwrite_run_dir", "true", *wrong))
        assert refused(ended), ended
        assert place.state_id(6) == twin and place.store.steps() == [2, 4, 6]
