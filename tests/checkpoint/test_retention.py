"""Which checkpoints stay: every rule alone and together, on disk, and never before the newer one is safe."""

import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ttt_moshi.checkpoint import CheckpointError, CheckpointStore, Retention, prune, verify
from ttt_moshi.checkpoint.memory import aligned_memory


def run(tmp_path, steps, retention=None, losses=None):
    store = CheckpointStore(tmp_path / "c", retention=retention, log=lambda line: None)
    store.open()
    for step in steps:
        metrics = {} if losses is None else {"loss": losses[step]}
        store.save(step, kind="adapters", tensors={"param/w": torch.full((3,), float(step))}, state={}, metrics=metrics)
        store.wait()
    store.close()
    return store


@pytest.mark.parametrize(
    "policy, kept",
    [
        (Retention(), [1, 2, 3, 4, 5, 6]),
        (Retention(last=2), [5, 6]),
        (Retention(last=1, every=2), [2, 4, 6]),
        (Retention(last=1, best=2, metric="loss"), [2, 5, 6]),
        (Retention(last=1, best=1, metric="loss", larger_is_better=True), [3, 6]),
        (Retention(last=1, best=2, metric="absent"), [6]),
        (Retention(last=1, every=3, best=1, metric="loss"), [3, 5, 6]),
    ],
)
def test_each_policy_keeps_what_it_says(tmp_path, policy, kept):
    losses = {1: 5.0, 2: 1.0, 3: 9.0, 4: 2.0, 5: 0.5, 6: 3.0}
    assert run(tmp_path, losses, policy, losses).steps() == kept


def test_best_is_recomputed_from_disk_after_a_restart(tmp_path):
    policy = Retention(last=1, best=1, metric="loss")
    run(tmp_path, [1, 2, 3], policy, {1: 0.1, 2: 0.5, 3: 0.4})
    assert run(tmp_path, [4, 5], policy, {4: 0.3, 5: 0.2}).steps() == [1, 5]


def test_nan_is_never_the_best(tmp_path):
    losses = {1: float("nan"), 2: 3.0, 3: 4.0}
    assert run(tmp_path, losses, Retention(last=1, best=1, metric="loss"), losses).steps() == [2, 3]


def test_pinned_and_resumed_from_stay(tmp_path):
    store = run(tmp_path, [1, 2, 3])
    store.set_pinned(1)
    again = CheckpointStore(tmp_path / "c", retention=Retention(last=1))
    with again:
        again.load(2, tensors={"param/w": torch.zeros(3)})
        again.save(4, kind="adapters", tensors={"param/w": torch.zeros(3)}, state={}, pinned=True)
        again.wait()
        again.save(5, kind="adapters", tensors={"param/w": torch.zeros(3)}, state={})
        again.wait()
    assert again.steps() == [1, 2, 4, 5]
    store.set_pinned(1, False)
    prune(store.root, Retention(last=1))
    assert store.steps() == [4, 5]
    with pytest.raises(CheckpointError, match="no checkpoint of step 9"):
        store.set_pinned(9)


def test_dry_run_decides_and_deletes_nothing(tmp_path):
    store = run(tmp_path, [1, 2, 3])
    decisions = prune(store.root, Retention(last=1, every=2), dry_run=True)
    assert [(item.step, item.keep, item.reason) for item in decisions] == [
        (1, False, "no rule keeps it"),
        (2, True, "a multiple of 2"),
        (3, True, "one of the last 1"),
    ]
    assert all(item.bytes > 0 for item in decisions) and store.steps() == [1, 2, 3]


def test_corrupt_checkpoints_neither_count_nor_vanish(tmp_path):
    """Counting a broken newest one would push out the good one behind it."""
    store = run(tmp_path, [1, 2, 3])
    (store.path(3) / "resume/state.json").write_text("{}")
    decisions = prune(store.root, Retention(last=1))
    assert store.steps() == [2, 3] and "corrupt" in decisions[2].reason
    assert verify(store.path(2)).ok


def test_an_unhealthy_save_prunes_nothing(tmp_path):
    store = run(tmp_path, [1, 2])
    with CheckpointStore(store.root, retention=Retention(last=1)) as again:
        again.save(3, kind="adapters", tensors={"param/w": torch.tensor([float("nan")])}, state={})
        again.wait()
    assert store.steps() == [1, 2] and (store.root / "unhealthy_000003").is_dir()
    assert (store.root / "LATEST").read_text() == "checkpoint_000002\n"


def test_order_is_by_step_whatever_the_file_times_and_the_digits(tmp_path):
    assert run(tmp_path, [2, 1_000_000, 999_999, 30], Retention(last=2)).steps() == [999_999, 1_000_000]


def test_deletions_are_in_the_journal(tmp_path):
    store = run(tmp_path, [1, 2], Retention(last=1))
    events = [json.loads(line) for line in (store.root / "journal.jsonl").read_text().splitlines()]
    assert [(event["event"], event["step"]) for event in events] == [("saved", 1), ("saved", 2), ("deleted", 1)]
    assert (store.root / "LATEST").read_text() == "checkpoint_000002\n"


@given(
    losses=st.dictionaries(st.integers(0, 10_000), st.none() | st.floats(-5, 5), min_size=1, max_size=20),
    last=st.none() | st.integers(1, 5),
    every=st.none() | st.integers(1, 500),
    best=st.integers(0, 4),
    data=st.data(),
)
def test_the_rules_hold_for_any_history(losses, last, every, best, data):
    pinned = set(data.draw(st.lists(st.sampled_from(sorted(losses)), max_size=3)))
    policy = Retention(last=last, every=every, best=best, metric="loss")
    kept = set(policy.kept([(step, {"loss": loss}) for step, loss in losses.items()], pinned))
    steps = sorted(losses)
    assert kept <= set(steps) and steps[-1] in kept and pinned <= kept
    if last is None:
        assert kept == set(steps)
        return
    assert set(steps[-last:]) <= kept
    measured = sorted((loss, step) for step, loss in losses.items() if loss is not None)
    for step in kept - set(steps[-last:]) - pinned:
        assert (every and step % every == 0) or step in {s for _, s in measured[:best]}
    assert len(kept) >= min(best, len(measured))


@pytest.mark.parametrize("wrong", [{"last": 0}, {"last": -3}, {"every": 0, "last": 1}, {"best": 2}])
def test_policies_that_would_keep_nothing_are_refused(wrong):
    with pytest.raises(CheckpointError):
        Retention(**wrong)


class Scribbler:
    """Makes files whose writes of one step's shard are silently wrong, as a bad disk's or cable's."""

    @staticmethod
    def files(faults, step):
        class Files(faults.Files):
            fds: dict = {}  # noqa: RUF012

            def create(self, path, direct=False):
                fd = super().create(path, direct)
                self.fds[fd] = path
                return fd

            def write(self, fd, data, offset):
                if f"{step:06d}" in str(self.fds.get(fd)) and "shard" in str(self.fds.get(fd)):
                    wrong = bytearray(data)
                    wrong[-1 if len(wrong) < 4096 else 4096 + 9] ^= 1
                    buffer = memoryview(aligned_memory(len(wrong)))[: len(wrong)]
                    buffer[:] = wrong
                    data = buffer
                return super().write(fd, data, offset)

        return Files()


def test_the_last_good_checkpoint_outlives_a_silently_wrong_write(tmp_path, faults):
    said = []
    root = tmp_path / "c"
    with CheckpointStore(root, retention=Retention(last=1), log=said.append, files=Scribbler.files(faults, 2)) as store:
        faults.save_one(store, 1, 0, "adapters", faults.contents(1, 0))
        faults.save_one(store, 2, 0, "adapters", faults.contents(2, 0))
        store.close()
        assert store.steps() == [1, 2] and not verify(store.path(2)).ok
        assert "step 2 was saved but does not verify, so no earlier one is deleted" in said[-1]
        store.open()
        faults.save_one(store, 3, 0, "adapters", faults.contents(3, 0))
    assert store.steps() == [3] and verify(store.path(3)).ok


def test_pruning_by_hand_asks_for_a_verified_successor_too(tmp_path):
    store = run(tmp_path, [1, 2, 3])
    shard = store.path(3) / "resume/shard_00000_of_00001.safetensors"
    data = bytearray(shard.read_bytes())
    data[-1] ^= 1
    shard.write_bytes(data)
    decisions = prune(store.root, Retention(last=1))
    assert store.steps() == [1, 2, 3] and "could be verified" in decisions[0].reason
    assert [item.keep for item in prune(store.root, Retention(last=2))] == [False, True, True]
    assert store.steps() == [2, 3]


def test_what_was_read_back_once_is_not_read_again(tmp_path, faults):
    """Keeping three, every third save is verified: one verified checkpoint after those that go is enough."""
    read = []

    class Counting(faults.Files):
        def open(self, path, direct=False):
            if "shard" in path.name and direct:
                read.append(path.parent.parent.name)
            return super().open(path, direct)

    with CheckpointStore(tmp_path / "c", retention=Retention(last=3), files=Counting()) as store:
        for step in range(1, 9):
            faults.save_one(store, step, 0, "adapters", faults.contents(step, 0))
    assert store.steps() == [6, 7, 8]
    assert sorted(set(read)) == ["checkpoint_000004", "checkpoint_000007"]


def test_a_metric_that_no_checkpoint_has_is_refused_once_metrics_are_known(tmp_path, faults):
    said = []
    policy = Retention(last=1, best=1, metric="eval.semantc")
    with CheckpointStore(tmp_path / "c", retention=policy, log=said.append) as store:
        faults.save_one(store, 1, 0, "adapters", faults.contents(1, 0))
        faults.save_one(store, 2, 0, "adapters", faults.contents(2, 0))
        with pytest.raises(CheckpointError, match=r"'eval.semantc' is no metric .* eval.semantic, loss. Did you mean"):
            store.set_metrics(2, {"eval.semantic": 1.0})
    assert len([line for line in said if "no checkpoint has the metric" in line]) == 1


def test_metrics_that_came_after_the_save_keep_the_best(tmp_path):
    store = CheckpointStore(tmp_path / "c", retention=Retention(last=1, best=1, metric="eval.x"), log=lambda line: None)
    for step, value in ((1, 0.5), (2, 0.1), (3, 0.7), (4, 0.9)):
        store.save(step, kind="adapters", tensors={"param/w": torch.ones(3)}, state={}, metrics={"loss": 1.0})
        store.wait()
        store.set_metrics(step, {"eval.x": value})
    store.close()
    assert store.steps() == [2, 4]
