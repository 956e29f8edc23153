"""Tasks shared out over the machines of a Ray cluster: whatever one process does file by file, many do."""

from __future__ import annotations

import logging
import os
import re
import signal
import socket
import sys
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from ttt_moshi import __version__
from ttt_moshi.data.remote import cache_in_use, use_cache
from ttt_moshi.errors import UserError
from ttt_moshi.extras import need
from ttt_moshi.files import partial_beside

_ATTEMPTS = 3
_STORE_BYTES = 100_000_000
"""of shared memory where Ray is started for one command: what goes through it are names and counts"""
_ADDRESS = re.compile(r"(?:ray://)?([^/:\s]+):(\d{1,5})")
_PATIENCE = 10.0
"""seconds that a connection may take"""

_log = logging.getLogger(__name__)

Task = TypeVar("Task")
Result = TypeVar("Result")


class Cluster:
    """A Ray cluster that this process is connected to (`connected`)."""

    def __init__(self, ray: Any):
        self._ray = ray

    def device(self, name: str) -> str:
        """`auto`, `cpu` or `cuda` as what a worker computes on: a GPU of its own, or a core.

        Raises:
            UserError: another name, or no GPU in the cluster.
        """
        if name not in ("auto", "cpu", "cuda"):
            raise UserError(f"`--device {name}`: with `--ray` it is auto, cpu or cuda; Ray says which GPU is whose")
        gpus = int(self._ray.cluster_resources().get("GPU", 0))
        if name == "cuda" and not gpus:
            raise UserError("`--device cuda`: no machine of the Ray cluster offers a GPU; leave it out")
        return "cuda" if gpus and name != "cpu" else "cpu"

    def spread(
        self,
        make: Callable[[], Callable[[Task], Result]],
        tasks: Sequence[Task],
        written: Sequence[Path],
        device: str = "cpu",
    ) -> Iterator[tuple[int, Result | None]]:
        """Does every task in some worker: a process for each GPU or core of the cluster, as they become free.

        A task whose process dies, alone or with its machine, is done again by another one; it must bear that.

        Args:
            make: called once in each worker, gives what does a task there; may open a model.
            written: folders that tasks write into, which every machine must share.
            device: what `device` said.

        Yields:
            The index of a task and its result, as they are finished; None where three processes died of it.

        Raises:
            UserError: a machine has another version of this package or does not share a folder; no worker can begin.
            Exception: what a task raised; the tasks that are left are not done.
        """
        ray = self._ray
        kind, demand = ("CPU", {"num_cpus": 1}) if device == "cpu" else ("GPU", {"num_cpus": 0, "num_gpus": 1})
        remote = ray.remote(**demand)(_Worker)
        deaths, left, waiting = Counter[int](), len(tasks), deque(range(len(tasks)))
        idle: list[Any] = []
        busy: dict[Any, tuple[Any, int | None]] = {}  # by what is awaited of them: with their task, None to begin with

        def await_one() -> tuple[int | None, Any, str | None]:
            """Of the next worker that is done: its task, the result, and what it has died of instead."""
            (done,), _ = ray.wait(list(busy))
            worker, task = busy.pop(done)
            try:
                result = ray.get(done)
            except ray.exceptions.RayTaskError as error:
                raise error.cause from None
            except (ray.exceptions.RayActorError, ray.exceptions.OutOfMemoryError) as error:
                return task, None, str(error).strip().splitlines()[-1]
            idle.append(worker)
            return task, result, None

        with _marks(written) as marks:
            place = _Place(__version__, os.getcwd(), marks, cache_in_use())

            def start() -> None:
                worker = remote.remote(place, make)
                busy[worker.begin.remote()] = (worker, None)

            try:
                for _ in range(min(left, max(1, int(ray.cluster_resources().get(kind, 0))))):
                    start()
                while left:
                    while idle and waiting:
                        worker, task = idle.pop(), waiting.popleft()
                        busy[worker.do.remote(tasks[task])] = (worker, task)
                    done, result, died = await_one()
                    if done is None:
                        if died is not None:
                            told = f"a process of the Ray cluster could not begin: {died}"
                            if not busy and not idle:
                                raise UserError(told)
                            _log.warning(told)
                        continue
                    if died is not None:
                        start()
                        deaths[done] += 1
                        if deaths[done] < _ATTEMPTS:
                            _log.warning("a process of the Ray cluster died; what it was at is done again")
                            waiting.appendleft(done)
                            continue
                    left -= 1
                    yield done, result
            finally:
                for worker in [*idle, *(worker for worker, _ in busy.values())]:
                    ray.kill(worker)


@contextmanager
def connected(address: str | None) -> Iterator[Cluster]:
    """The cluster at `HOST:PORT`; or else the one that this machine belongs to, or one of this machine alone.

    Raises:
        UserError: Ray is not installed, or there is no cluster at the address.
    """
    if address is not None:
        _require_answer(address)
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # what people do is nobody's business
    ray: Any = need("ray", "`--ray`")
    before = signal.getsignal(signal.SIGTERM)
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": "critical"}
    try:
        ray.init(address or "auto", **quiet)
    except ConnectionError as error:
        if address is not None:
            told = "what answers there is no Ray cluster of this version, or one with another token"
            raise UserError(f"`--ray {address}`: {told}") from error
        _start_here(ray, quiet)
    # Ray would print what its processes say of one another among our own output, and has no public way to be quiet.
    ray._private.worker._worker_logs_enabled = False
    asked: list[int] = []

    def stop(number: int, _: object) -> None:
        asked.append(number)
        sys.exit()

    try:
        signal.signal(signal.SIGTERM, stop)
        yield Cluster(ray)
    except SystemExit:
        if not asked:
            raise
        sys.exit(128 + asked[0])  # where Ray waits it makes another status of it, and so does its own handler
    finally:
        ray.shutdown()
        signal.signal(signal.SIGTERM, before)


def _require_answer(address: str) -> None:
    """Raises UserError where nobody listens; Ray itself would go on trying for ten minutes."""
    match = _ADDRESS.fullmatch(address)
    if match is None:
        raise UserError(f"`--ray {address}` is no address of a Ray cluster, such as 10.0.0.1:6379")
    try:
        socket.create_connection((match[1], int(match[2])), _PATIENCE).close()
    except (OSError, OverflowError) as error:
        raise UserError(f"`--ray {address}`: no Ray cluster answers there; `ray start` makes one") from error


def _start_here(ray: Any, quiet: dict[str, Any]) -> None:
    try:
        ray.init("local", object_store_memory=_STORE_BYTES, include_dashboard=False, **quiet)
    except Exception as error:  # Ray has no kind of its own for a start that fails
        raise UserError(f"`--ray`: Ray does not start on this machine: {' '.join(str(error).split())}") from error


@dataclass(frozen=True)
class _Place:
    """What a machine must have in common with the one that gives the tasks."""

    version: str
    folder: str
    """in which relative paths begin"""
    marks: tuple[Path, ...]
    """files that are in the folders that are written"""
    cache: tuple[Path, float]
    """for copies of what a list names at URLs; each machine may have its own under this path"""

    def enter(self) -> None:
        """Raises UserError where it has not."""
        here = f"the machine {socket.gethostname()} of the Ray cluster"
        if __version__ != self.version:
            raise UserError(f"{here} has ttt-moshi {__version__}, this one {self.version}: install the same")
        try:
            os.chdir(self.folder)
        except OSError as error:
            raise UserError(f"{here} does not have the folder {self.folder}, in which this command runs") from error
        use_cache(*self.cache)
        for mark in self.marks:
            if not mark.exists():
                raise UserError(f"{here} does not share the folder {mark.parent}: mount it there under the same path")


class _Worker:
    """What runs in a process somewhere in the cluster."""

    def __init__(self, place: _Place, make: Callable[[], Callable[[Any], Any]]):
        self._place = place
        self._make = make

    def begin(self) -> None:
        """Not in `__init__`, of whose errors Ray makes a text."""
        self._place.enter()
        self._do = self._make()

    def do(self, task: Any) -> Any:
        return self._do(task)


@contextmanager
def _marks(folders: Sequence[Path]) -> Iterator[tuple[Path, ...]]:
    """A file of a new name in each folder, by which to tell that another machine sees that very folder."""
    marks = tuple(partial_beside(folder / "mark") for folder in folders)
    try:
        for mark in marks:
            mark.parent.mkdir(parents=True, exist_ok=True)
            mark.touch()
        yield marks
    finally:
        for mark in marks:
            mark.unlink(missing_ok=True)
