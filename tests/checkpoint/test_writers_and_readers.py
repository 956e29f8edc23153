"""One writer at a time, readers at any time, and tidy folders after a crash."""

import errno
import fcntl
import json
import os
import signal
import threading

import pytest
import torch

from ttt_moshi.checkpoint import CheckpointError, CheckpointStore, LostLock, NoCheckpoint, Retention, verify

TENSORS = {"param/w": torch.arange(6.0)}


@pytest.fixture
def holder(tmp_path):
    """The pid of another process that writes to the folder."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        store = CheckpointStore(tmp_path / "c")
        store.open()
        os.write(writing, b"held")
        signal.pause()
    assert os.read(reading, 4) == b"held"
    os.close(reading)
    os.close(writing)
    yield child
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)


def test_a_second_writer_is_refused_and_told_by_whom(holder, tmp_path):
    (tmp_path / "c" / ".saving_000001").mkdir()
    with pytest.raises(CheckpointError, match=f"being written by process {holder} on "):
        CheckpointStore(tmp_path / "c").open()
    assert (tmp_path / "c" / ".saving_000001").exists(), "a refused writer must not sweep what the other is writing"


def test_the_lock_of_a_killed_writer_is_free(holder, tmp_path):
    os.kill(holder, signal.SIGKILL)
    os.waitid(os.P_PID, holder, os.WEXITED | os.WNOWAIT)
    with CheckpointStore(tmp_path / "c") as store:
        store.save(1, kind="adapters", tensors=TENSORS, state={})
    assert store.steps() == [1]


def test_one_process_cannot_write_twice_at_once(tmp_path):
    with CheckpointStore(tmp_path), pytest.raises(CheckpointError, match=f"process {os.getpid()} "):
        CheckpointStore(tmp_path).open()
    CheckpointStore(tmp_path).open()  # after the first has closed


def without_kernel_locks(monkeypatch):
    def refuse(*args):
        raise OSError(errno.ENOLCK, "no locks on this file system")

    monkeypatch.setattr(fcntl, "flock", refuse)


@pytest.mark.parametrize(
    "change, free",
    [
        ({}, False),
        ({"pid": 2**22 + 1}, True),
        ({"boot": "another boot"}, True),
        ({"started": "1"}, True),
        ({"host": "elsewhere"}, False),
        ({"host": "elsewhere", "boot": "another boot"}, False),
    ],
)
def test_without_kernel_locks_only_a_holder_that_is_surely_gone_gives_way(monkeypatch, holder, tmp_path, change, free):
    without_kernel_locks(monkeypatch)
    lock = tmp_path / "c" / "LOCK"
    lock.write_text(json.dumps({**json.loads(lock.read_text()), **change}))
    if free:
        CheckpointStore(tmp_path / "c").open()
    else:
        with pytest.raises(CheckpointError, match="delete "):
            CheckpointStore(tmp_path / "c").open()


def test_a_damaged_lock_file_is_no_obstacle(tmp_path):
    (tmp_path / "LOCK").write_bytes(b"\xff{")
    CheckpointStore(tmp_path).open()


def test_opening_sweeps_leftovers_and_touches_nothing_else(tmp_path):
    for name in (".saving_000007", ".trash_checkpoint_000003", ".replaced_000005", "notes", ".quarantine_000001"):
        (tmp_path / name / "resume").mkdir(parents=True)
        (tmp_path / name / "resume" / "file").write_text("x")
    (tmp_path / "checkpoint_000005").mkdir()
    with CheckpointStore(tmp_path) as store:
        assert sorted(os.listdir(tmp_path)) == [".quarantine_000001", "LOCK", "checkpoint_000005", "notes"]
        assert store.open() == []
    assert sorted(os.listdir(tmp_path / "notes" / "resume")) == ["file"]


def test_names_that_only_look_like_checkpoints_are_not(tmp_path):
    names = ("checkpoint_1", "checkpoint_0000001", "xcheckpoint_000001", "checkpoint_000001.bak", "checkpoint_00000a")
    for name in names:
        (tmp_path / name).mkdir()
    store = CheckpointStore(tmp_path)
    assert store.steps() == [] and store.newest_valid() is None
    assert CheckpointStore(tmp_path / "absent").steps() == []


def test_readers_see_only_whole_checkpoints_while_a_writer_saves_and_prunes(tmp_path, faults):
    seen, wrong, stop = set(), [], threading.Event()

    def read():
        reader = CheckpointStore(tmp_path, log=lambda line: None)
        while not stop.is_set():
            targets = {name: torch.zeros_like(tensor) for name, tensor in faults.contents(0, 0).items()}
            try:
                loaded = reader.load(tensors=targets)
            except NoCheckpoint:
                continue
            expected = faults.contents(loaded.step, loaded.state["version"])
            if not all(torch.equal(targets[name], tensor) for name, tensor in expected.items()):
                wrong.append(loaded.step)
            seen.add(loaded.step)

    threads = [threading.Thread(target=read) for _ in range(2)]
    for thread in threads:
        thread.start()
    with CheckpointStore(tmp_path, retention=Retention(last=1)) as store:
        for step in range(1, 25):
            faults.save_one(store, step, step % 3, "adapters", faults.contents(step, step % 3))
            if step % 5 == 0:
                faults.save_one(store, step, 9, "adapters", faults.contents(step, 9))
    stop.set()
    for thread in threads:
        thread.join()
    assert not wrong and len(seen) > 2
    assert store.steps() == [24] and verify(store.path(24)).ok
    assert not list(tmp_path.glob("corrupt*")), "a reader moved a checkpoint"


def test_memory_does_not_grow_with_the_number_of_saves(tmp_path):
    def resident():
        return int(open("/proc/self/statm").read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    weight = torch.zeros(1_000_000)
    with CheckpointStore(tmp_path, retention=Retention(last=1)) as store:
        sizes = []
        for step in range(40):
            store.save(step, kind="adapters", tensors={"param/w": weight}, state={})
            store.wait()
            sizes.append(resident())
    assert sizes[-1] - sizes[9] < 8 << 20, f"grew by {sizes[-1] - sizes[9]} bytes in 30 saves of 4 MB"


def test_a_claim_deletes_nothing_and_a_refused_start_leaves_no_trace(tmp_path):
    root = tmp_path / "run" / "checkpoints"
    store = CheckpointStore(root)
    store.claim()
    with pytest.raises(CheckpointError, match=f"being written by process {os.getpid()} "):
        CheckpointStore(root).claim()
    store.close()
    assert not (tmp_path / "run").exists(), "the folders were made for the claim alone"
    (root / ".saving_000001").mkdir(parents=True)
    store.claim()
    assert sorted(os.listdir(root)) == [".saving_000001", "LOCK"]
    store.close()
    assert (root / ".saving_000001").is_dir()


def test_a_run_that_replaces_another_clears_only_what_it_has_claimed(tmp_path, holder):
    with pytest.raises(CheckpointError, match="being written by process"):
        CheckpointStore(tmp_path / "c").clear()
    with CheckpointStore(tmp_path / "mine") as store:
        store.save(1, kind="adapters", tensors=TENSORS, state={})
        store.wait()
        (store.root / "notes").write_text("x")
        (store.root / "link").symlink_to(tmp_path)
        store.clear()
        assert os.listdir(store.root) == ["LOCK"] and tmp_path.is_dir()
        store.save(2, kind="adapters", tensors=TENSORS, state={})
        store.wait()
        assert store.steps() == [2]


@pytest.mark.parametrize("how", ["deleted", "replaced"])
def test_a_writer_that_lost_its_lock_commits_and_deletes_nothing_more(tmp_path, how):
    first = CheckpointStore(tmp_path, retention=Retention(last=1), log=lambda line: None)
    first.open()
    first.save(1, kind="adapters", tensors=TENSORS, state={})
    first.wait()
    (tmp_path / "LOCK").unlink()
    if how == "replaced":
        second = CheckpointStore(tmp_path)
        second.open()
        second.save(5, kind="adapters", tensors=TENSORS, state={})
        second.wait()
    for _ in range(2):
        first.save(2, kind="adapters", tensors=TENSORS, state={})
        with pytest.raises(LostLock, match="another run may be writing here"):
            first.wait()
    first.close()
    assert first.steps() == ([1, 5] if how == "replaced" else [1])
    if how == "replaced":
        second.save(6, kind="adapters", tensors=TENSORS, state={})
        assert second.wait().step == 6
        second.close()


def test_a_start_that_fails_after_its_claim_gives_the_claim_back(tmp_path, faults):
    class Broken(faults.Files):
        def rename(self, source, target):
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    (tmp_path / ".saving_000001").mkdir()
    with pytest.raises(OSError, match="Input/output error"), CheckpointStore(tmp_path, files=Broken()):
        pass
    with CheckpointStore(tmp_path) as store:
        assert store.steps() == []
