"""Requests from outside: SIGTERM, SIGINT and SIGHUP ask for a clean stop, SIGUSR1 for a checkpoint now.

While a run starts there is nothing to lose, so a stop ends it at once. While it trains, the first stop signal lets the
step finish; one that comes two seconds later or more ends the process. Imports nothing heavy: the handlers are in place
before PyTorch is.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

# torchrun forwards a signal that the terminal has sent to every process already: that is one request, not two.
REPEAT_SECONDS = 2.0
STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


class Stopped(BaseException):
    """A stop signal came before there was anything to save. No `Exception`, so that nothing takes it for an error."""

    def __init__(self, number: signal.Signals) -> None:
        super().__init__(number.name)
        self.number = number


class Requests:
    """What this process was asked for since it last looked."""

    def __init__(self) -> None:
        self.stop: signal.Signals | None = None
        self._save = False
        self._stop_time = 0.0
        self._starting = False

    def starting(self) -> None:
        """Until `started`, a stop signal raises `Stopped` wherever the process is."""
        self._starting = True

    def started(self) -> None:
        """From here on a stop signal lets the step finish. Raises `Stopped` if one has come already."""
        self._starting = False
        if self.stop is not None:
            raise Stopped(self.stop)

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
        if self._starting:
            raise Stopped(self.stop)


@contextmanager
def requests() -> Iterator[Requests]:
    """Catches the signals while the block runs and puts the earlier handlers back afterwards.

    A SIGHUP that is ignored already stays so: that is what `nohup` asks for.
    """
    asked = Requests()
    stops = [n for n in STOP_SIGNALS if n != signal.SIGHUP or signal.getsignal(n) != signal.SIG_IGN]
    earlier = {number: signal.signal(number, asked._ask_stop) for number in stops}
    earlier[signal.SIGUSR1] = signal.signal(signal.SIGUSR1, asked._ask_save)
    try:
        yield asked
    finally:
        for number, handler in earlier.items():
            signal.signal(number, handler)
