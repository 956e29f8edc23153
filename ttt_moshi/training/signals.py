"""Stopping on request: the first signal asks for a clean stop after the current step, the second ends the process."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class StopRequest:
    """Remembers the first stop signal that arrived."""

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None

    def __bool__(self) -> bool:
        return self.signal is not None

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self.signal is not None:
            # The user insists: give the signal its ordinary effect.
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
        self.signal = signal.Signals(number)


@contextmanager
def stop_request() -> Iterator[StopRequest]:
    """Catches SIGTERM and SIGINT while the block runs and puts the earlier handlers back afterwards."""
    request = StopRequest()
    earlier = {number: signal.signal(number, request._receive) for number in STOP_SIGNALS}
    try:
        yield request
    finally:
        for number, handler in earlier.items():
            signal.signal(number, handler)
