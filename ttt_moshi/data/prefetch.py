"""Batches read ahead in a background thread."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

T = TypeVar("T")


class Prefetch(Generic[T]):
    """Calls `read(cursor, size)`, which must be a pure function, in time or ahead of time. The results are the same."""

    def __init__(self, read: Callable[[int, int], T]):
        self._read = read
        self._begun: dict[tuple[int, int], Future[T]] = {}
        self._worker: ThreadPoolExecutor | None = None

    def begin(self, cursor: int, size: int) -> None:
        """Starts to read in the background, after what was begun before."""
        if self._worker is None:
            self._worker = ThreadPoolExecutor(1, thread_name_prefix="clips")
        if (cursor, size) not in self._begun:
            self._begun[cursor, size] = self._worker.submit(self._read, cursor, size)

    def take(self, cursor: int, size: int) -> T:
        """The result, waited for if it was begun and read now if not. Raises what reading raises."""
        if (cursor, size) in self._begun:
            return self._begun.pop((cursor, size)).result()
        for guess in self._begun.values():  # another place than was foreseen: what was begun will not be asked for
            guess.cancel()
        self._begun.clear()
        return self._read(cursor, size)

    def close(self) -> None:
        """Ends the thread, if there is one."""
        if self._worker is not None:
            self._worker.shutdown(cancel_futures=True)
        self._worker = None
        self._begun.clear()
