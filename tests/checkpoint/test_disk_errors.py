"""A full, broken or read-only disk at every operation: no false "saved", nothing lost, and saving goes on after."""

import errno
import os
import resource
import shutil
import signal

import pytest

from ttt_moshi.checkpoint import CheckpointError, CheckpointStore, Retention, SaveFailed, verify


def fail_everywhere(faults, quick_disk, number, quick, offset=0):
    """Fail every operation once with error `number`; (faults, of which surfaced as an error)."""
    log = faults.operations(quick_disk / str(number))
    tried = surfaced = 0
    for at in faults.every(len(log), quick, offset):
        root, acknowledged = quick_disk / f"{number}.{at}", []
        what = f"{errno.errorcode[number]} at operation {at} ({log[at]})"
        try:
            faults.scenario(root, faults.At(at, faults.failing(number)), lambda s, v: acknowledged.append((s, v)))  # noqa: B023
        except (CheckpointError, OSError) as error:
            surfaced += 1
            assert os.strerror(number) in str(error) or isinstance(error, OSError), f"{what}: {error}"
        if root.exists():
            faults.check_survivors(root, acknowledged, what)
        again = []
        faults.scenario(root, faults.Files(), lambda s, v: again.append((s, v)), saves=[(8, 0), (9, 0)])  # noqa: B023
        faults.check_survivors(root, [*acknowledged, *again], f"{what}, then two more saves")
        shutil.rmtree(root, ignore_errors=True)
        tried += 1
    return tried, surfaced


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO, errno.EDQUOT])
def test_some_operations_fail(faults, quick_disk, number):
    tried, surfaced = fail_everywhere(faults, quick_disk, number, quick=20, offset=number)
    assert surfaced > tried / 2


@pytest.mark.slow
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO, errno.EDQUOT, errno.EROFS])
def test_every_operation_fails(faults, quick_disk, number, tally):
    tried, _ = fail_everywhere(faults, quick_disk, number, quick=0)
    tally(f"{errno.errorcode[number]} at each operation", tried)


def next_save_works(faults, quick_disk, number, quick, offset=0):
    """Fail each operation of a save once: the store that failed commits the next save; (tried, of which failed)."""
    log, begins = faults.Counting(), []

    def four_saves(root, files):
        store = CheckpointStore(root, files=files, retention=Retention(last=faults.KEEP), log=lambda line: None)
        store.open()
        begins.append(len(files.log))
        results = []
        for step in (1, 2, 3, 4):
            try:
                faults.save_one(store, step, 0, "adapters", faults.contents(step, 0))
                results.append(step)
            except SaveFailed as error:
                assert error.step == step and os.strerror(number) in str(error)
        before_closing = len(files.log)
        store.close()
        return store, results, before_closing

    _, _, end = four_saves(quick_disk / "counted", log)
    tried = failed = 0
    for at in range(begins[0] + offset, end, max(1, (end - begins[0]) // quick) if quick else 1):
        root = quick_disk / f"{number}.{at}"
        what = f"{errno.errorcode[number]} at operation {at} ({log.log[at]})"
        store, saved, _ = four_saves(root, faults.At(at, faults.failing(number)))
        assert len(saved) >= 3, f"{what}: only {saved} of four saves were committed"
        tried, failed = tried + 1, failed + (len(saved) < 4)
        assert store.newest_valid() >= saved[-1], what
        faults.check_survivors(root, [(step, 0) for step in saved], what)
        shutil.rmtree(root)
    return tried, failed


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO])
def test_a_failed_save_leaves_the_store_fit_for_the_next(faults, quick_disk, number):
    _, failed = next_save_works(faults, quick_disk, number, quick=14, offset=number % 7)
    assert failed >= 4


@pytest.mark.slow
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO])
def test_a_save_that_fails_anywhere_leaves_the_store_fit_for_the_next(faults, quick_disk, number, tally):
    tried, failed = next_save_works(faults, quick_disk, number, quick=0)
    assert failed > 60
    tally(f"{errno.errorcode[number]} at each operation, and the same store saves on", tried)


def test_every_fsync_that_fails_surfaces(faults, quick_disk):
    """An fsync error means that bytes may be gone: such a save must never be called durable."""
    log = faults.operations(quick_disk)
    first_save = log.index("mkdir", log.index("remove"))  # after the folder was opened and probed
    for at in [index for index, name in enumerate(log) if name in ("sync", "sync_folder") and index > first_save]:
        acknowledged, said = [], []
        root = quick_disk / str(at)
        files = faults.At(at, faults.failing(errno.EIO))
        store = CheckpointStore(root, files=files, retention=Retention(last=faults.KEEP), log=said.append)
        try:
            for step, version in faults.SAVES:
                faults.save_one(store, step, version, "adapters", faults.contents(step, version))
                acknowledged.append((step, version))
            store.close()
            assert said, f"fsync {at} failed in silence"  # after a commit: pointers and pruning only
        except CheckpointError as error:
            assert "Input/output error" in str(error)
        finally:
            store.close()
        for step in store.steps():
            assert verify(store.path(step)).ok


def test_short_writes_are_completed(faults, tmp_path):
    class Short(faults.Files):
        def write(self, fd, data, offset):
            return os.pwrite(fd, data[: 4096 if len(data) > 4096 else len(data)], offset)

    with CheckpointStore(tmp_path, files=Short()) as store:
        faults.save_one(store, 1, 0, "full", faults.contents(1, 0))
    assert verify(store.path(1)).ok


def test_a_file_size_limit_fails_the_save_and_nothing_else(faults, tmp_path):
    def limited(tell):
        store = CheckpointStore(tmp_path)
        faults.save_one(store, 1, 0, "adapters", faults.contents(1, 0))
        tell(1, 0)
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, resource.RLIM_INFINITY))
        with pytest.raises(CheckpointError, match=r"File too large: '.*shard_00000_of_00001.safetensors'"):
            faults.save_one(store, 2, 0, "adapters", faults.contents(2, 0))
        tell(0, 0)

    status, acknowledged = faults.in_child(limited)
    assert status == 0 and acknowledged == [(1, 0), (0, 0)]
    faults.check_survivors(tmp_path, [(1, 0)], "file size limit")


def test_late_visibility_of_a_network_file_system_is_not_damage_for_other_ranks(faults, tmp_path):
    """A folder that the listing does not show yet is simply not there; nothing is moved or believed."""

    class Late(faults.Files):
        def names(self, path):
            return [name for name in super().names(path) if name != "checkpoint_000002"]

    with CheckpointStore(tmp_path) as store:
        for step in (1, 2):
            faults.save_one(store, step, 0, "adapters", faults.contents(step, 0))
    late = CheckpointStore(tmp_path, files=Late())
    assert late.load(tensors=faults.contents(0, 0)).step == 1
    assert store.steps() == [1, 2]
