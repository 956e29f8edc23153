"""Trouble is not corruption: an error of the operating system moves nothing, and wrong bytes are looked at twice."""

import errno
import os
import shutil

import pytest
import torch

from ttt_moshi.checkpoint import (
    CheckpointError,
    CheckpointStore,
    CorruptCheckpoint,
    ForeignCheckpoint,
    Retention,
    UnreadableCheckpoint,
    list_folder,
    newest_valid,
    prune,
    put_back,
    read_manifest,
    repair,
    trouble,
    verify,
)

ERRORS = [errno.ETIMEDOUT, errno.EIO, errno.ESTALE, errno.EACCES, errno.EMFILE, errno.ENOMEM]
LOOKING = ("open", "read_into", "size", "names", "is_at", "forget")


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch):
    monkeypatch.setattr(trouble, "PAUSES", (0.0, 0.0, 0.0))


@pytest.fixture
def folder(quick_disk, faults):
    """Three checkpoints."""
    with CheckpointStore(quick_disk / "c") as store:
        for step in (1, 2, 3):
            faults.save_one(store, step, 0, "adapters", faults.contents(step, 0))
    return store.root


def targets(faults):
    return {name: torch.zeros_like(tensor) for name, tensor in faults.contents(0, 0).items()}


def listing(root):
    return {str(p.relative_to(root)): p.stat().st_size for p in root.rglob("*") if p.name not in ("LOCK", "LATEST")}


def looking(faults, error, at, times):
    """Files whose looking operations `at` to `at + times` fail, and their log."""

    class Troubled(faults.Watched):
        watched = LOOKING
        log: list = []  # noqa: RUF012 - one class a call

        def around(self, name, operation, args):
            self.log.append(name)
            if at <= len(self.log) - 1 < at + times:
                raise OSError(error, os.strerror(error))
            return operation(*args)

    return Troubled()


def commands(faults):
    """What looks at a folder, by name: each takes (root, files) and may raise."""

    def resume(root, files):
        with CheckpointStore(root, files=files, log=lambda line: None) as store:
            loaded = store.load(tensors=targets(faults))
            assert loaded.step == 3 and not loaded.skipped

    return {
        "resume": resume,
        "newest": lambda root, files: (newest_valid(root, files=files) == 3) or pytest.fail("not the newest"),
        "verify": lambda root, files: verify(root / "checkpoint_000003", files=files).ok or pytest.fail("not verified"),
        "repair": lambda root, files: repair(root, files=files) == [] or pytest.fail("something was repaired"),
        "prune": lambda root, files: prune(root, Retention(last=3), files=files),
        "list": lambda root, files: list_folder(root, files=files),
    }


def trouble_everywhere(faults, folder, name, errors, stride, times):
    """Every `stride`-th looking operation of a command fails `times` times; (tried, of which the command gave up)."""
    work, before = commands(faults)[name], listing(folder)
    counting = looking(faults, errno.EIO, -1, 0)
    work(folder, counting)
    tried = gave_up = 0
    for at in range(0, len(counting.log), stride):
        error = errors[tried % len(errors)]
        what = f"{name}: {errno.errorcode[error]} at {at} ({counting.log[at]}), {times} times"
        try:
            work(folder, looking(faults, error, at, times))
        except (UnreadableCheckpoint, OSError) as caught:
            gave_up += 1
            assert os.strerror(error) in str(caught), what
        after = {path: size for path, size in listing(folder).items() if not path.startswith("journal")}
        assert after == {path: size for path, size in before.items() if not path.startswith("journal")}, what
        tried += 1
    return tried, gave_up


@pytest.mark.parametrize("name", ["resume", "newest", "verify", "repair", "prune", "list"])
def test_trouble_at_some_operations_moves_nothing(faults, folder, name):
    tried, gave_up = trouble_everywhere(faults, folder, name, ERRORS, stride=7, times=10_000)
    assert tried >= 3 and (gave_up > 0.7 * tried or name == "list")
    assert verify(folder / "checkpoint_000003").ok


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resume", "newest", "verify", "repair", "prune", "list"])
def test_trouble_at_every_operation_moves_nothing(faults, folder, name, tally):
    tried = 0
    for error in ERRORS:
        tried += trouble_everywhere(faults, folder, name, [error], stride=1, times=10_000)[0]
        tried += trouble_everywhere(faults, folder, name, [error], stride=1, times=1)[0]
    tally("read errors at each operation of a command: nothing moved", tried)


def test_trouble_that_passes_is_not_noticed(faults, folder):
    """Two failures in a row, at each reading operation in turn, and the newest checkpoint is restored all the same."""
    counting = looking(faults, errno.EIO, -1, 0)
    read = commands(faults)["newest"]
    read(folder, counting)
    for at in range(len(counting.log)):
        if counting.log[at] != "forget":
            read(folder, looking(faults, errno.ETIMEDOUT, at, 2))


def test_an_unreadable_file_is_named_with_its_path(faults, folder):
    shard = folder / "checkpoint_000003/resume/shard_00000_of_00001.safetensors"

    class Bad(faults.Files):
        def open(self, path, direct=False):
            if path in (shard, folder / "checkpoint_000003/manifest.json")[: self.which]:
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            return super().open(path, direct)

    for which, path in ((1, shard), (2, folder / "checkpoint_000003/manifest.json")):
        files = Bad()
        files.which = which
        with pytest.raises(UnreadableCheckpoint, match=str(path)):
            CheckpointStore(folder, files=files).load(tensors=targets(faults))
        with pytest.raises(UnreadableCheckpoint, match=str(path)):
            verify(folder / "checkpoint_000003", files=files)
        records = {record["name"]: record for record in list_folder(folder, files)}
        assert records["checkpoint_000003"]["status"] == "unreadable"
        assert records["checkpoint_000002"]["status"] == "valid"


def wrong_once(faults, file, flips):
    """Files that hand out wrong bits in each of the first `flips` readings of the start of a file."""

    class Flaky(faults.Files):
        fds: dict = {}  # noqa: RUF012
        left = flips

        def open(self, path, direct=False):
            fd = super().open(path, direct)
            self.fds[fd] = path
            return fd

        def close(self, fd):
            self.fds.pop(fd, None)
            super().close(fd)

        def read_into(self, fd, buffer, offset):
            count = super().read_into(fd, buffer, offset)
            data = offset >= 4096 if file.startswith("shard") else count > 8
            if fd in self.fds and self.fds[fd].name == file and self.left and data:
                self.left -= 1
                buffer[:count] = bytes(byte ^ 1 for byte in buffer[:count])
            return count

    return Flaky()


@pytest.mark.parametrize("file", ["manifest.json", "state.json", "config.json", "shard_00000_of_00001.safetensors"])
def test_wrong_bytes_are_believed_only_if_a_second_read_brings_them_again(faults, folder, file, caplog):
    with CheckpointStore(folder, files=wrong_once(faults, file, 1), log=lambda line: None) as store:
        values = targets(faults)
        loaded = store.load(tensors=values)
    assert loaded.step == 3 and not loaded.skipped and "memory may be faulty" in caplog.text
    assert all(torch.equal(values[name], tensor) for name, tensor in faults.contents(3, 0).items())
    assert verify(folder / "checkpoint_000003", files=wrong_once(faults, file, 1)).ok
    report = verify(folder / "checkpoint_000003", files=wrong_once(faults, file, 10_000))
    assert report.corrupt and file in report.problems[0].file


def test_what_is_set_aside_is_seen_and_comes_back_only_if_it_verifies(faults, folder):
    shard = folder / "checkpoint_000003/resume/shard_00000_of_00001.safetensors"
    data = bytearray(shard.read_bytes())
    data[-1] ^= 1
    shard.write_bytes(data)
    with CheckpointStore(folder, log=lambda line: None) as store:
        assert store.load(tensors=targets(faults)).step == 2
        with pytest.raises(CheckpointError, match="is being written by process"):
            put_back(folder / "corrupt_000003")
    assert {r["name"]: r["status"] for r in list_folder(folder)}["corrupt_000003"] == "set aside"
    with pytest.raises(CorruptCheckpoint, match=r"does not verify\n.*tensor"):
        put_back(folder / "corrupt_000003")
    data[-1] ^= 1
    (folder / "corrupt_000003/resume/shard_00000_of_00001.safetensors").write_bytes(data)
    assert put_back(folder / "corrupt_000003") == folder / "checkpoint_000003"
    assert verify(folder / "checkpoint_000003").ok and newest_valid(folder) == 3
    with pytest.raises(CheckpointError, match="was not set aside"):
        put_back(folder / "checkpoint_000003")
    shutil.copytree(folder / "checkpoint_000003", folder / "left_000003")
    with pytest.raises(CheckpointError, match="exists: move it away"):
        put_back(folder / "left_000003")
    os.rename(folder / "checkpoint_000003", folder / ".quarantine_000003")  # as earlier versions called it
    assert put_back(folder / ".quarantine_000003").name == "checkpoint_000003"


def strangers(folder):
    """Three folders that no version 2 wrote: of moshi-finetune, of another version, and a renamed copy."""
    from ttt_moshi.checkpoint.manifest import render

    (folder / "checkpoint_000007/consolidated").mkdir(parents=True)
    (folder / "checkpoint_000007/consolidated/lora.safetensors").write_bytes(b"x" * 100)
    for step in (8, 9):
        shutil.copytree(folder / "checkpoint_000003", folder / f"checkpoint_{step:06d}")
    manifest = read_manifest(folder / "checkpoint_000008")
    (folder / "checkpoint_000008/manifest.json").write_bytes(render({**manifest, "format_version": 3, "step": 8}))


def test_what_is_foreign_is_listed_left_alone_and_stops_nobody(faults, folder):
    strangers(folder)
    before = {p: p.read_bytes() for step in (7, 8, 9) for p in (folder / f"checkpoint_{step:06d}").rglob("*.*")}
    said = []
    with CheckpointStore(folder, retention=Retention(last=1), log=said.append) as store:
        assert store.newest_valid() == 3
        loaded = store.load(tensors=targets(faults))
        assert loaded.step == 3 and len(loaded.skipped) == 3 and len(said) == 6
        with pytest.raises(ForeignCheckpoint, match="step 7 is foreign"):
            store.load(7, tensors=targets(faults))
        assert store.leave_branch(3) == []
        faults.save_one(store, 4, 0, "adapters", faults.contents(4, 0))
        faults.save_one(store, 5, 0, "adapters", faults.contents(5, 0))
    assert store.steps() == [3, 5, 7, 8, 9]  # 3 is what the run was resumed from
    assert repair(folder) == []
    statuses = {record["name"]: record["status"] for record in list_folder(folder)}
    assert [statuses[f"checkpoint_{step:06d}"] for step in (5, 7, 8, 9)] == ["valid", "foreign", "foreign", "foreign"]
    with pytest.raises(ForeignCheckpoint):
        verify(folder / "checkpoint_000009")
    assert {path: path.read_bytes() for path in before} == before


def test_a_save_of_a_step_that_a_stranger_occupies_keeps_the_stranger(faults, folder):
    strangers(folder)
    with CheckpointStore(folder, log=lambda line: None) as store:
        faults.save_one(store, 7, 0, "adapters", faults.contents(7, 0))
    assert verify(folder / "checkpoint_000007").ok
    assert (folder / "foreign_000007/consolidated/lora.safetensors").read_bytes() == b"x" * 100
