"""Requests from outside: SIGTERM and SIGINT ask for a clean stop, SIGUSR1 or a file `SAVE` for a checkpoint now.

The first stop signal lets the step finish; one that comes two seconds later or more ends the process.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

# torchrun forwards a signal that the terminal has sent to every process already: that is one request, not two.
REPEAT_SECONDS = 2.0
STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Requests:
    """What this process was asked for since it last looked."""

    def __init__(self) -> None:
        self.stop: signal.Signals | None = None
        self._save = False
        self._stop_time = 0.0

    def take_save(self) -> bool:
        """Whether a checkpoint was asked for by signal; asking once gives one."""
        asked, self._save = self._save, False
        return asked

    def _ask_save(self, number: int, frame: FrameType | None) -> None:
        self._save = True

    def _ask_stop(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if self.stop is not None and now - self._stop_time < REPEAT_SECONDS:
            return
        self._stop_time = now
        if self.stop is not None:
            # The user insists: give the signal its ordinary effect.
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
        self.stop = signal.Signals(number)


@contextmanager
def requests() -> Iterator[Requests]:
    """Catches the signals while the block runs and puts the earlier handlers back afterwards."""
    asked = Requests()
    earlier = {number: signal.signal(number, asked._ask_stop) for number in STOP_SIGNALS}
    earlier[signal.SIGUSR1] = signal.signal(signal.SIGUSR1, asked._ask_save)
    try:
        yield asked
    finally:
        for number, handler in earlier.items():
            signal.signal(number, handler)
