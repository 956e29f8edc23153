"""How fast checkpoints are saved, loaded and verified, beside the bare disk and other writers, all in one run.

    python benchmarks/checkpoint/bench.py --folder /data/scratch --gigabytes 2 --rounds 5 --json result.json

Rounds are interleaved, so that a slow minute of the disk hits everybody. What matters is the ratios: each is taken
within a round, where the bare disk and memory are measured before and after ours, and the median, the lowest and the
highest of the rounds are reported. Every writer makes new files, as a checkpoint must while the one before is still
needed, and ends durable (fsync of files and folder); what it wrote before is deleted first, outside the measured time.
The bare disk is measured in the same way, and once more overwriting a file in place, which is faster where new blocks
cost something. Reads begin with the page cache dropped for their files.
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
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
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

    def settle(self, *stale: str) -> None:
        """Delete what is stale, wait for deletions that retention began in the background, and let the disk rest: a
        quarter of a second for a gigabyte, half a second at most."""
        for name in stale:
            path = self.folder / name
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        while len([name for name in os.listdir(self.folder / "ours") if "0" in name]) > 1:
            time.sleep(0.01)
        os.sync()
        time.sleep(min(0.5, self.total / 4e9))


def measured(
    rounds: int,
    works: list[tuple[str, Callable[[], object]]],
    before: Callable[[str], None],
    say: Callable[[int, dict[str, float]], None],
) -> dict[str, list[float]]:
    """Seconds of each work in each round; one that is named several times in a round counts with its mean."""
    times: dict[str, list[float]] = {name: [] for name, _ in works}
    for number in range(rounds):
        current: dict[str, list[float]] = {name: [] for name in times}
        for name, work in works:
            before(name)
            current[name].append(seconds(work))
        for name, values in current.items():
            times[name].append(statistics.mean(values))
        say(number, {name: values[-1] for name, values in times.items()})
    return times


def measure_saves(writers: Writers, rounds: int, say: Callable[[str], None]) -> dict[str, list[float]]:
    """Seconds of each writer in each round, and of the part of our save for which training waits."""
    blocked: list[float] = []
    stale = {
        "raw_direct_write": "raw",
        "dcp_save": "dcp",
        "torch_save": "torch.pt",
        "safetensors_save": "all.safetensors",
    }
    works: list[tuple[str, Callable[[], object]]] = [
        ("memcpy", writers.memcpy),
        ("raw_direct_write", writers.raw),
        ("ours_durable", lambda: blocked.append(writers.ours()["blocked"])),
        ("raw_direct_write", writers.raw),
        ("memcpy", writers.memcpy),
        ("raw_direct_overwrite", writers.raw_overwriting),
        ("dcp_save", writers.dcp),
        ("torch_save", writers.torch_save),
        ("safetensors_save", writers.safetensors),
    ]

    def report(number: int, current: dict[str, float]) -> None:
        current["ours_blocked"] = blocked[-1]
        say(f"save round {number} of {rounds}: " + ", ".join(f"{n} {v:.2f} s" for n, v in sorted(current.items())))

    times = measured(rounds + 1, works, lambda name: writers.settle(*filter(None, [stale.get(name)])), report)
    # The first round warms up buffers and files.
    return {name: values[1:] for name, values in {"ours_blocked": blocked, **times}.items()}


def measure_loads(writers: Writers, rounds: int, say: Callable[[str], None]) -> dict[str, list[float]]:
    """Seconds of reading the same bytes from a cold page cache, in each round."""
    targets = {name: torch.zeros_like(tensor) for name, tensor in writers.tensors.items()}
    newest, reader = writers.store.path(writers.step), CheckpointStore(writers.folder / "ours")
    buffer = as_bytes(writers.copy)

    def load_quarter() -> None:
        """As the second of four ranks would, from what one rank saved: every part is still read and checked whole."""
        readings = []
        for name, entry in read_manifest(newest)["tensors"].items():
            quarter = entry["shape"][0] // 4
            readings.append(Reading(name, entry, targets[name][quarter : 2 * quarter], quarter, 2 * quarter))
        read_all(Files(), newest, readings)
        assert not any(reading.corruption for reading in readings)

    def load_dcp() -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            dcp.load(dict(targets), checkpoint_id=str(writers.folder / "dcp"), no_dist=True)

    def hash_only() -> None:
        with ThreadPoolExecutor(STREAMS) as pool:
            pieces = [writers.image[offset : offset + PIECE] for offset in range(0, writers.total, PIECE)]
            list(pool.map(lambda piece: blake3(piece).digest(), pieces))

    raw = ("raw_direct_read", lambda: raw_read(writers.folder / "raw", buffer))
    works: list[tuple[str, Callable[[], object]]] = [
        ("hash_only", hash_only),
        raw,
        ("ours_verified_load", lambda: reader.load(writers.step, tensors=targets)),
        raw,
        ("ours_deep_verify", lambda: verify(newest)),
        raw,
        ("ours_load_of_a_quarter", load_quarter),
        ("dcp_load", load_dcp),
        ("safetensors_load", lambda: safetensors.torch.load_file(writers.folder / "all.safetensors")),
    ]

    def rest(name: str) -> None:
        writers.settle()
        forget(newest, *(writers.folder / other for other in ("raw", "dcp", "all.safetensors")))

    def report(number: int, current: dict[str, float]) -> None:
        say(f"load round {number + 1} of {rounds}: " + ", ".join(f"{n} {v:.2f} s" for n, v in current.items()))

    times = measured(rounds, works, rest, report)
    for name, tensor in writers.tensors.items():
        assert torch.equal(tensor, targets[name])
    return times


def training_steps(until: Callable[[], bool]) -> list[float]:
    """Milliseconds of small steps, as a training thread would take them, until told to stop."""
    weight, x, result = torch.randn(64, 64), torch.randn(8, 64), []
    while not until():
        begin = time.perf_counter()
        for _ in range(20):
            x = torch.tanh(x @ weight)
        result.append(1e3 * (time.perf_counter() - begin))
    return result


def for_seconds(duration: float) -> Callable[[], bool]:
    """A condition that becomes true after a while."""
    deadline = time.perf_counter() + duration
    return lambda: time.perf_counter() > deadline


def measure_stall(writers: Writers, saves: int) -> dict[str, list[float]]:
    """The longest and the median training step beside each of some saves, in ms, until half a second after the commit,
    while retention deletes; and in windows as long, alone and beside two threads that only compute.

    On a shared host a step is delayed now and then whatever runs beside it, and on a machine with few cores by any
    neighbour that computes; what a save adds to that is its own.
    """
    windows = ("alone", "beside_two_computing_threads", "beside_a_save")
    result: dict[str, list[float]] = {f"{name}_{key}": [] for name in windows for key in ("longest", "median")}

    def record(name: str, steps: list[float], after: Sequence[float] = ()) -> None:
        result[f"{name}_longest"].append(max([*steps, *after]))
        result[f"{name}_median"].append(statistics.median(steps))

    def compute(stop: threading.Event) -> None:
        while not stop.is_set():
            blake3(writers.image[: 64 << 20]).digest()

    training_steps(for_seconds(0.2))  # the first step loads code
    for _ in range(saves):
        writers.settle()
        writers.step += 1
        begin = time.perf_counter()
        writers.store.save(writers.step, kind="full", tensors=writers.tensors, state={"step": writers.step})
        during = training_steps(lambda: writers.store.poll() is not None)
        record("beside_a_save", during, training_steps(for_seconds(0.5)))
        duration = time.perf_counter() - begin
        writers.settle()
        record("alone", training_steps(for_seconds(duration)))
        stop = threading.Event()
        threads = [threading.Thread(target=compute, args=[stop]) for _ in range(2)]
        for thread in threads:
            thread.start()
        record("beside_two_computing_threads", training_steps(for_seconds(duration)))
        stop.set()
        for thread in threads:
            thread.join()
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
    growth = (resident() - before) / 2**20
    return {"extra_mib_of_one_save": peak / 2**20, "growth_mib": growth, "growing_saves": saves - saves // 4}


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


@dataclass(frozen=True)
class Figure:
    """One result over the rounds. `bar` is the goal for the median, such as "<= 1.25"; empty where there is none."""

    what: str
    values: list[float]
    bar: str = ""

    def record(self) -> dict[str, object]:
        """As JSON; `met` is None without a goal."""
        median = statistics.median(self.values)
        sign, _, limit = self.bar.partition(" ")
        met = (median <= float(limit) if sign == "<=" else median >= float(limit)) if self.bar else None
        low, high = min(self.values), max(self.values)
        return {
            "what": self.what,
            "median": median,
            "lowest": low,
            "highest": high,
            "goal": self.bar or None,
            "met": met,
        }


def figures(
    save: dict[str, list[float]],
    load: dict[str, list[float]],
    stall: dict[str, list[float]],
    memory: dict[str, float],
    choosing: dict[str, float],
) -> list[Figure]:
    """What the goals are stated in, and what helps to judge it."""

    def ratio(top: list[float], bottom: list[float]) -> list[float]:
        return [a / b for a, b in zip(top, bottom, strict=True)]

    raw, durable, verified = load["raw_direct_read"], save["ours_durable"], load["ours_verified_load"]
    slower = max(raw, load["hash_only"], key=statistics.median)
    return [
        Figure("training blocked / memcpy of the same bytes", ratio(save["ours_blocked"], save["memcpy"]), "<= 1.25"),
        Figure("bare direct write / durable save", ratio(save["raw_direct_write"], durable), ">= 0.75"),
        Figure("dcp.save / durable save", ratio(save["dcp_save"], durable), ">= 2.5"),
        Figure("MiB of memory of a save with exports, beside the image", [memory["extra_mib_of_one_save"]], "<= 64"),
        Figure(f"MiB of growth over {memory['growing_saves']:.0f} more saves", [memory["growth_mib"]], "<= 1"),
        Figure("longest training step beside a save, ms", stall["beside_a_save_longest"], "<= 10"),
        Figure("verified load / bare direct read", ratio(verified, raw), "<= 1.30"),
        Figure("slower of bare read and hash / deep verify", ratio(slower, load["ours_deep_verify"]), ">= 0.9"),
        Figure(f"s to find the newest valid of {choosing['checkpoints']}", [choosing["seconds"]], "<= 0.5"),
        Figure("longest training step alone, ms", stall["alone_longest"]),
        Figure("longest beside two computing threads, ms", stall["beside_two_computing_threads_longest"]),
        Figure("median step beside a save / alone", ratio(stall["beside_a_save_median"], stall["alone_median"])),
        Figure("bare direct overwrite / durable save", ratio(save["raw_direct_overwrite"], durable)),
        Figure("torch.save / durable save", ratio(save["torch_save"], durable)),
        Figure("safetensors / durable save", ratio(save["safetensors_save"], durable)),
        Figure("verified load of a quarter of all rows / of all", ratio(load["ours_load_of_a_quarter"], verified)),
        Figure("dcp.load, unverified / verified load", ratio(load["dcp_load"], verified)),
        Figure("safetensors load, unverified / verified load", ratio(load["safetensors_load"], verified)),
    ]


def run(folder: Path, gigabytes: float, rounds: int, many: int, say: Callable[[str], None]) -> dict[str, object]:
    """All measurements in a new folder below `folder`, which is removed at the end."""
    scratch = Path(tempfile.mkdtemp(prefix="checkpoint-bench-", dir=folder))
    try:
        with CheckpointStore(scratch / "ours", retention=Retention(last=1)) as store:
            writers = Writers(scratch, make_tensors(gigabytes), store)
            store.reserve(writers.tensors)
            save = measure_saves(writers, rounds, say)
            load = measure_loads(writers, rounds, say)
            stall = measure_stall(writers, 2 * rounds)
            memory, choosing = measure_memory(writers, many), measure_choosing(scratch, 10 * many)
            return {
                "machine": {"cpus": os.cpu_count(), "torch": torch.__version__, "python": platform.python_version()},
                "gigabytes": writers.total / 1e9,
                "rounds": rounds,
                "figures": [figure.record() for figure in figures(save, load, stall, memory, choosing)],
                "median_seconds": {name: statistics.median(values) for name, values in (save | load).items()},
            }
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
