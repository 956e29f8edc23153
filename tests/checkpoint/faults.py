"""File systems that fail, kill, record and forget; and the sequence of saves that all fault tests drive through them.

The faults sit in subclasses of the one module through which the store touches the disk, so every path is covered.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ttt_moshi.checkpoint import CheckpointError, CheckpointStore, Export, Retention
from ttt_moshi.checkpoint.files import Files

MUTATING = (
    *("mkdir", "create", "allocate", "write", "push", "truncate", "sync"),
    *("close", "open_lock", "lock", "sync_folder", "rename", "remove", "rmdir", "append"),
)
READING = ("free_bytes", "open", "read_into", "read", "size", "names")
# (step, version): a third save prunes, the fourth saves an existing step again, the last prunes once more.
SAVES = [(1, 0), (2, 0), (3, 0), (3, 1), (4, 0)]
KEEP = 2


class Watched(Files):
    """Calls `around(name, operation, args)` for every operation that changes the disk."""

    watched = MUTATING

    def around(self, name: str, operation: Callable[..., Any], args: tuple) -> Any:
        return operation(*args)

    def __getattribute__(self, name: str) -> Any:
        value = super().__getattribute__(name)
        if name in type(self).watched:
            return lambda *args, **options: self.around(name, value, (*args, *options.values()))
        return value


class Counting(Watched):
    """Counts operations."""

    def __init__(self) -> None:
        self.log: list[str] = []

    def around(self, name: str, operation: Callable[..., Any], args: tuple) -> Any:
        self.log.append(name)
        return operation(*args)


class At(Counting):
    """Does `fault(name, operation, args)` instead of the operation number `at` (from 0), and goes on normally."""

    def __init__(self, at: int, fault: Callable[[str, Callable[..., Any], tuple], Any]) -> None:
        super().__init__()
        self._at, self._fault = at, fault

    def around(self, name: str, operation: Callable[..., Any], args: tuple) -> Any:
        self.log.append(name)
        if len(self.log) - 1 == self._at:
            return self._fault(name, operation, args)
        return operation(*args)


def kill_before(name: str, operation: Callable[..., Any], args: tuple) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def kill_after(name: str, operation: Callable[..., Any], args: tuple) -> None:
    operation(*args)
    os.kill(os.getpid(), signal.SIGKILL)


def kill_inside(name: str, operation: Callable[..., Any], args: tuple) -> None:
    """Half of a write reaches the file; other operations cannot be halved."""
    if name == "write":
        fd, data, offset = args
        path = os.readlink(f"/proc/self/fd/{fd}")
        with open(path, "r+b") as file:  # a descriptor of its own, because half a page is no direct write
            file.seek(offset)
            file.write(bytes(memoryview(data)[: len(data) // 2]))
    os.kill(os.getpid(), signal.SIGKILL)


def failing(number: int) -> Callable[..., None]:
    """A fault that raises the operating system's error `number`; closing still closes."""

    def fault(name: str, operation: Callable[..., Any], args: tuple) -> None:
        if name == "close":
            operation(*args)
        raise OSError(number, os.strerror(number))

    return fault


def contents(step: int, version: int) -> dict[str, Tensor]:
    """Tensors that tell every step and version apart, in three dtypes and awkward shapes."""
    base = torch.arange(60, dtype=torch.float32).view(20, 3) + 1000 * step + 100 * version
    return {
        "param/w": base,
        "param/scalar": torch.tensor(float(step)),
        "exp_avg/w": base / 7,
        "exp_avg_sq/half": base[:5, :1].to(torch.bfloat16),
        "stream/offset": torch.tensor([step, version, 7], dtype=torch.int64),
        "stream/empty": torch.zeros(0, 4),
    }


def save_one(store: CheckpointStore, step: int, version: int, kind: str, tensors: dict[str, Tensor]) -> None:
    """One save with everything in it, made durable."""
    adapters = {"w": Export("param/w", torch.bfloat16)}
    merged = {"w2": Export(lambda read, a, b: (read("param/w") * 2)[a:b], torch.float32, shape=(20, 3))}
    exports = {"lora.safetensors": adapters} if kind == "adapters" else {"consolidated.safetensors": adapters | merged}
    store.save(
        step,
        kind=kind,
        tensors=tensors,
        state={"step": step, "version": version, "cursor": 8 * step},
        rank_state={"random": f"{step}.{version}"},
        exports=exports,
        documents={"consolidated/config.json": {"lora": kind == "adapters"}},
        metrics={"loss": 1.0 / step},
    )
    store.wait()


def scenario(
    root: Path,
    files: Files,
    acknowledge: Callable[[int, int], None],
    kind: str = "adapters",
    saves: list[tuple[int, int]] = SAVES,
    log: Callable[[str], None] = lambda line: None,
) -> None:
    """Every save of the list in turn; `acknowledge` is told of each that the store called durable."""
    store = CheckpointStore(root, files=files, retention=Retention(last=KEEP), log=log)
    try:
        store.open()
        for step, version in saves:
            save_one(store, step, version, kind, contents(step, version))
            acknowledge(step, version)
    finally:
        store.close()


def operations(folder: Path, kind: str = "adapters") -> list[str]:
    """Names of all operations of one undisturbed scenario."""
    files = Counting()
    scenario(folder / "counted", files, lambda step, version: None, kind)
    return files.log


def check_survivors(root: Path, acknowledged: list[tuple[int, int]], what: str) -> None:
    """What must hold after any fault: nothing acknowledged is lost, nothing half-made is believed.

    Raises AssertionError naming `what`.
    """
    from ttt_moshi.checkpoint import verify

    store = CheckpointStore(root, log=lambda line: None)
    store.open()
    store.close()
    names = os.listdir(root) if root.exists() else []  # a folder that was made for nothing goes with the claim
    leftovers = [
        name for name in names if name.startswith((".saving", ".trash", ".replaced", "corrupt", ".quarantine"))
    ]
    assert not leftovers, f"{what}: {leftovers} left after opening"
    for step in store.steps():
        try:
            report = verify(store.path(step))
        except CheckpointError as error:
            raise AssertionError(f"{what}: {error}") from error
        assert report.ok, f"{what}: {report.text()}"
    newest: dict[int, int] = {}
    for step, version in acknowledged:
        newest[step] = version
    for step in sorted(newest)[-KEEP:]:
        # An unacknowledged save may already have retired the older ones of the last KEEP.
        if store.steps() and step < min(sorted(store.steps())[-KEEP:]):
            continue
        assert step in store.steps(), f"{what}: acknowledged step {step} is lost, there is {store.steps()}"
    if not acknowledged:
        return
    targets = {name: torch.zeros_like(tensor) for name, tensor in contents(0, 0).items()}
    loaded = store.load(tensors=targets)
    assert loaded.step >= max(newest), f"{what}: resumed at {loaded.step} after step {max(newest)} was acknowledged"
    assert not loaded.skipped, f"{what}: {loaded.skipped}"
    version = loaded.state["version"]
    if loaded.step in newest:
        assert version >= newest[loaded.step], f"{what}: the acknowledged save of step {loaded.step} is gone"
    for name, tensor in contents(loaded.step, version).items():
        assert torch.equal(targets[name], tensor), f"{what}: {name} of step {loaded.step} differs"


def in_child(
    work: Callable[[Callable[[int, int], None]], None], meanwhile: Callable[[int], object] = lambda child: None
) -> tuple[int, list[tuple[int, int]]]:
    """Run `work(acknowledge)` in a forked process; its wait status and what it acknowledged before it ended.

    `meanwhile(pid)` runs here while it does.
    """
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        code = 1
        signal.alarm(300)  # a child that hangs ends, and its test fails
        torch.set_num_threads(1)  # PyTorch renews its pool after a fork: here, where no two threads race for it
        try:
            work(lambda step, version: (os.write(writing, f"{step} {version}\n".encode()), None)[1])
            code = 0
        except BaseException as error:  # noqa: BLE001 - the child must end here whatever happens
            sys.stderr.write(f"{type(error).__name__}: {error}\n")
        finally:
            os._exit(code)
    os.close(writing)
    meanwhile(child)
    lines = b"".join(iter(lambda: os.read(reading, 65536), b"")).decode().split("\n")
    os.close(reading)
    _, status = os.waitpid(child, 0)
    return status, [(int(a), int(b)) for a, b in (line.split() for line in lines if line)]


def every(count: int, quick: int, offset: int = 0) -> Iterator[int]:
    """All numbers below `count`, or about `quick` of them evenly spread (0: all)."""
    stride = max(1, count // quick) if quick else 1
    return iter(range(offset % stride, count, stride))
