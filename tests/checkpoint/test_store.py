"""What the store promises when nothing goes wrong, and what it refuses."""

import json
import os
import stat
import subprocess
import sys

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from ttt_moshi.checkpoint import (
    CheckpointError,
    CheckpointStore,
    CorruptCheckpoint,
    Export,
    ForeignCheckpoint,
    Mismatch,
    NoCheckpoint,
    Retention,
    list_folder,
    put_back,
    read_document,
    read_manifest,
    read_tensors,
    verify,
)


@pytest.fixture
def store(tmp_path):
    with CheckpointStore(tmp_path / "run" / "checkpoints") as store:
        yield store


def save(store, step, tensors=None, **options):
    tensors = tensors or {"param/w": torch.randn(7, 3), "exp_avg/w": torch.randn(7, 3)}
    store.save(step, kind="adapters", tensors=tensors, **{"state": {"step": step}, **options})
    return store.wait()


def zeros(tensors):
    return {name: torch.zeros_like(tensor) for name, tensor in tensors.items()}


EXPORTS = {"a.safetensors": {"w": Export("param/w", torch.float32)}}
DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int8, torch.bool, torch.uint8]


def test_every_dtype_and_shape_returns_bit_for_bit(store):
    generator = torch.Generator().manual_seed(1)
    tensors = {}
    for dtype in DTYPES:
        for shape in [(), (1,), (3,), (0,), (5, 7), (2, 0, 3), (4, 3, 2)]:
            bits = torch.randint(0, 100, shape, generator=generator)
            tensors[f"param/{dtype}/{list(shape)}"] = bits.to(dtype)
    tensors["param/transposed"] = torch.arange(12.0).view(3, 4).T
    tensors["param/negative zero"] = torch.tensor([-0.0, 0.0, 1e-45])
    save(store, 3, tensors)
    targets = zeros(tensors)
    targets["param/transposed"] = torch.zeros(3, 4).T  # a target that is not contiguous
    store.load(tensors=targets)
    for name, tensor in tensors.items():
        assert targets[name].dtype == tensor.dtype
        assert (
            targets[name]
            .contiguous()
            .flatten()
            .view(torch.uint8)
            .equal(tensor.contiguous().flatten().view(torch.uint8))
        ), name


def test_a_fresh_process_reads_what_was_saved(store, tmp_path):
    tensors = {"param/w": torch.randn(50, 3)}
    saved = save(store, 12, tensors)
    program = (
        "import sys, torch; from ttt_moshi.checkpoint import CheckpointStore;"
        "t = {'param/w': torch.zeros(50, 3)}; l = CheckpointStore(sys.argv[1]).load(12, tensors=t);"
        "print(l.state_id, t['param/w'].double().sum().item())"
    )
    done = subprocess.run([sys.executable, "-c", program, store.root], capture_output=True, text=True, check=True)
    assert done.stdout.split() == [saved.state_id, str(tensors["param/w"].double().sum().item())]


def test_two_names_of_one_tensor_come_back_equal_whether_tied_or_not(store):
    """Nothing relies on names being tied or not: each is saved and restored under its own."""
    tied = torch.randn(8, 4)
    store.save(1, kind="adapters", tensors={"param/a": tied, "param/b": tied, "param/c": tied.T}, state={})
    store.wait()
    again, apart = torch.zeros(8, 4), torch.zeros(8, 4)
    store.load(1, tensors={"param/a": again, "param/b": again, "param/c": again.T})
    assert torch.equal(again, tied)
    store.load(1, tensors={"param/a": again.zero_(), "param/b": apart, "param/c": torch.zeros(4, 8)})
    assert torch.equal(again, tied) and torch.equal(apart, tied)


def test_tensors_may_change_as_soon_as_save_returns(store):
    weight = torch.randn(1000, 100)
    before = weight.clone()
    store.save(
        1,
        kind="adapters",
        tensors={"param/w": weight},
        state={},
        exports={"a.safetensors": {"w": Export("param/w", torch.float32)}},
    )
    store.wait_staged()
    weight.zero_()
    path = store.wait().path
    assert torch.equal(read_tensors(path)["param/w"], before)
    assert torch.equal(read_tensors(path, "consolidated/a.safetensors")["w"], before)


def test_shards_and_exports_are_plain_safetensors_files(store):
    weight = torch.randn(6, 4)
    frozen = torch.randn(3, 5).to(torch.bfloat16)
    exports = {
        "model.safetensors": {
            "w": Export("param/w", torch.bfloat16),
            "frozen": Export(frozen, torch.bfloat16),
            "made": Export(lambda read, a, b: (read("param/w") @ read("param/w").T)[a:b], torch.float32, shape=(6, 6)),
        }
    }
    path = save(store, 1, {"param/w": weight}, exports=exports).path
    loaded = load_file(path / "consolidated/model.safetensors")
    assert torch.equal(loaded["w"], weight.to(torch.bfloat16))
    assert torch.equal(loaded["frozen"], frozen)
    assert torch.equal(loaded["made"], weight @ weight.T)
    with safe_open(path / "consolidated/model.safetensors", framework="pt") as file:
        assert file.metadata() == {"format": "pt"}
    assert torch.equal(load_file(path / "resume/shard_00000_of_00001.safetensors")["param/w"], weight)


def test_manifest_has_the_agreed_keys_and_lists_every_file(store):
    path = save(store, 5, metrics={"loss": 2.5, "broken": float("nan")}, info={"argv": ["train.py"]}).path
    manifest = read_manifest(path)
    assert {"format_version", "step", "state_id", "kind", "files", "tensors", "metrics", "versions"} <= set(manifest)
    assert manifest["metrics"] == {"loss": 2.5, "broken": None}
    assert manifest["info"]["argv"] == ["train.py"]
    on_disk = {str(file.relative_to(path)) for file in path.rglob("*") if file.is_file()}
    assert on_disk == {*manifest["files"], "manifest.json"}
    json.loads((path / "manifest.json").read_text(), parse_constant=lambda word: pytest.fail(f"{word} is no JSON"))


def test_state_id_sees_every_part_of_the_state_and_nothing_else(tmp_path):
    tensors = {"param/w": torch.ones(4, 2), "exp_avg/w": torch.ones(4, 2)}

    def identity(folder, step=1, change=None, state=None, rank_state="r", **options):
        with CheckpointStore(tmp_path / folder) as store:
            return save(
                store, step, {**tensors, **(change or {})}, state=state or {"a": 1}, rank_state=rank_state, **options
            ).state_id

    same = identity("a")
    assert same == identity("b", metrics={"loss": 1.0}, info={"host": "x"}, documents={"consolidated/c.json": {}})
    changed = [
        identity("c", step=2),
        identity("d", change={"param/w": torch.tensor([[1.0, 1], [1, 1], [1, 1], [1, 1.0000001]])}),
        identity("e", change={"exp_avg/w": torch.ones(2, 4)}),
        identity("f", change={"exp_avg/w": torch.ones(4, 2, dtype=torch.float64)}),
        identity("g", change={"exp_avg/v": torch.ones(1)}),
        identity("h", state={"a": 2}),
        identity("i", rank_state="s"),
    ]
    assert len({same, *changed}) == 8
    assert verify(tmp_path / "a" / "checkpoint_000001").state_id == same


def test_equal_saves_are_equal_byte_for_byte_except_the_manifest(tmp_path, faults):
    for folder in "ab":
        with CheckpointStore(tmp_path / folder) as store:
            faults.save_one(store, 3, 0, "full", faults.contents(3, 0))
    files = sorted(p.relative_to(tmp_path / "a") for p in (tmp_path / "a/checkpoint_000003").rglob("*.*"))
    assert len(files) == 5
    for file in files:
        if file.name != "manifest.json":
            assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


def test_strict_load_names_every_difference_and_moves_nothing(store):
    save(
        store,
        1,
        {"param/a": torch.zeros(2), "param/b": torch.zeros(2), "param/c": torch.zeros(2), "param/e": torch.zeros(1)},
    )
    wanted = {
        "param/b": torch.ones(3),
        "param/c": torch.ones(2, dtype=torch.int32),
        "param/d": torch.ones(2),
        "param/e": torch.ones(1),
    }
    with pytest.raises(Mismatch) as caught:
        store.load(tensors=wanted)
    report = caught.value.report
    assert (report.missing, report.unexpected, report.restored) == (["param/d"], ["param/a"], ["param/e"])
    assert report.shape == ["param/b (saved [2], wanted [3])"]
    assert report.dtype == ["param/c (saved F32, wanted torch.int32)"]
    assert "param/d" in str(caught.value) and "param/a" in str(caught.value)
    assert store.steps() == [1] and wanted["param/e"].item() == 1
    partial = store.load(tensors=wanted, strict=False)
    assert not partial.report.ok and wanted["param/e"].item() == 0


def test_missing_checkpoints_are_told_apart(store):
    with pytest.raises(NoCheckpoint, match="no checkpoint yet"):
        store.load(tensors={})
    save(store, 4)
    with pytest.raises(NoCheckpoint, match="no checkpoint of step 9; it has 4"):
        store.load(9, tensors={})


def test_a_corrupt_newest_gives_way_aloud_and_a_named_step_does_not(tmp_path):
    said = []
    with CheckpointStore(tmp_path, log=said.append) as store:
        tensors = [{"param/w": torch.full((50,), float(step))} for step in range(4)]
        for step in (1, 2, 3):
            save(store, step, tensors[step])
        shard = store.path(3) / "resume/shard_00000_of_00001.safetensors"
        data = bytearray(shard.read_bytes())
        data[-5] ^= 4
        shard.write_bytes(data)
        assert store.newest_valid() == 3  # only reading the data can tell
        with pytest.raises(CorruptCheckpoint, match="'param/w' does not match"):
            store.load(3, tensors=zeros(tensors[3]))
        assert store.steps() == [1, 2, 3]
        target = zeros(tensors[3])
        loaded = store.load(-1, tensors=target)
        assert loaded.step == 2 and torch.equal(target["param/w"], tensors[2]["param/w"])
        (moved, reason) = loaded.skipped[0]
        assert moved.name == "corrupt_000003" and "'param/w'" in reason
        assert "'param/w'" in (moved / "reason.txt").read_text()
        assert store.steps() == [1, 2] and "corrupt_000003" in said[-1]
        save(store, 3, tensors[3])
        assert store.newest_valid() == 3


def test_a_reader_passes_over_corruption_and_moves_nothing(store):
    for step in (1, 2):
        save(store, step)
    (store.path(2) / "resume/state.json").unlink()
    reader = CheckpointStore(store.root, log=lambda line: None)
    target = {"param/w": torch.zeros(7, 3), "exp_avg/w": torch.zeros(7, 3)}
    assert reader.newest_valid() == 1
    assert reader.load(tensors=target).step == 1
    assert reader.steps() == [1, 2]


def test_nothing_that_verifies_is_an_error_that_moves_nothing(tmp_path):
    with CheckpointStore(tmp_path, log=lambda line: None) as store:
        save(store, 1)
        (store.path(1) / "resume/state.json").write_text("{}")
        with pytest.raises(NoCheckpoint, match=r"can be used, and nothing was moved: resume/state.json"):
            store.load(tensors={})
        assert store.steps() == [1]


def test_a_second_corrupt_checkpoint_ends_the_launch_and_nothing_is_moved(tmp_path):
    with CheckpointStore(tmp_path, log=lambda line: None) as store:
        for step in (1, 2, 3):
            save(store, step)
        for step in (2, 3):
            (store.path(step) / "resume/state.json").write_text("{}")
        target = {"param/w": torch.zeros(7, 3), "exp_avg/w": torch.zeros(7, 3)}
        with pytest.raises(CorruptCheckpoint, match=r"more than one checkpoint .* Nothing was moved"):
            store.load(tensors=target)
        assert store.steps() == [1, 2, 3]
        assert store.load(1, tensors=target).step == 1  # a person may still name one
    reader = CheckpointStore(tmp_path, log=lambda line: None)
    assert reader.load(tensors=target).step == 1 and reader.steps() == [1, 2, 3]


def test_non_finite_state_is_kept_apart(store):
    save(store, 1)
    bad = {"param/w": torch.tensor([1.0, float("inf")]), "param/h": torch.tensor([float("nan")], dtype=torch.bfloat16)}
    saved = save(store, 2, {**bad, "stream/n": torch.tensor([1])})
    assert not saved.healthy and saved.path.name == "unhealthy_000002"
    assert read_manifest(saved.path)["health"] == {"finite": False, "nonfinite": ["param/h", "param/w"]}
    assert verify(saved.path).ok
    assert store.steps() == [1] and store.newest_valid() == 1
    assert save(store, 2, bad).path.name == "unhealthy_000002.1"


@pytest.mark.parametrize(
    "options, complaint",
    [
        ({"tensors": {}}, "without tensors"),
        ({"step": -1}, "step of at least 0"),
        ({"kind": "half"}, "kind of"),
        ({"state": {"x": float("nan")}}, "state must be plain JSON"),
        ({"state": {"x": torch.zeros(1)}}, "state must be plain JSON"),
        ({"rank_state": {1, 2}}, "rank_state must be plain JSON"),
        (
            {"exports": {"a.safetensors": {"w": Export("param/none", torch.float32)}}},
            "'param/none', which is not",
        ),
        ({"exports": {"../a.safetensors": {}}}, "plain name"),
        ({"exports": {"a.safetensors": {"w": Export(lambda r, a, b: r("w"), torch.float32)}}}, "needs its shape"),
        ({"documents": {"../x.json": {}}}, "cannot be written"),
        ({"documents": {"manifest.json": {}}}, "cannot be written"),
    ],
)
def test_impossible_saves_are_refused_before_anything_is_written(store, options, complaint):
    given = {"step": 1, "kind": "adapters", "tensors": {"param/w": torch.zeros(2)}, "state": {}, **options}
    with pytest.raises(CheckpointError, match=complaint):
        store.save(given.pop("step"), **given)
    assert store.wait() is None and store.steps() == []


def test_a_function_that_makes_wrong_rows_fails_the_save(store):
    wrong = Export(lambda read, start, stop: torch.zeros(3), torch.float32, shape=(2,))
    store.save(1, kind="full", tensors={"param/w": torch.zeros(2)}, state={}, exports={"a.safetensors": {"w": wrong}})
    with pytest.raises(CheckpointError, match="made with shape"):
        store.wait()
    assert store.steps() == []
    save(store, 1)
    assert store.steps() == [1]


def test_a_failed_save_surfaces_at_the_next_poll_and_once(store):
    def explode(read, start, stop):
        raise RuntimeError("no such adapter")

    store.save(
        1,
        kind="full",
        tensors={"param/w": torch.zeros(2)},
        state={},
        exports={"a.safetensors": {"w": Export(explode, torch.float32, shape=(2,))}},
    )
    with pytest.raises(CheckpointError, match="no such adapter"):
        while True:
            assert store.poll() is None
    assert store.poll() is None


def test_poll_hands_out_a_finished_save_once(store):
    store.save(1, kind="adapters", tensors={"param/w": torch.zeros(2)}, state={})
    results = []
    while not results:
        saved = store.poll()
        if saved:
            results.append(saved)
    assert results[0].step == 1 and {"blocked", "stage", "shards", "exports", "commit"} <= set(results[0].seconds)
    assert store.poll() is None and store.wait() is None


def test_parent_is_the_checkpoint_that_this_one_grew_from(store):
    first = save(store, 1)
    save(store, 2)
    assert read_manifest(store.path(1))["parent"] is None
    assert read_manifest(store.path(2))["parent"] == {"step": 1, "state_id": first.state_id}
    store.load(1, tensors={"param/w": torch.zeros(7, 3), "exp_avg/w": torch.zeros(7, 3)})
    save(store, 5)
    assert read_manifest(store.path(5))["parent"]["step"] == 1


def test_documents_and_tensors_are_read_with_their_digests(store):
    path = save(
        store,
        1,
        documents={"consolidated/ttt.json": {"layers": [1, 2]}},
        exports={"a.safetensors": {"w": Export("param/w", torch.float32)}},
    ).path
    assert read_document(path, "consolidated/ttt.json") == {"layers": [1, 2]}
    with pytest.raises(CheckpointError, match="no document"):
        read_document(path, "consolidated/none.json")
    with pytest.raises(CheckpointError, match="no tensor 'v'"):
        read_tensors(path, "consolidated/a.safetensors", ["v"])
    with pytest.raises(CheckpointError, match="no tensor file"):
        read_tensors(path, "consolidated/b.safetensors")
    (path / "consolidated/ttt.json").write_text('{"layers": [1, 3]}')
    with pytest.raises(CorruptCheckpoint, match=r"consolidated/ttt.json"):
        read_document(path, "consolidated/ttt.json")


def test_files_are_readable_as_the_umask_says(tmp_path):
    before = os.umask(0o027)
    try:
        with CheckpointStore(tmp_path / "c") as store:
            path = save(store, 1).path
    finally:
        os.umask(before)
    modes = {stat.S_IMODE(file.stat().st_mode) for file in path.rglob("*") if file.is_file()}
    assert modes == {0o640}


def test_a_linked_run_folder_works_and_links_are_never_followed_when_deleting(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "file").write_text("x")
    with CheckpointStore(tmp_path / "link" / "checkpoints", retention=Retention(last=1)) as store:
        save(store, 1)
        (store.path(1) / "extra").symlink_to(tmp_path / "precious")
        save(store, 2)
    assert store.steps() == [2]
    assert (tmp_path / "precious" / "file").read_text() == "x"
    assert (tmp_path / "real/checkpoints/checkpoint_000002").is_dir()


def test_a_full_disk_is_told_before_writing(tmp_path, faults):
    class Small(faults.Files):
        def free_bytes(self, path):
            return 1 << 20

    with CheckpointStore(tmp_path, files=Small()) as store:
        store.save(1, kind="adapters", tensors={"param/w": torch.zeros(10)}, state={})
        with pytest.raises(CheckpointError, match=r"no room for the checkpoint of step 1: it needs .* GB free"):
            store.wait()
    assert store.steps() == [] and not list(tmp_path.glob(".saving*"))


def test_staging_reuses_one_image_and_follows_a_changed_model(store):
    weight = torch.zeros(300, 7)
    assert store.reserve({"param/w": weight}) > weight.nbytes
    image = store._image[1]
    for step in range(3):
        save(store, step, {"param/w": weight + step})
    assert store._image[1] is image
    save(store, 3, {"param/w": weight, "param/v": weight})
    assert sorted(read_tensors(store.path(3))) == ["param/v", "param/w"]


def test_without_direct_writes_the_bytes_are_the_same(tmp_path, faults):
    import errno

    class NoDirect(faults.Files):
        def create(self, path, direct=False):
            if direct:
                raise OSError(errno.EINVAL, "no direct writes here")
            return super().create(path, direct)

    class RefusesLater(faults.Files):
        direct_fds = ()

        def create(self, path, direct=False):
            fd = super().create(path, direct)
            self.direct_fds = {*self.direct_fds, fd} if direct else {*self.direct_fds} - {fd}
            return fd

        def write(self, fd, data, offset):
            if fd in self.direct_fds and "probe" not in os.readlink(f"/proc/self/fd/{fd}"):
                raise OSError(errno.EINVAL, "refused at write")
            return super().write(fd, data, offset)

    shards = set()
    for index, files in enumerate([faults.Files(), NoDirect(), RefusesLater()]):
        with CheckpointStore(tmp_path / str(index), files=files) as store:
            faults.save_one(store, 1, 0, "full", faults.contents(1, 0))
        assert verify(store.path(1)).ok
        shards.add((store.path(1) / "resume/shard_00000_of_00001.safetensors").read_bytes())
    assert len(shards) == 1


def test_large_tensors_stream_in_pieces(store):
    weight = torch.randn(5_000_001)  # 20 MB: more than one piece, and no whole number of pages
    exports = {"a.safetensors": {"w": Export("param/w", torch.bfloat16)}}
    path = save(store, 1, {"param/w": weight}, exports=exports).path
    assert verify(path).ok
    assert torch.equal(read_tensors(path)["param/w"], weight)
    assert torch.equal(load_file(path / "consolidated/a.safetensors")["w"], weight.to(torch.bfloat16))


def test_a_state_that_turned_out_to_be_no_good_is_never_resumed_from(store):
    for step in (1, 2):
        save(store, step)
    store.set_unhealthy(2, "its own forward pass is not finite")
    assert store.steps() == [1] and store.newest_valid() == 1
    assert (store.root / "LATEST").read_text() == "checkpoint_000001\n"
    assert verify(store.root / "unhealthy_000002").ok
    record = {record["name"]: record for record in list_folder(store.root)}["unhealthy_000002"]
    assert (record["status"], record["problem"]) == ("unhealthy", "its own forward pass is not finite")
    with pytest.raises(CheckpointError, match="is unhealthy, so no run may resume from it"):
        put_back(store.root / "unhealthy_000002")
    target = {"param/w": torch.zeros(7, 3), "exp_avg/w": torch.zeros(7, 3)}
    assert store.load(tensors=target).step == 1
    store.set_unhealthy(1, "neither is this")
    assert store.newest_valid() is None and not (store.root / "LATEST").exists()


def test_what_is_measured_later_belongs_to_the_state_that_was_measured(store):
    save(store, 1, metrics={"loss": 3.0})
    before = (store.path(1) / "manifest.json").read_bytes()
    store.set_metrics(1, {"eval.semantic": 2.0, "eval.broken": float("nan")})
    store.set_metrics(1, {"eval.word": 1.0})
    (record,) = list_folder(store.root)
    assert record["metrics"] == {"loss": 3.0, "eval.semantic": 2.0, "eval.word": 1.0}
    assert (store.path(1) / "manifest.json").read_bytes() == before and verify(store.path(1)).ok
    save(store, 1, metrics={"loss": 4.0})  # the step again, with other weights
    again = {record["name"]: record for record in list_folder(store.root)}["checkpoint_000001"]
    assert again["metrics"] == {"loss": 4.0}
    with pytest.raises(ForeignCheckpoint):
        store.set_metrics(9, {"eval.word": 1.0})
    (store.root / "measured.json").write_text("[")
    with pytest.raises(CheckpointError, match=r"measured.json is not valid JSON .*; mend or delete it"):
        list_folder(store.root)
