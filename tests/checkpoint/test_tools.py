"""What stands behind the commands: describing, comparing, exporting, repairing and mirroring checkpoints."""

import errno
import json
import os
import shutil
import threading
from pathlib import Path

import fsspec
import pytest
import torch
from safetensors.torch import load_file

from ttt_moshi.checkpoint import (
    CheckpointError,
    CheckpointStore,
    CorruptCheckpoint,
    Export,
    Retention,
    check_mirror,
    copy_out,
    describe,
    diff,
    export_weights,
    list_folder,
    read_manifest,
    repair,
    verify,
)


@pytest.fixture
def folder(tmp_path, faults):
    """Checkpoints of steps 1 to 3 that differ in a known way."""
    with CheckpointStore(tmp_path / "c") as store:
        for step in (1, 2, 3):
            faults.save_one(store, step, 0, "full", faults.contents(step, 0))
    return store.root


def flip(path):
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def test_describe_counts_tensors_and_elements_as_two_numbers(folder):
    seen = describe(folder / "checkpoint_000002")
    assert seen["groups"]["param"] == {"tensors": 2, "elements": 61}
    assert seen["groups"]["exp_avg"] == {"tensors": 1, "elements": 60}
    assert seen["exports"] == {"consolidated/consolidated.safetensors": {"tensors": 2, "elements": 120}}
    assert seen["state"] == {"step": 2, "version": 0, "cursor": 16}
    assert seen["documents"] == {"consolidated/config.json": {"lora": False}}
    assert seen["bytes"] == sum(seen["files"].values()) and seen["parent"]["step"] == 1
    json.dumps(seen, allow_nan=False)


def test_listing_tells_every_folder_for_what_it_is(folder):
    (folder / ".saving_000009").mkdir()
    (folder / "notes").mkdir()
    store = CheckpointStore(folder, log=lambda line: None)
    store.set_pinned(1)
    with store:
        store.save(4, kind="full", tensors={"param/w": torch.tensor([float("inf")])}, state={})
        store.wait()
        flip(folder / "checkpoint_000003" / "resume" / "state.json")
        store.load(tensors={}, strict=False)
    (folder / "checkpoint_000002" / "resume" / "state.json").unlink()
    (folder / "checkpoint_000007" / "consolidated").mkdir(parents=True)
    (folder / "checkpoint_000007" / "consolidated" / "lora.safetensors").write_bytes(b"1234")
    (folder / ".saving_000010").mkdir()
    seen = {record["name"]: record for record in list_folder(folder)}
    assert {name: record["status"] for name, record in seen.items()} == {
        ".saving_000010": "leftover",
        "checkpoint_000001": "valid",
        "checkpoint_000002": "corrupt",
        "checkpoint_000007": "foreign",
        "corrupt_000003": "set aside",
        "notes": "foreign",
        "unhealthy_000004": "unhealthy",
    }
    assert seen["checkpoint_000001"]["pinned"] and seen["checkpoint_000001"]["metrics"] == {"loss": 1.0}
    assert "does not match its digest" in seen["corrupt_000003"]["problem"]
    assert "no manifest.json" in seen["checkpoint_000007"]["problem"] and seen["checkpoint_000007"]["bytes"] == 4
    files = [file for file in folder.rglob("*") if file.is_file() and file.parent != folder]
    assert sum(record["bytes"] for record in seen.values()) == sum(file.stat().st_size for file in files)
    assert "state.json: the file is missing" in seen["checkpoint_000002"]["problem"]


def test_diff_names_what_changed_and_by_how_much(folder, tmp_path):
    seen = diff(folder / "checkpoint_000001", folder / "checkpoint_000002")
    assert not seen["same_state"] and seen["equal"] == 1  # the empty tensor
    first = torch.arange(60.0) + 1000
    assert seen["changed"]["param/w"]["max_abs"] == 1000.0
    assert seen["changed"]["param/w"]["relative"] == pytest.approx(1000 * 60**0.5 / first.double().norm().item())
    assert seen["documents"]["resume/state.json: state.cursor"] == [8, 16]
    assert "consolidated/config.json: lora" not in seen["documents"]
    with CheckpointStore(tmp_path / "other") as store:
        tensors = {"param/w": torch.zeros(20, 4), "param/new": torch.zeros(1)}
        store.save(1, kind="full", tensors=tensors, state={})
    seen = diff(folder / "checkpoint_000001", store.path(1))
    assert seen["only_in_second"] == ["param/new"] and "exp_avg/w" in seen["only_in_first"]
    assert seen["other_shape_or_dtype"] == ["param/w"]
    same = diff(folder / "checkpoint_000001", folder / "checkpoint_000001")
    assert same["same_state"] and not same["changed"] and not same["documents"]


def test_export_copies_checked_weights_in_one_file_or_many(folder, tmp_path):
    path = folder / "checkpoint_000002"
    whole = load_file(path / "consolidated/consolidated.safetensors")
    written = export_weights(path, tmp_path / "one")
    assert sorted(file.name for file in written) == ["config.json", "consolidated.safetensors"]
    assert json.loads((tmp_path / "one/config.json").read_text()) == {"lora": False}
    one = load_file(tmp_path / "one/consolidated.safetensors")
    assert one.keys() == whole.keys() and all(torch.equal(one[name], whole[name]) for name in whole)
    export_weights(path, tmp_path / "many", shard_bytes=200)
    index = json.loads((tmp_path / "many/consolidated.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in whole.values())
    assert len(set(index["weight_map"].values())) == 2
    for name, file in index["weight_map"].items():
        assert torch.equal(load_file(tmp_path / "many" / file)[name], whole[name])
    with pytest.raises(CheckpointError, match="not empty"):
        export_weights(path, tmp_path / "one")
    flip(path / "consolidated/consolidated.safetensors")
    with pytest.raises(CorruptCheckpoint, match=r"consolidated.safetensors: tensor "):
        export_weights(path, tmp_path / "bad")


def test_exporting_needs_little_memory(tmp_path):
    """A frozen model many times the buffer goes out with bounded extra memory."""
    frozen = {f"w{i}": torch.zeros(2_000_000, dtype=torch.float32) for i in range(24)}  # 192 MB
    exports = {"model.safetensors": {name: Export(tensor, torch.float32) for name, tensor in frozen.items()}}

    def peak():
        lines = Path("/proc/self/status").read_text().split("\n")
        return next(int(line.split()[1]) << 10 for line in lines if line.startswith("VmHWM"))

    with CheckpointStore(tmp_path) as store:
        store.reserve({"param/w": torch.zeros(10)})
        Path("/proc/self/clear_refs").write_text("5")  # start the peak anew
        before = peak()
        store.save(1, kind="full", tensors={"param/w": torch.zeros(10)}, state={}, exports=exports)
        store.wait()
    assert peak() - before < (64 << 20) + 8_000_000
    assert verify(store.path(1)).ok


def test_repair_sweeps_sets_aside_and_points_to_the_newest(folder):
    flip(folder / "checkpoint_000003/resume/shard_00000_of_00001.safetensors")
    (folder / ".trash_checkpoint_000000").mkdir()
    (folder / "LATEST").unlink()
    done = repair(folder)
    assert len(done) == 2 and "removed .trash_checkpoint_000000" in done[0]
    assert "set aside checkpoint_000003 as corrupt_000003" in done[1] and "tensor" in done[1]
    assert (folder / "LATEST").read_text() == "checkpoint_000002\n"
    assert repair(folder) == []
    with CheckpointStore(folder), pytest.raises(CheckpointError, match="being written"):
        repair(folder)


def test_a_mirror_is_whole_resumable_and_checked(folder, tmp_path):
    path, url = folder / "checkpoint_000002", f"file://{tmp_path}/mirror"
    sent = copy_out(path, url)
    assert sent == sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    assert verify(tmp_path / "mirror/checkpoint_000002").ok
    assert copy_out(path, url) == 0
    shard = tmp_path / "mirror/checkpoint_000002/resume/shard_00000_of_00001.safetensors"
    shard.write_bytes(shard.read_bytes()[:100])  # an interrupted copy
    beside = tmp_path / "mirror/.copying_checkpoint_000002"
    shutil.copytree(path, beside)  # one that was interrupted later
    (beside / "manifest.json").unlink()
    assert copy_out(path, url) == (path / "manifest.json").stat().st_size
    assert verify(tmp_path / "mirror/checkpoint_000002").ok
    assert os.listdir(tmp_path / "mirror") == ["checkpoint_000002"]


@pytest.mark.parametrize("url", ["file://{}", "memory://twice"])
def test_a_copy_of_a_step_saved_again_is_never_half_old_and_half_new(folder, tmp_path, faults, url, monkeypatch):
    """At every write to the mirror, what has a manifest there is one of the two checkpoints, whole."""
    from fsspec.implementations.local import LocalFileSystem
    from fsspec.implementations.memory import MemoryFileSystem

    url = url.format(tmp_path / "mirror")
    path = folder / "checkpoint_000002"
    copy_out(path, url)
    old = read_manifest(path)["state_id"]
    with CheckpointStore(folder) as store:
        faults.save_one(store, 2, 7, "full", faults.contents(2, 7))
    new, seen = read_manifest(path)["state_id"], []
    remote, base = fsspec.core.url_to_fs(url)

    def look(*args, **options):
        there = tmp_path / "look"
        shutil.rmtree(there, ignore_errors=True)
        if remote.exists(f"{base}/checkpoint_000002/manifest.json"):
            remote.get(f"{base}/checkpoint_000002", str(there), recursive=True)
            report = verify(there)
            assert report.ok, report.text()
            seen.append(report.state_id)

    for kind in (LocalFileSystem, MemoryFileSystem):
        put = kind.put_file
        monkeypatch.setattr(kind, "put_file", lambda self, *a, put=put, **o: (look(), put(self, *a, **o), look())[1])
        move = kind.mv
        monkeypatch.setattr(kind, "mv", lambda self, *a, move=move, **o: (look(), move(self, *a, **o), look())[1])
    copy_out(path, url)
    look()
    assert seen[0] == old and seen[-1] == new and len(seen) > 8


def test_a_mirror_where_the_run_is_would_be_no_second_copy(tmp_path):
    run, elsewhere = tmp_path / "runs/one", tmp_path / "elsewhere"
    for made in (run, elsewhere / "checkpoints"):
        made.mkdir(parents=True)
    (run / "checkpoints").symlink_to(elsewhere / "checkpoints")
    (tmp_path / "link").symlink_to(run)
    kept = [run, run / "checkpoints"]
    for wrong in (run, run / "checkpoints", run / "mirror", tmp_path / "runs", tmp_path / "link/mirror", elsewhere):
        for url in (str(wrong), f"file://{wrong}"):
            with pytest.raises(CheckpointError, match=r"`checkpoint.mirror`: .* no place for a second copy"):
                check_mirror(url, kept)
    for right in (tmp_path / "runs/one_copy", tmp_path / "copies", "memory://runs/one"):
        check_mirror(str(right), kept)


def test_the_mirror_owns_what_it_has_queued(tmp_path, faults, monkeypatch):
    """Saves are faster than the mirror, one checkpoint is kept: each is copied all the same, and then deleted."""
    from ttt_moshi.checkpoint import mirror

    go, copy = threading.Event(), mirror.copy_out
    monkeypatch.setattr(mirror, "copy_out", lambda path, url: (go.wait(60), copy(path, url))[1])
    said, url = [], str(tmp_path / "mirror")
    with CheckpointStore(tmp_path / "c", mirror=url, retention=Retention(last=1), log=said.append) as store:
        for step in range(1, 6):
            faults.save_one(store, step, 0, "adapters", faults.contents(step, 0))
        assert store.steps() == [1, 2, 3, 4, 5] and "slower than checkpoints are saved" in said[0]
        go.set()
    assert sorted(os.listdir(url)) == [f"checkpoint_{step:06d}" for step in range(1, 6)]
    assert all(verify(tmp_path / "mirror" / name).ok for name in os.listdir(url))
    assert store.steps() == [5]


def test_a_mirror_that_hangs_is_not_waited_for_without_end(tmp_path, faults, monkeypatch):
    from ttt_moshi.checkpoint import mirror

    go, said = threading.Event(), []
    monkeypatch.setattr(mirror, "copy_out", lambda path, url: go.wait(300))
    store = CheckpointStore(tmp_path / "c", mirror=str(tmp_path / "m"), timeout=0.5, log=said.append)
    faults.save_one(store, 1, 0, "adapters", faults.contents(1, 0))
    store.close()
    go.set()
    assert "checkpoint_000001" in said[-1] and "within 0.5 s (patience_minutes)" in said[-1]
    CheckpointStore(tmp_path / "c").open()  # the lock is free


def test_committed_checkpoints_are_mirrored_in_the_background(tmp_path, faults):
    with CheckpointStore(tmp_path / "c", mirror="memory://copies") as store:
        faults.save_one(store, 1, 0, "adapters", faults.contents(1, 0))
    files = fsspec.filesystem("memory").find("/copies/checkpoint_000001")
    assert sorted(name.removeprefix("/copies/checkpoint_000001/") for name in files) == sorted(
        [*describe(store.path(1))["files"], "manifest.json"]
    )


def test_trouble_with_a_mirror_is_told_and_never_stops_training(tmp_path, faults):
    said = []
    with CheckpointStore(tmp_path / "c", mirror="nonsense://x", log=said.append) as store:
        for step in (1, 2):
            faults.save_one(store, step, 0, "adapters", faults.contents(step, 0))
    assert store.steps() == [1, 2] and len(said) == 2 and "training is not affected" in said[0]


def test_room_is_checked_before_the_first_step(tmp_path, faults):
    class Free(faults.Files):
        left = 1 << 34

        def free_bytes(self, path):
            return self.left

    said, tensors = [], {"param/w": torch.zeros(1000)}
    files = Free()
    with CheckpointStore(tmp_path, files=files, retention=Retention(last=3), log=said.append) as store:
        size = store.reserve(tensors, exported_bytes=10**6)
        assert size > 10**6 + 4000 and not said
        with pytest.raises(CheckpointError, match=r"no room for a checkpoint: it needs 17.18 GB"):
            store.reserve(tensors, exported_bytes=1 << 34)
        store.reserve(tensors, exported_bytes=1 << 33)
        assert "lacks 17.18 GB for 4 checkpoints" in said[0]


def test_an_unwritable_folder_is_one_clear_error(tmp_path, faults):
    class ReadOnly(faults.Files):
        def mkdir(self, path):
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))

    with pytest.raises(OSError, match="Read-only file system"):
        CheckpointStore(tmp_path / "c", files=ReadOnly()).open()
