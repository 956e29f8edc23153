"""One batch read ahead in a background thread."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

T = TypeVar("T")


class Prefetch(Generic[T]):
    """Calls `read(cursor, size)`, which must be a pure function, in time or ahead of time. The results are the same."""

    def __init__(self, read: Callable[[int, int], T]):
        self._read = read
        self._pending: tuple[int, int, Future[T]] | None = None
        self._worker: ThreadPoolExecutor | None = None

    def begin(self, cursor: int, size: int) -> None:
        """Starts to read in the background; forgets what was started before."""
        if self._worker is None:
            self._worker = ThreadPoolExecutor(1, thread_name_prefix="clips")
        self._pending = (cursor, size, self._worker.submit(self._read, cursor, size))

    def take(self, cursor: int, size: int) -> T:
        """The result, waited for if it was begun and read now if not. Raises what reading raises."""
        pending, self._pending = self._pending, None
        if pending and pending[:2] == (cursor, size):
            return pending[2].result()
        return self._read(cursor, size)

    def close(self) -> None:
        """Ends the thread, if there is one."""
        if self._worker is not None:
            self._worker.shutdown(cancel_futures=True)
            self._worker = self._pending = None
