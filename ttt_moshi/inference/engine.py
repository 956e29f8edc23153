"""The thread that owns the model: it ticks for all who talk, and waits for none of them."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TypeVar

from torch import Tensor

from ttt_moshi.frames import FRAME_RATE
from ttt_moshi.inference.errors import InferenceError
from ttt_moshi.inference.slots import Reply, Slots

T = TypeVar("T")

TICK_SECONDS = 1.0 / FRAME_RATE
WARM_UP_FRAMES = 4

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Tick:
    """What one tick did.

    Args:
        replies: by slot.
        broken: slots whose memory became not finite in it.
        seconds: that it took.
        waited: by slot, how long the frame that was heard had waited before.
    """

    replies: Mapping[int, Reply]
    broken: frozenset[int]
    seconds: float
    waited: Mapping[int, float]


_Came = tuple[float, Tensor]
"""a frame and when it came"""


class Engine:
    """Ticks in a thread of its own, from `start` until `stop`.

    A tick comes when every conversation has a frame, or one has two (it is behind), or a frame has been there for the
    length of a frame. So one visitor alone waits for nobody, and of many each waits for the others for 80 ms at most.

    Args:
        slots: not entered yet.
        max_queue: frames of one conversation that may wait; of more the oldest are dropped. None never drops any: then
            whoever feeds looks at `waiting`.
        on_tick: called in the engine's thread after every tick.
        on_failure: called in the engine's thread when it ends by an error; nothing ticks any more.
        prepare: called in the engine's thread first, to choose its GPU.
    """

    def __init__(
        self,
        slots: Slots,
        max_queue: int | None,
        on_tick: Callable[[Tick], None],
        on_failure: Callable[[BaseException], None],
        prepare: Callable[[], None] = lambda: None,
    ) -> None:
        self._slots = slots
        self._max_queue = max_queue
        self._on_tick, self._on_failure, self._prepare = on_tick, on_failure, prepare
        self._changed = threading.Condition()
        self._queues: dict[int, deque[_Came]] = {}
        self._calls: deque[Callable[[], None]] = deque()
        self._stopping = self._failed = False
        self._last_tick = 0.0
        self._ticking = False
        self._thread = threading.Thread(target=self._run, name="moshi", daemon=True)
        self._ready: Future[None] = Future()

    def start(self) -> Future[None]:
        """Begins; the result is there when the model is warm, or the error that kept it from being so."""
        self._thread.start()
        return self._ready

    def stop(self) -> None:
        """Ends after the tick and the calls that are going on. Returns at once; `join` waits."""
        with self._changed:
            self._stopping = True
            self._changed.notify()

    def join(self, timeout: float | None = None) -> None:
        """Waits for the thread's end."""
        self._thread.join(timeout)

    @property
    def alive(self) -> bool:
        """Whether anything can still be heard."""
        return self._thread.is_alive()

    @property
    def stuck_seconds(self) -> float:
        """How long the tick that is going on has taken so far; 0 between ticks."""
        return time.monotonic() - self._last_tick if self._ticking else 0.0

    def call(self, function: Callable[[Slots], T]) -> Future[T]:
        """Runs `function` between two ticks, in the engine's thread."""
        future: Future[T] = Future()

        def work() -> None:
            if not future.set_running_or_notify_cancel():
                return  # nobody waits for it any more
            if self._failed:
                future.set_exception(InferenceError("the model has stopped"))
            else:
                try:
                    future.set_result(function(self._slots))
                except Exception as error:  # noqa: BLE001  it is the caller's
                    future.set_exception(error)

        with self._changed:
            if self._stopping or not self._thread.is_alive():
                future.set_exception(InferenceError("the model has stopped"))
            else:
                self._calls.append(work)
                self._changed.notify()
        return future

    def attend(self, slot: int) -> None:
        """From now on ticks wait for this slot's frames."""
        with self._changed:
            self._queues[slot] = deque()

    def leave(self, slot: int) -> None:
        """Nobody waits for this slot any more; its frames are forgotten."""
        with self._changed:
            self._queues.pop(slot, None)
            self._changed.notify()

    def hear(self, slot: int, frame: Tensor) -> int:
        """A frame (float32 [frame_size], finite) has come; returns how many older ones were dropped for it."""
        dropped = 0
        with self._changed:
            frames = self._queues[slot]
            frames.append((time.monotonic(), frame))
            while self._max_queue is not None and len(frames) > self._max_queue:
                frames.popleft()
                dropped += 1
            self._changed.notify()
        return dropped

    def waiting(self, slot: int) -> int:
        """Frames of a slot that have not been heard yet."""
        with self._changed:
            return len(self._queues.get(slot, ()))

    def _run(self) -> None:
        try:
            self._prepare()
            with self._slots as slots:
                self._warm_up(slots)
                self._ready.set_result(None)
                while True:
                    calls, frames = self._next()
                    for call in calls:
                        call()
                    if frames is None:
                        break
                    if frames:
                        self._tick(slots, frames)
        except BaseException as error:  # noqa: BLE001  whoever waits must hear of it
            with self._changed:
                self._stopping = self._failed = True
                calls = list(self._calls)
                self._calls.clear()
            if not self._ready.done():
                self._ready.set_exception(error)
            else:
                self._on_failure(error)
            for call in calls:
                call()

    def _warm_up(self, slots: Slots) -> None:
        """The first frames compile kernels and record graphs, for which no visitor should wait."""
        import torch

        for slot in range(slots.count):
            slots.join(slot, 0)
        for _ in range(WARM_UP_FRAMES):
            slots.tick({slot: torch.zeros(slots.frame_size) for slot in range(slots.count)})

    def _tick(self, slots: Slots, frames: dict[int, _Came]) -> None:
        self._last_tick = began = time.monotonic()
        self._ticking = True
        before = set(slots.broken)
        replies = slots.tick({slot: frame for slot, (_, frame) in frames.items()})
        self._ticking = False
        waited = {slot: began - came for slot, (came, _) in frames.items()}
        self._on_tick(Tick(replies, frozenset(slots.broken - before), time.monotonic() - began, waited))

    def _next(self) -> tuple[list[Callable[[], None]], dict[int, _Came] | None]:
        """Waits for calls, or for a tick to be due: (calls to make, frames to hear; None at the end)."""
        with self._changed:
            while True:
                calls = list(self._calls)
                self._calls.clear()
                if self._stopping:
                    return calls, None
                delay = self._due()
                if delay is not None and delay <= 0.0:
                    return calls, {slot: queue.popleft() for slot, queue in self._queues.items() if queue}
                if calls:
                    return calls, {}
                self._changed.wait(delay)

    def _due(self) -> float | None:
        """Seconds until the next tick; None as long as nobody has said anything."""
        lengths = [len(queue) for queue in self._queues.values()]
        if not any(lengths):
            return None
        if all(lengths) or max(lengths) > 1:
            return 0.0
        oldest = min(queue[0][0] for queue in self._queues.values() if queue)
        return max(oldest, self._last_tick) + TICK_SECONDS - time.monotonic()
