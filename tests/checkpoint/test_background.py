"""Saving goes on behind training: what waits for what, and how the container looks to others."""

import json
import threading

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load

from ttt_moshi.checkpoint import CheckpointError, CheckpointStore, verify
from ttt_moshi.checkpoint.dtypes import DTYPES
from ttt_moshi.checkpoint.image import Image, shard_plan
from ttt_moshi.checkpoint.rows import rows_of
from ttt_moshi.checkpoint.tensorfile import plan


@pytest.fixture
def gate(faults):
    """Files whose writes of a shard wait until the gate is opened, as on a very slow disk."""

    class Gated(faults.Files):
        def __init__(self):
            self.opened, self.reached, self.closed_for = threading.Event(), threading.Event(), "shard"
            self.shards = set()

        def create(self, path, direct=False):
            fd = super().create(path, direct)
            (self.shards.add if self.closed_for in path.name else self.shards.discard)(fd)
            return fd

        def write(self, fd, data, offset):
            if fd in self.shards:
                self.reached.set()
                self.opened.wait()
            return super().write(fd, data, offset)

    return Gated()


def test_training_goes_on_while_a_slow_disk_writes(tmp_path, gate):
    weight = torch.arange(1000.0)
    before = weight.clone()
    with CheckpointStore(tmp_path, files=gate) as store:
        store.save(1, kind="adapters", tensors={"param/w": weight}, state={})
        gate.reached.wait()
        assert store.poll() is None and store.steps() == []
        store.wait_staged()
        weight.mul_(-1)
        gate.opened.set()
        assert store.wait().step == 1
        target = {"param/w": torch.zeros(1000)}
        store.load(1, tensors=target)
    assert torch.equal(target["param/w"], before)


def test_a_save_that_must_wait_for_the_one_before_says_so(tmp_path, gate):
    said = []
    with CheckpointStore(tmp_path, files=gate, log=said.append) as store:
        store.save(1, kind="adapters", tensors={"param/w": torch.zeros(3)}, state={})
        gate.reached.wait()
        assert not said
        threading.Timer(0.05, gate.opened.set).start()
        store.save(2, kind="adapters", tensors={"param/w": torch.ones(3)}, state={})
    assert store.steps() == [1, 2] and "training waits for the save of step 2" in said[0]
    assert all(verify(store.path(step)).ok for step in (1, 2))


def test_a_failed_save_leaves_no_litter_for_the_next(tmp_path, faults):
    class Broken(faults.Files):
        broken = True

        def sync(self, fd):
            if self.broken:
                raise OSError(5, "disk trouble")
            super().sync(fd)

    files = Broken()
    with CheckpointStore(tmp_path, files=files) as store:
        store.save(1, kind="adapters", tensors={"param/w": torch.zeros(3)}, state={})
        with pytest.raises(CheckpointError, match="disk trouble"):
            store.wait()
        files.broken = False
        store.save(2, kind="adapters", tensors={"param/w": torch.zeros(3)}, state={})
    assert store.steps() == [2] and not list(tmp_path.glob(".saving*"))


def test_an_error_that_nobody_polled_for_is_raised_by_the_next_save_or_close(tmp_path, faults):
    class Broken(faults.Files):
        def write(self, fd, data, offset):
            raise OSError(5, "disk trouble")

    store = CheckpointStore(tmp_path)
    store.open()
    store._files.__class__ = Broken
    for last in (lambda: store.save(2, kind="adapters", tensors={"param/w": torch.zeros(3)}, state={}), store.close):
        store.save(1, kind="adapters", tensors={"param/w": torch.zeros(3)}, state={})
        with pytest.raises(CheckpointError, match="disk trouble"):
            last()


shapes = st.lists(st.integers(0, 4), max_size=3).map(tuple)
tables = st.dictionaries(
    st.text(min_size=1, max_size=8), st.tuples(st.sampled_from(sorted(DTYPES)), shapes), max_size=8
)


@given(tables)
def test_planned_files_are_what_the_library_sees(tensors):
    layout = plan(tensors, {"format": "pt"})
    data = layout.header + bytes(layout.size - len(layout.header))
    assert layout.size == len(data) and len(layout.header) % 4096 == 0
    loaded = load(data)
    assert {name: (DTYPES[dtype], shape) for name, (dtype, shape) in tensors.items()} == {
        name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in loaded.items()
    }
    offsets = {name: item["data_offsets"] for name, item in json.loads(layout.header[8:]).items() if name in tensors}
    start = len(layout.header)
    assert offsets == {name: [entry.begin - start, entry.end - start] for name, entry in layout.entries.items()}


def test_writing_follows_the_copy_and_never_overtakes_it():
    tensors = {name: torch.full((n,), float(n)) for name, n in (("a", 3000), ("b", 5000))}
    rows = {name: rows_of(name, tensor, 0) for name, tensor in tensors.items()}
    image, order = Image(shard_plan(rows), pinned=False), []
    for _ in range(2):
        image.empty()
        seen = [
            threading.Thread(target=lambda end=e.end: (image.wait_host(end), order.append(end))) for e in places(image)
        ]
        for thread in seen:
            thread.start()
        assert not order, "nothing is staged yet"
        image.stage(rows, lambda: order.append("copied"))
        for thread in seen:
            thread.join()
        assert order.index("copied") <= order.index(places(image)[-1].end), "the last byte counts after the copy"
        order.clear()
    assert torch.equal(image.views["a"], tensors["a"]) and torch.equal(image.views["b"], tensors["b"])


def places(image):
    return list(image.layout.entries.values())


def test_a_copy_that_fails_commits_nothing_and_the_next_save_works(tmp_path):
    with CheckpointStore(tmp_path) as store:
        tensors = {"param/a": torch.ones(3), "param/b": torch.empty(3, device="meta")}
        with pytest.raises(NotImplementedError):
            store.save(1, kind="adapters", tensors=tensors, state={})
        with pytest.raises(CheckpointError, match="the state could not be copied"):
            store.wait()
        assert store.steps() == []
        store.save(2, kind="adapters", tensors={**tensors, "param/b": torch.ones(3)}, state={})
    assert store.steps() == [2] and verify(store.path(2)).ok
