"""How fast checkpoints are saved, loaded and verified, beside the bare disk and other writers, all in one run.

    python benchmarks/checkpoint/bench.py --folder /data/scratch --gigabytes 2 --rounds 5 --json result.json

Rounds are interleaved, so that a slow minute of the disk hits everybody; figures are medians, and what matters is the
ratios. Every writer makes new files, as a checkpoint must while the one before is still needed, and ends durable (fsync
of files and folder); what it wrote in the round before is deleted first, outside the measured time. The bare disk is
measured in the same way, and once more overwriting a file in place, which is faster where new blocks cost something.
Reads begin with the page cache dropped for their files.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import safetensors.torch
import torch
import torch.distributed.checkpoint as dcp
from blake3 import blake3
from torch import Tensor

from ttt_moshi.checkpoint import CheckpointStore, Export, Retention, read_manifest, verify
from ttt_moshi.checkpoint.files import Files
from ttt_moshi.checkpoint.output import PIECE, Output, aligned
from ttt_moshi.checkpoint.reading import STREAMS, Reading, read_all
from ttt_moshi.checkpoint.rows import as_bytes


def make_tensors(gigabytes: float) -> dict[str, Tensor]:
    """Masters and moments as in training: tensors of 16.8 MB and 8 KB, float32."""
    generator = torch.Generator().manual_seed(0)
    tensors = {f"param/large{i}": torch.empty(1024, 4096) for i in range(max(1, round(gigabytes * 1e9 / (4 << 22))))}
    tensors |= {f"exp_avg/small{i}": torch.empty(2048) for i in range(200)}
    for tensor in tensors.values():
        tensor.normal_(generator=generator)
    return tensors


def seconds(work: Callable[[], object]) -> float:
    """Wall-clock seconds of one call."""
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


def sync_tree(folder: Path) -> None:
    """Make everything below a folder durable."""
    for path in [folder, *folder.rglob("*")]:
        fd = os.open(path, os.O_RDONLY)
        os.fsync(fd)
        os.close(fd)


def forget(*places: Path) -> None:
    """Drop files, and the files of folders, from the page cache."""
    for path in [path for place in places for path in (place, *place.rglob("*"))]:
        if path.is_file():
            fd = os.open(path, os.O_RDONLY)
            os.fsync(fd)
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(fd)


def raw_write(path: Path, memory: memoryview) -> None:
    """The disk's own speed: one buffer, direct writes, fsync."""
    with Output(Files(), path, len(memory), direct=True) as output:
        for offset in range(0, len(memory), PIECE):
            output.write(memory[offset : offset + PIECE], offset)


def raw_read(path: Path, memory: memoryview) -> None:
    """The disk's own reading speed: direct reads into one buffer."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECT)
    except OSError:
        fd = os.open(path, os.O_RDONLY)
    for offset in range(0, len(memory), PIECE):
        os.preadv(fd, [memory[offset : offset + PIECE]], offset)
    os.close(fd)


def settle(folder: Path, *stale: str) -> None:
    """Delete what is stale, wait for deletions that retention began in the background, and let the disk rest."""
    for name in stale:
        path = folder / name
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    while len([name for name in os.listdir(folder / "ours") if "0" in name]) > 1:
        time.sleep(0.01)
    os.sync()
    time.sleep(0.5)


class Writers:
    """One durable save by each writer."""

    def __init__(self, folder: Path, tensors: dict[str, Tensor], store: CheckpointStore):
        self.folder, self.tensors, self.store, self.step = folder, tensors, store, 0
        self.total = sum(tensor.nbytes for tensor in tensors.values())
        self.flat = aligned(self.total).random_(generator=torch.Generator().manual_seed(1))
        self.copy = aligned(self.total)
        self.image = as_bytes(self.flat)

    def memcpy(self) -> None:
        self.copy.copy_(self.flat)

    def raw(self) -> None:
        raw_write(self.folder / "raw", self.image)
        sync_tree(self.folder / "raw")

    def raw_overwriting(self) -> None:
        raw_write(self.folder / "raw", self.image)

    def ours(self, export: bool = False) -> dict[str, float]:
        self.step += 1
        weights = {name: Export(name, torch.bfloat16) for name in self.tensors}
        exports = {"lora.safetensors": weights} if export else {}
        self.store.save(self.step, kind="full", tensors=self.tensors, state={"step": self.step}, exports=exports)
        saved = self.store.wait()
        assert saved is not None
        return saved.seconds

    def dcp(self) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            dcp.save(dict(self.tensors), checkpoint_id=str(self.folder / "dcp"), no_dist=True)
        sync_tree(self.folder / "dcp")

    def torch_save(self) -> None:
        torch.save(self.tensors, self.folder / "torch.pt")
        sync_tree(self.folder / "torch.pt")

    def safetensors(self) -> None:
        safetensors.torch.save_file(self.tensors, self.folder / "all.safetensors")
        sync_tree(self.folder / "all.safetensors")


def measure_saves(writers: Writers, rounds: int, say: Callable[[str], None]) -> dict[str, float]:
    """Median seconds of each writer, and of the part of our save for which training waits."""
    blocked: list[float] = []
    works: dict[str, tuple[Callable[[], object], tuple[str, ...]]] = {
        "memcpy": (writers.memcpy, ()),
        "raw_direct_write": (writers.raw, ("raw",)),
        "ours_durable": (lambda: blocked.append(writers.ours()["blocked"]), ()),
        "raw_direct_overwrite": (writers.raw_overwriting, ()),
        "dcp_save": (writers.dcp, ("dcp",)),
        "torch_save": (writers.torch_save, ("torch.pt",)),
        "safetensors_save": (writers.safetensors, ("all.safetensors",)),
    }
    times: dict[str, list[float]] = {name: [] for name in ("ours_blocked", *works)}
    for number in range(rounds + 1):
        current: dict[str, float] = {}
        for name, (work, stale) in works.items():
            settle(writers.folder, *stale)
            current[name] = seconds(work)
        current["ours_blocked"] = blocked[-1]
        for name, value in current.items():
            if number:  # the first round warms up buffers and files
                times[name].append(value)
        say(f"save round {number} of {rounds}: " + ", ".join(f"{n} {v:.2f} s" for n, v in sorted(current.items())))
    return {name: statistics.median(values) for name, values in times.items()}


def measure_loads(writers: Writers, rounds: int, say: Callable[[str], None]) -> dict[str, float]:
    """Median seconds of reading the same bytes from a cold page cache."""
    targets = {name: torch.zeros_like(tensor) for name, tensor in writers.tensors.items()}
    newest = writers.store.path(writers.step)
    buffer = as_bytes(writers.copy)

    def load_quarter() -> None:
        """As the second of four ranks would, from what one rank saved: every part is still read and checked whole."""
        readings = []
        for name, entry in read_manifest(newest)["tensors"].items():
            quarter = entry["shape"][0] // 4
            readings.append(Reading(name, entry, targets[name][quarter : 2 * quarter], quarter, 2 * quarter))
        read_all(Files(), newest, readings)
        assert not any(reading.damage for reading in readings)

    def load_dcp() -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            dcp.load(dict(targets), checkpoint_id=str(writers.folder / "dcp"), no_dist=True)

    def hash_only() -> None:
        with ThreadPoolExecutor(STREAMS) as pool:
            pieces = [writers.image[offset : offset + PIECE] for offset in range(0, writers.total, PIECE)]
            list(pool.map(lambda piece: blake3(piece).digest(), pieces))

    works = {
        "hash_only": hash_only,
        "raw_direct_read": lambda: raw_read(writers.folder / "raw", buffer),
        "ours_verified_load": lambda: writers.store.load(writers.step, tensors=targets),
        "ours_deep_verify": lambda: verify(newest),
        "ours_load_of_a_quarter": load_quarter,
        "dcp_load": load_dcp,
        "safetensors_load": lambda: safetensors.torch.load_file(writers.folder / "all.safetensors"),
    }
    times: dict[str, list[float]] = {name: [] for name in works}
    for number in range(rounds):
        for name, work in works.items():
            settle(writers.folder)
            forget(newest, *(writers.folder / other for other in ("raw", "dcp", "all.safetensors")))
            times[name].append(seconds(work))
        say(f"load round {number + 1} of {rounds}: " + ", ".join(f"{n} {v[-1]:.2f} s" for n, v in times.items()))
    for name, tensor in writers.tensors.items():
        assert torch.equal(tensor, targets[name])
    return {name: statistics.median(values) for name, values in times.items()}


def training_steps(until: Callable[[], bool]) -> list[float]:
    """Seconds of small steps, as a training thread would take them, until told to stop."""
    weight, x, result = torch.randn(64, 64), torch.randn(8, 64), []
    while not until():
        begin = time.perf_counter()
        for _ in range(20):
            x = torch.tanh(x @ weight)
        result.append(time.perf_counter() - begin)
    return result


def measure_stall(writers: Writers) -> dict[str, float]:
    """The longest and the median training step: alone, beside two threads that only compute, and beside a save.

    On a machine with few cores any computing neighbour delays a step now and then; what a save adds to that is its own.
    """

    def for_two_seconds() -> Callable[[], bool]:
        deadline = time.perf_counter() + 2.0
        return lambda: time.perf_counter() > deadline

    idle = training_steps(for_two_seconds())
    stop = threading.Event()

    def compute() -> None:
        while not stop.is_set():
            blake3(writers.image[: 64 << 20]).digest()

    threads = [threading.Thread(target=compute) for _ in range(2)]
    for thread in threads:
        thread.start()
    beside = training_steps(for_two_seconds())
    stop.set()
    for thread in threads:
        thread.join()
    busy: list[float] = []
    while sum(busy) < 2.0:
        writers.step += 1
        writers.store.save(writers.step, kind="full", tensors=writers.tensors, state={"step": writers.step})
        finished: list[object] = []

        def done() -> bool:
            finished.extend(filter(None, [writers.store.poll()]))  # noqa: B023
            return bool(finished)  # noqa: B023

        busy += training_steps(done)
    result = {}
    for name, times in (("alone", idle), ("beside_two_computing_threads", beside), ("beside_a_save", busy)):
        ordered = sorted(times)
        result |= {
            f"{name}_longest_ms": 1e3 * ordered[-1],
            f"{name}_99.9_percent_below_ms": 1e3 * ordered[int(0.999 * len(ordered))],
            f"{name}_median_ms": 1e3 * statistics.median(ordered),
        }
    return result


def resident() -> int:
    """Bytes of this process in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def peak_during(work: Callable[[], object]) -> int:
    """Most resident bytes above the start while `work` runs."""
    start, top, stop = resident(), [0], threading.Event()

    def watch() -> None:
        while not stop.wait(0.005):
            top[0] = max(top[0], resident() - start)

    watcher = threading.Thread(target=watch)
    watcher.start()
    work()
    stop.set()
    watcher.join()
    return top[0]


def measure_memory(writers: Writers, saves: int) -> dict[str, float]:
    """Extra memory of a steady-state save that also exports every tensor, and growth over many saves."""
    writers.ours(export=True)
    peak = peak_during(lambda: writers.ours(export=True))
    before = resident()
    small = {name: tensor for name, tensor in writers.tensors.items() if "small" in name}
    with CheckpointStore(writers.folder / "many", retention=Retention(last=1)) as store:
        for step in range(saves):
            store.save(step, kind="full", tensors=small, state={})
            store.wait()
            if step == saves // 4:
                before = resident()
    return {
        "extra_mib_of_one_save": peak / 2**20,
        "growth_mib_over_saves": (resident() - before) / 2**20,
        "saves": saves,
    }


def measure_choosing(folder: Path, count: int) -> dict[str, float]:
    """Seconds to find the newest valid of many checkpoints."""
    root = folder / "thousand"
    tensors = {"param/w": torch.zeros(4)}
    with CheckpointStore(root) as store:
        store.save(0, kind="full", tensors=tensors, state={})
        store.wait()
        for step in range(1, count):
            shutil.copytree(store.path(0), store.path(step))
        store.save(count, kind="full", tensors=tensors, state={})
        store.wait()
    forget(root)
    found: list[int | None] = []
    took = seconds(lambda: found.append(CheckpointStore(root).newest_valid()))
    assert found == [count]
    return {"checkpoints": count + 1, "seconds": took}


def ratios(save: dict[str, float], load: dict[str, float]) -> dict[str, float]:
    """What the goals are stated in."""
    slower = max(load["raw_direct_read"], load["hash_only"])
    return {
        "blocked / memcpy (goal <= 1.25)": save["ours_blocked"] / save["memcpy"],
        "raw direct write / durable save (goal >= 0.75)": save["raw_direct_write"] / save["ours_durable"],
        "raw direct overwrite / durable save": save["raw_direct_overwrite"] / save["ours_durable"],
        "dcp.save / durable save (goal >= 2.5)": save["dcp_save"] / save["ours_durable"],
        "torch.save / durable save": save["torch_save"] / save["ours_durable"],
        "safetensors / durable save": save["safetensors_save"] / save["ours_durable"],
        "verified load / raw direct read (goal <= 1.30)": load["ours_verified_load"] / load["raw_direct_read"],
        "verified load of a quarter of all rows / of all": load["ours_load_of_a_quarter"] / load["ours_verified_load"],
        "dcp.load / verified load": load["dcp_load"] / load["ours_verified_load"],
        "slower of raw direct read and hash / deep verify (goal >= 0.9)": slower / load["ours_deep_verify"],
    }


def run(folder: Path, gigabytes: float, rounds: int, many: int, say: Callable[[str], None]) -> dict[str, object]:
    """All measurements in a new folder below `folder`, which is removed at the end."""
    scratch = Path(tempfile.mkdtemp(prefix="checkpoint-bench-", dir=folder))
    try:
        with CheckpointStore(scratch / "ours", retention=Retention(last=1)) as store:
            writers = Writers(scratch, make_tensors(gigabytes), store)
            store.reserve(writers.tensors)
            save = measure_saves(writers, rounds, say)
            load = measure_loads(writers, rounds, say)
            result: dict[str, object] = {
                "machine": {"cpus": os.cpu_count(), "torch": torch.__version__, "python": platform.python_version()},
                "gigabytes": writers.total / 1e9,
                "rounds": rounds,
                "save_seconds": save,
                "load_seconds": load,
                "ratios": ratios(save, load),
                "stall": measure_stall(writers),
                "memory": measure_memory(writers, many),
                "choosing": measure_choosing(scratch, 10 * many),
            }
        return result
    finally:
        shutil.rmtree(scratch)


def main(argv: list[str]) -> int:
    """Parse, run, print; 0 on success."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("."), help="where to write; its disk is what is measured")
    parser.add_argument("--gigabytes", type=float, default=2.0, help="size of the state")
    parser.add_argument("--rounds", type=int, default=5, help="repetitions of each save and load")
    parser.add_argument(
        "--many", type=int, default=100, help="saves of the memory test, a tenth of those to choose among"
    )
    parser.add_argument("--json", type=Path, help="write the result here, too")
    args = parser.parse_args(argv)
    result = run(
        args.folder, args.gigabytes, args.rounds, args.many, lambda line: print(line, file=sys.stderr, flush=True)
    )
    text = json.dumps(result, indent=1)
    print(text)
    if args.json:
        args.json.write_text(text + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
