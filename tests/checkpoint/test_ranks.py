"""Several ranks: sharded tensors saved by N and loaded by M ranks, failures of one rank, and one state id for all."""

import os
import signal
import socket
import sys
import time

import pytest
import torch
import torch._dynamo  # the optimizer imports it at its first step, which every forked rank would do anew
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from ttt_moshi.checkpoint import CheckpointError, CheckpointStore, Export, read_manifest, read_tensors, verify


def on_ranks(folder, world, work, expect=0):
    """Run `work(rank, world)` in `world` forked processes joined by gloo; their exit codes."""
    folder.mkdir(exist_ok=True)
    children = []
    for rank in range(world):
        child = os.fork()
        if child == 0:
            code = 1
            signal.alarm(300)  # a rank that hangs ends, and its test fails
            try:
                torch.set_num_threads(1)
                store = dist.FileStore(str(folder / "store"), world)
                dist.init_process_group("gloo", store=store, rank=rank, world_size=world)
                work(rank, world)
                code = 0
            except BaseException as error:  # noqa: BLE001 - the child must end here whatever happens
                sys.stderr.write(f"rank {rank}: {type(error).__name__}: {error}\n")
            finally:
                sys.stderr.flush()
                os._exit(code)
        children.append(child)
    codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    if expect is not None:
        assert codes == [expect] * world
    return codes


class Model(nn.Module):
    """Uneven and tiny tensors: 5 rows, 2 rows and 1 row do not divide among 2, 3 or 4 ranks."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(3, 5)
        self.second = nn.Linear(5, 2)
        self.gate = nn.Parameter(torch.ones(1))
        self.frozen = nn.Parameter(torch.arange(14.0).view(7, 2), requires_grad=False)

    def forward(self, x):
        return self.second(torch.tanh(self.first(x))) * self.gate


def trained(world, steps, full):
    """A sharded model and its optimizer after some steps on data that no world size changes."""
    torch.manual_seed(0)
    model = Model()
    if not full:
        model.second.requires_grad_(False)
    fully_shard(model, mesh=init_device_mesh("cpu", (world,)))
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.1, foreach=False)
    for _ in range(steps):
        optimizer.zero_grad()
        model(torch.linspace(-1, 1, 12).view(4, 3)).square().sum().backward()
        optimizer.step()
    return model, optimizer


def state_of(model, optimizer):
    tensors = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            tensors[f"param/{name}"] = parameter.data
            for moment in ("exp_avg", "exp_avg_sq"):
                tensors[f"{moment}/{name}"] = optimizer.state[parameter].get(moment, torch.zeros_like(parameter.data))
    return tensors


def numbers(full):
    """What rank 0 alone would save: deterministic full tensors, by name."""
    torch.manual_seed(7)
    model = Model()
    names = [n for n, p in model.named_parameters() if n != "frozen" and (full or not n.startswith("second"))]
    parameters = dict(model.named_parameters())
    return {
        f"{kind}/{n}": torch.randn(parameters[n].shape) for kind in ("param", "exp_avg", "exp_avg_sq") for n in names
    }


def local_copy(target, value):
    """Give a (sharded) tensor these values."""
    if isinstance(target, DTensor):
        mesh, start = target.device_mesh, 0
        chunk = -(-value.shape[0] // mesh.size())
        start = min(mesh.get_local_rank() * chunk, value.shape[0])
        target.to_local().copy_(value[start : start + chunk])
    else:
        target.copy_(value)


def saver(root, full, fill=True):
    """Work of a rank: build, fill with known numbers, save."""

    def work(rank, world):
        model, optimizer = trained(world, 1, full)
        tensors = state_of(model, optimizer)
        if fill:
            for name, value in numbers(full).items():
                local_copy(tensors[name], value)
        frozen = model.frozen.data
        local = frozen.to_local()
        made = Export(lambda read, a, b: local + read("param/gate")[0], torch.float32, shape=(7, 2), rows_of=frozen)
        exports = {
            "lora.safetensors": {
                "first": Export("param/first.weight", torch.bfloat16),
                "frozen": Export(frozen, torch.bfloat16),
                "made": made,
            }
        }
        with CheckpointStore(root, rank, world, timeout=60) as store:
            store.save(
                1,
                kind="full" if full else "adapters",
                tensors=tensors,
                state={"a": 1},
                rank_state={"r": 0},
                exports=exports,
            )
            store.wait()

    return work


def loader(root, full):
    """Work of a rank: load into a differently sharded model and compare with the known numbers."""

    def work(rank, world):
        model, optimizer = trained(world, 1, full)
        tensors = state_of(model, optimizer)
        loaded = CheckpointStore(root, rank, world, timeout=60).load(tensors=tensors)
        assert loaded.report.ok and loaded.rank_state == {"r": 0}
        for name, value in numbers(full).items():
            tensor = tensors[name]
            whole = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
            assert torch.equal(whole, value), name

    return work


def matrix(tmp_path, worlds, full):
    identities, exported = set(), set()
    for world in worlds:
        root = tmp_path / f"saved by {world}"
        on_ranks(tmp_path / f"save{world}", world, saver(root, full))
        path = root / "checkpoint_000001"
        report = verify(path)
        assert report.ok, report.text()
        identities.add(report.state_id)
        exported.add((path / "consolidated/lora.safetensors").read_bytes())
        assert len(list(path.glob("resume/shard_*"))) == world
        whole = read_tensors(path)
        for name, value in numbers(full).items():
            assert torch.equal(whole[name], value)
        for readers in worlds:
            on_ranks(tmp_path / f"load{world}{readers}", readers, loader(root, full))
    assert len(identities) == 1, "the state id depends on the number of ranks"
    assert len(exported) == 1, "the exported file depends on the number of ranks"


def test_every_world_size_loads_what_every_other_saved(tmp_path):
    matrix(tmp_path, (1, 2, 3, 4), full=True)


@pytest.mark.slow
def test_every_world_size_loads_the_adapters_that_every_other_saved(tmp_path, tally):
    matrix(tmp_path, (1, 2, 3, 4), full=False)
    tally("loads on 1 to 4 ranks of what 1 to 4 ranks saved, bit for bit", 16)


def test_training_goes_on_as_if_it_had_not_stopped(tmp_path):
    """Two ranks train three steps; others load after the second and take the third: equal to the last bit."""

    def save(rank, world):
        model, optimizer = trained(world, 2, True)
        with CheckpointStore(tmp_path / "c", rank, world, timeout=60) as store:
            store.save(2, kind="full", tensors=state_of(model, optimizer), state={"step": 2}, rank_state={"rank": rank})
            store.wait()
        model, optimizer = trained(world, 3, True)
        with CheckpointStore(tmp_path / "straight", rank, world, timeout=60) as store:
            store.save(3, kind="full", tensors=state_of(model, optimizer), state={"step": 3})

    def resume(rank, world):
        model, optimizer = trained(world, 1, True)
        loaded = CheckpointStore(tmp_path / "c", rank, world, timeout=60).load(2, tensors=state_of(model, optimizer))
        assert loaded.rank_state == {"rank": rank}
        for state in optimizer.state.values():
            state["step"].fill_(2)
        optimizer.zero_grad()
        model(torch.linspace(-1, 1, 12).view(4, 3)).square().sum().backward()
        optimizer.step()
        with CheckpointStore(tmp_path / "resumed", rank, world, timeout=60) as store:
            store.save(3, kind="full", tensors=state_of(model, optimizer), state={"step": 3})

    on_ranks(tmp_path / "a", 2, save)
    on_ranks(tmp_path / "b", 2, resume)
    straight, resumed = (read_manifest(tmp_path / run / "checkpoint_000003") for run in ("straight", "resumed"))
    assert straight["state_id"] == resumed["state_id"]


def test_rank_states_of_another_world_size_are_not_passed_off(tmp_path):
    def save(rank, world):
        with CheckpointStore(tmp_path / "c", rank, world, timeout=60) as store:
            store.save(1, kind="full", tensors={"param/w": torch.ones(2)}, state={}, rank_state={"rank": rank})

    on_ranks(tmp_path / "a", 2, save)
    loaded = CheckpointStore(tmp_path / "c").load(tensors={"param/w": torch.zeros(2)})
    assert loaded.rank_state is None and loaded.world_size == 2


def test_a_failure_of_any_rank_reaches_all_and_commits_nothing(tmp_path, faults):
    def work(rank, world):
        import errno

        files = faults.Files()
        if rank == 1:

            class Broken(faults.Files):
                def write(self, fd, data, offset):
                    raise OSError(errno.EIO, "this disk is gone")

            files = Broken()
        store = CheckpointStore(tmp_path / "c", rank, world, files=files, timeout=60)
        store.open()
        for _ in range(2):
            store.save(1, kind="full", tensors={"param/w": torch.ones(2)}, state={})
            with pytest.raises(CheckpointError, match="this disk is gone") as caught:
                store.wait()
            assert rank == 1 or str(caught.value).count("rank ") == 1, "the first failure is told, not what it led to"
        assert store.steps() == []
        store.close()

    on_ranks(tmp_path / "a", 2, work)


def test_what_another_host_made_may_be_seen_late(tmp_path, faults):
    """Rank 1 sees the new folder, and rank 0 the other's shard, only after several looks."""

    class Late(faults.Files):
        looks = 0

        def late(self, answer, missing):
            self.looks += 1
            return answer if self.looks % 4 == 0 else missing

        def names(self, path):
            names = super().names(path)
            saving = [name for name in names if name.startswith(".saving")]
            return self.late(names, [name for name in names if name not in saving]) if saving else names

        def size(self, path):
            if self.late(False, True):
                raise FileNotFoundError(path)
            return super().size(path)

    def work(rank, world):
        tensors = state_of(*trained(world, 1, True))
        with CheckpointStore(tmp_path / "c", rank, world, files=Late(), timeout=60) as store:
            store.save(1, kind="full", tensors=tensors, state={})
            assert store.wait().healthy

    on_ranks(tmp_path / "a", 2, work)
    assert verify(tmp_path / "c/checkpoint_000001").ok


def test_damage_seen_by_one_rank_makes_all_step_back(tmp_path):
    def work(rank, world):
        model, optimizer = trained(world, 1, True)
        tensors = state_of(model, optimizer)
        said = []
        with CheckpointStore(tmp_path / "c", rank, world, timeout=60, log=said.append) as store:
            for step in (1, 2):
                store.save(step, kind="full", tensors=tensors, state={"step": step})
                store.wait()
            if rank == 0:
                shard = store.path(2) / "resume/shard_00001_of_00002.safetensors"
                data = bytearray(shard.read_bytes())
                data[-1] ^= 1
                shard.write_bytes(data)
            dist.barrier()
            loaded = store.load(tensors=tensors)
            assert loaded.step == 1 and "shard_00001" in loaded.skipped[0][1]
            assert bool(said) == (rank == 0)

    on_ranks(tmp_path / "a", 2, work)
    assert (tmp_path / "c/corrupt_000002/reason.txt").exists()


@pytest.mark.parametrize("who", [0, 1])
def test_a_dead_rank_is_noticed_by_its_silence_and_nothing_is_committed(tmp_path, monkeypatch, who):
    """The longest wait is five minutes; the dead rank is missed after its silence."""
    from ttt_moshi.checkpoint import coordination

    monkeypatch.setattr(coordination, "BEAT", 0.1)
    monkeypatch.setattr(coordination, "SILENCE", 2.0)

    def work(rank, world):
        store = CheckpointStore(tmp_path / "c", rank, world, timeout=300)
        store.open()
        if rank == who:
            time.sleep(1.0)
            os.kill(os.getpid(), signal.SIGKILL)
        store.save(1, kind="full", tensors={"param/w": torch.ones(2)}, state={})
        with pytest.raises(CheckpointError, match=f"rank {who} has given no sign of life for . s: it is dead"):
            store.wait()
        assert store.steps() == []

    codes = on_ranks(tmp_path / "a", 2, work, expect=None)
    assert codes[who] == -signal.SIGKILL and codes[1 - who] == 0
    with CheckpointStore(tmp_path / "c") as store:
        assert store.steps() == [] and not list(store.root.glob(".saving*"))


@pytest.mark.slow
def test_a_dead_rank_is_noticed_within_half_a_minute(tmp_path, tally):
    """With a process group's own store, which the first rank hosts, and the times that training has."""

    def work(rank, world):
        server = dist.TCPStore("127.0.0.1", port, world, rank == 0, wait_for_workers=False)
        store = CheckpointStore(tmp_path / "c", rank, world, coordinator=server, timeout=1800)
        store.open()
        if rank == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        begin = time.monotonic()
        store.save(1, kind="full", tensors={"param/w": torch.ones(2)}, state={})
        with pytest.raises(CheckpointError, match="it is dead"):
            store.wait()
        assert time.monotonic() - begin < 30

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    assert on_ranks(tmp_path / "a", 2, work, expect=None) == [0, -signal.SIGKILL]
    tally("dead rank noticed within 30 s", 1)


def test_ranks_that_mean_different_folders_are_told_so(tmp_path):
    def work(rank, world):
        store = CheckpointStore(tmp_path / f"c{rank}", rank, world, timeout=60)
        with pytest.raises(CheckpointError, match=r"do not write to one folder: rank 0 has .*c0, rank 1 has .*c1"):
            store.claim()

    on_ranks(tmp_path / "a", 2, work)
    assert not (tmp_path / "c0").exists() and not (tmp_path / "c1").exists()


def kill_one_of_two(faults, tmp_path, victim, ats):
    """Kill one of two ranks at given operations of its own, and the other right after; how many kills."""
    kills = 0
    for at in ats:
        root = tmp_path / f"{victim}.{at}"
        acknowledgements = tmp_path / f"acks{victim}.{at}"

        def work(rank, world):
            files = faults.At(at, faults.kill_before) if rank == victim else faults.Files()  # noqa: B023
            store = CheckpointStore(root, rank, world, files=files, timeout=0.5, log=lambda line: None)  # noqa: B023
            store.open()
            for step, version in [(1, 0), (2, 0), (2, 1)]:
                faults.save_one(store, step, version, "adapters", faults.contents(step, version))
                if rank == 0:
                    with open(acknowledgements, "a") as file:  # noqa: B023
                        file.write(f"{step} {version}\n")

        codes = on_ranks(tmp_path / f"ranks{victim}.{at}", 2, work, expect=None)
        assert codes[victim] == -signal.SIGKILL, f"rank {victim} operation {at}: {codes}"
        lines = acknowledgements.read_text().split("\n") if acknowledgements.exists() else []
        acknowledged = [tuple(map(int, line.split())) for line in lines if line]
        faults.check_survivors(root, acknowledged, f"rank {victim} of 2 killed at operation {at}")
        kills += 1
    return kills


def test_either_of_two_ranks_is_killed_somewhere(faults, quick_disk):
    assert kill_one_of_two(faults, quick_disk, 0, (30, 60)) + kill_one_of_two(faults, quick_disk, 1, (3, 14)) == 4


@pytest.mark.slow
def test_either_of_two_ranks_is_killed_everywhere(faults, quick_disk, tally):
    kills = kill_one_of_two(faults, quick_disk, 0, range(120)) + kill_one_of_two(faults, quick_disk, 1, range(24))
    tally("SIGKILL of one of two ranks at each operation", kills)
