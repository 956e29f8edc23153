"""A folder that goes read-only, full or away: the command says so, and what was saved is there."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.application.harness import Fault, Place, changes, snapshot
from tests.application.tally import TALLY

WRITES = ("mkdir", "create", "pwrite", "write", "rename", "fsync", "posix_fallocate", "ftruncate")


def broken(number: str, nth: int = 1, path: str = "/run/") -> tuple[Fault, ...]:
    """A disk on which, from the nth of each on, nothing can be written."""
    return tuple(Fault(call, path, nth, errno=number) for call in WRITES)


@pytest.fixture()
def twin(finished: Path, material: Path, warm: object) -> str:
    """State id after six steps of a run that was left alone."""
    return Place(finished.parent, material, warm).state_id(6)  # type: ignore[arg-type]


@pytest.mark.parametrize("number", ["EROFS", "ENOSPC"])
def test_a_start_on_a_disk_that_takes_nothing(number: str, new_place: Callable[[str], Place], twin: str) -> None:
    place = new_place("case")
    ended = place.do(*place.train(), faults=broken(number))
    TALLY.saw("train", f"{number} from the start", ended)
    assert ended.status == 2 and ended.lines[-1].startswith("error: "), ended
    assert "Traceback" not in ended.err and str(place.run) in ended.lines[-1], ended
    again = place.do(*place.train("--checkpoint.resume", "auto"))
    assert again.status == 0 and place.state_id(6) == twin, again


@pytest.mark.parametrize("number", ["ENOSPC", *(pytest.param(n, marks=pytest.mark.slow) for n in ("EROFS", "EIO"))])
def test_a_disk_that_fails_during_a_save(number: str, new_place: Callable[[str], Place], twin: str) -> None:
    place = new_place("case")
    faults = tuple(Fault(call, ".saving_000004", errno=number) for call in WRITES)
    ended = place.do(*place.train(), faults=faults)
    TALLY.saw("train", f"{number} during a save", ended)
    assert ended.status == 1 and "Traceback" not in ended.err, ended
    assert "--checkpoint.resume" in ended.err and place.store.steps() == [2], ended
    assert ".saving_000004" in ended.err or "checkpoint_000004" in ended.err or "step 4" in ended.err, ended
    again = place.do(*place.train("--checkpoint.resume", "auto"))
    assert again.status == 0 and place.state_id(6) == twin, again


def test_a_run_that_has_saved_nothing_is_a_run(new_place: Callable[[str], Place]) -> None:
    place = new_place("case")
    assert place.do(*place.train("--max_steps", "1", "--do_ckpt", "false")).status == 0
    shutil.rmtree(place.run / "checkpoints", ignore_errors=True)
    before = snapshot(place.run)
    for words, status in ((["ckpt", "ls"], 0), (["status"], 1)):
        ended = place.do(*words, place.run)
        assert ended.status == status and "a run that has no checkpoint yet" in ended.out, ended
    shown = place.do("ckpt", "show", place.run)
    assert shown.status == 2 and "no valid checkpoint in" in shown.err, shown
    assert place.do("ckpt", "repair", place.run).status == 0 and changes(before, snapshot(place.run)) == []


def test_a_start_on_a_disk_that_is_full_names_it_and_what_to_do(new_place: Callable[[str], Place]) -> None:
    place = new_place("case")
    lock = place.run / "checkpoints/LOCK"
    for call in ("pwrite", "ftruncate", "preadv"):
        ended = place.do(*place.train(), faults=(Fault(call, "/LOCK", errno="ENOSPC"),))
        assert ended.status == 2 and "Traceback" not in ended.err, ended
        assert str(lock) in ended.lines[-1] and "free some space there, or name another folder" in ended.lines[-1], (
            ended
        )


def test_a_checkpoint_that_was_moved_to_another_disk_and_linked_is_left_there(place: Place) -> None:
    root, elsewhere = place.run / "checkpoints", place.folder / "elsewhere"
    for step in (2, 4, 6):
        name = f"checkpoint_{step:06d}"
        shutil.move(root / name, elsewhere / name)
        (root / name).symlink_to(elsewhere / name)
    before = snapshot(elsewhere)
    ended = place.do(*place.train("--max_steps", "7", "--num_ckpt_keep", "2", "--checkpoint.resume", "true"))
    assert ended.status == 0 and "failed" not in ended.err, ended
    assert place.store.steps() == [6, 7] and changes(before, snapshot(elsewhere)) == []
    listed = json.loads(place.do("ckpt", "ls", place.run, "--json").out)
    sizes = {record["name"]: record["bytes"] for record in listed}
    moved = sum(file.stat().st_size for file in (elsewhere / "checkpoint_000006").rglob("*") if file.is_file())
    assert sizes["checkpoint_000006"] == moved
    pruned = place.do("ckpt", "prune", place.run, "--last", "1")
    assert pruned.status == 0 and "it is a link: what it leads to stays" in pruned.out, pruned
    assert place.store.steps() == [7] and changes(before, snapshot(elsewhere)) == []
    # As an earlier version left them: links on their way out, and a file that nobody expects there.
    for command in (["ckpt", "repair", place.run], place.train("--checkpoint.resume", "true", "--max_steps", "7")):
        (root / ".trash_checkpoint_000002").symlink_to(elsewhere / "checkpoint_000002")
        (root / ".saving_000004").symlink_to(elsewhere / "checkpoint_000004")
        (root / ".trash_checkpoint_000006").write_bytes(b"x")
        ended = place.do(*command)
        assert ended.status == (1 if command[0] == "ckpt" else 0), ended
        assert not list(root.glob(".[ts]*")) and changes(before, snapshot(elsewhere)) == []


def test_a_folder_that_goes_away(new_place: Callable[[str], Place], twin: str) -> None:
    place = new_place("case")
    process = place.start(*place.train("--max_steps", "60"))
    metrics, moved = place.run / "metrics.train.jsonl", place.folder / "moved"
    while process.poll() is None and not (metrics.exists() and len(metrics.read_text().splitlines()) > 3):
        time.sleep(0.005)
    place.run.rename(moved)
    ended = process.wait()
    said = [line for line in ended.lines if line.startswith("error: ")]
    assert ended.status == 1 and len(said) == 1 and str(place.run) in said[0], ended
    assert "finished" not in ended.err and "Traceback" not in ended.err, ended
    shutil.rmtree(place.run, ignore_errors=True)
    moved.rename(place.run)
    again = place.do(*place.train("--max_steps", "60", "--checkpoint.resume", "auto"))
    assert again.status == 0 and place.store.steps()[-1] == 60, again


@pytest.mark.parametrize("name", ["generate", "eval", "export", "prepare"])
def test_output_on_a_disk_that_takes_nothing(name: str, place: Place) -> None:
    wav = next((place.material / "eval/data_stereo").glob("*.wav"))
    words = {
        "generate": ["generate", "--checkpoint_dir", place.run, "--input", wav, "--out", place.folder / "out/talk.wav"],
        "eval": [
            "eval",
            "--checkpoint_dir",
            place.run / "checkpoints/checkpoint_000006",
            "--out",
            place.folder / "out/e",
        ],
        "export": ["ckpt", "export", place.run, place.folder / "out/x"],
        "prepare": ["data", "prepare", place.material / "train/data_stereo", "--out", place.folder / "out/d"],
    }[name]
    (place.folder / "out").mkdir()
    before = snapshot(place.run)
    ended = place.do(*words, faults=broken("ENOSPC", path="/out/"))
    TALLY.saw(name, "ENOSPC", ended)
    assert ended.status == 2 and ended.lines[-1].startswith("error: ") and "/out" in ended.lines[-1], ended
    assert "Traceback" not in ended.err
    assert changes(before, snapshot(place.run)) == []


@pytest.mark.parametrize("times", [1, None])
def test_metrics_that_cannot_be_written_end_the_run_after_saving(
    times: int | None, new_place: Callable[[str], Place], twin: str
) -> None:
    place = new_place("case")
    faults = (Fault("write", "run/metrics.train.jsonl", 3, errno="ENOSPC", times=times),)
    ended = place.do(*place.train(), faults=faults)
    TALLY.saw("train", "ENOSPC in the metrics", ended)
    assert ended.status == 1 and "Traceback" not in ended.err, ended
    (error,) = [line for line in ended.lines if line.startswith("error: ")]
    assert "the metrics cannot be written" in error and "metrics.train.jsonl" in error, error
    good = place.store.newest_valid()
    assert good is not None and f"Step {good} can be resumed" in error
    again = place.do(*place.train("--checkpoint.resume", "auto"))
    assert again.status == 0 and place.state_id(6) == twin, again
    steps = [json.loads(line)["step"] for line in (place.run / "metrics.train.jsonl").read_text().splitlines()]
    if times is None:
        assert "metrics.train.jsonl: its last 2 lines are lost" in ended.err
        assert steps == [1, 2, 5, 6]
    else:
        assert steps == [1, 2, 3, 4, 5, 6]
