"""Real file systems that are full or read-only, where this machine lets the tests mount one; not only failed calls."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.application.harness import Fault, Place, changes, snapshot
from ttt_moshi.checkpoint.saving import PIECE


@pytest.fixture()
def mount(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """Mounts an empty file system in memory, or mounts it again with other options: `mount("size=2m")`."""
    folder = tmp_path / "disk"
    folder.mkdir()

    def do(options: str) -> Path:
        again = ["-o", f"remount,{options}"] if folder.is_mount() else ["-t", "tmpfs", "-o", options, "none"]
        done = subprocess.run(["mount", *again, str(folder)], capture_output=True, text=True, check=False)
        if done.returncode:
            pytest.skip(f"this machine mounts nothing for us: {done.stderr.strip()}")
        return folder

    yield do
    subprocess.run(["umount", "--lazy", str(folder)], capture_output=True, check=False)


def test_a_disk_that_fills_up_loses_nothing_that_was_saved(
    mount: Callable[[str], Path], new_place: Callable[[str], Place], finished: Path
) -> None:
    one = sum(path.stat().st_size for path in (finished / "checkpoints/checkpoint_000002").rglob("*"))
    disk = mount(f"size={int(1.7 * one) + PIECE}")  # a save begins only where there is some room to spare
    place = new_place("case")
    place.run.symlink_to(disk / "run")
    (disk / "run").mkdir()
    ended = place.do(*place.train())
    assert ended.status == 1 and "Traceback" not in ended.err, ended
    assert "disk" in ended.lines[-3] or "No space left" in ended.err or "no room for" in ended.err, ended
    assert "Step 2 can be resumed" in ended.err and place.store.newest_valid() == 2, ended
    verified = place.do("ckpt", "verify", place.run)
    assert verified.status == 0, verified
    mount("size=1g")
    again = place.do(*place.train("--checkpoint.resume", "auto"))
    assert again.status == 0, again
    assert place.state_id(6) == Place(finished.parent, place.material, place.warm).state_id(6)


def test_a_read_only_disk_refuses_a_start_and_lets_everything_be_read(
    mount: Callable[[str], Path], place: Place
) -> None:
    disk = mount("size=1g")
    subprocess.run(["cp", "-a", str(place.run), str(disk / "run")], check=True)
    mount("ro")
    before = snapshot(disk)
    for words in (
        place.train("--run_dir", str(disk / "run"), "--checkpoint.resume", "auto", "--max_steps", "8"),
        place.train("--run_dir", str(disk / "new")),
        ["ckpt", "prune", disk / "run", "--last", "1"],
        ["ckpt", "export", place.run, disk / "export"],
        ["data", "prepare", place.material / "train/data_stereo", "--out", disk / "data"],
        ["eval", "--checkpoint_dir", place.run / "checkpoints/checkpoint_000006", "--out", disk / "evaluation"],
    ):
        ended = place.do(*words)
        assert ended.status == 2 and ended.lines[-1].startswith("error: ") and str(disk) in ended.err, ended
        assert "Traceback" not in ended.err, ended
    for words in (["ckpt", "ls"], ["ckpt", "show"], ["ckpt", "verify"], ["status"]):
        ended = place.do(*words, disk / "run")
        assert ended.status == 0 and ended.out, ended
    assert changes(before, snapshot(disk)) == []


@pytest.mark.parametrize(
    ("call", "path"), [("pwrite", "LOCK"), ("create", "LOCK"), ("fsync", "case"), ("mkdir", "run")]
)
def test_a_start_that_finds_no_room_for_its_lock_leaves_nothing(
    new_place: Callable[[str], Place], call: str, path: str
) -> None:
    place = new_place("case")
    ended = place.do(*place.train(), faults=(Fault(call, path, errno="ENOSPC"),))
    assert ended.status == 2 and "No space left" in ended.lines[-1] and str(place.folder) in ended.lines[-1], ended
    assert len(ended.lines) == 1 and not place.run.exists(), ended


def test_a_lock_that_cannot_be_signed_is_free_again(place: Place) -> None:
    ended = place.do(*place.train("--checkpoint.resume", "true"), faults=(Fault("pwrite", "LOCK", errno="ENOSPC"),))
    assert ended.status == 2 and "No space left" in ended.lines[-1], ended
    assert (place.run / "checkpoints" / "LOCK").read_bytes() == b""
    again = place.do(*place.train("--checkpoint.resume", "true", "--max_steps", "7"))
    assert again.status == 0, again


@pytest.mark.parametrize(
    ("call", "path"),
    [("write", "launches"), ("create", "metrics.train"), ("create", "metrics.eval"), ("mkdir", "launches")],
)
def test_a_start_that_finds_no_room_for_its_records_can_be_repeated(
    new_place: Callable[[str], Place], call: str, path: str
) -> None:
    place = new_place("case")
    words = place.train("--max_steps", "1")
    ended = place.do(*words, faults=(Fault(call, path, errno="ENOSPC"),))
    assert ended.status == 2 and "No space left" in ended.lines[-1] and not place.run.exists(), ended
    again = place.do(*words)
    assert again.status == 0, again


@pytest.mark.parametrize("nth", [1, 2, 8, 20])
def test_curves_that_cannot_be_written_are_a_line_and_no_traceback(new_place: Callable[[str], Place], nth: int) -> None:
    """Without checkpoints nothing has asked for room before."""
    place = new_place("case")
    words = place.train("--do_ckpt", "false", "--ckpt_freq", "0", "--num_ckpt_keep", "3", "--max_steps", "30")
    ended = place.do(*words, faults=(Fault("write", "tensorboard", nth, errno="ENOSPC"),))
    assert ended.status in (1, 2) and "Traceback" not in ended.err, ended
    assert ended.lines[-1].startswith("error: ") and f"{place.run}/tensorboard" in ended.lines[-1], ended
    assert place.run.exists() == (ended.status == 1), ended
