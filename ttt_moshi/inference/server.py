"""The server: what all visits share, who talks in which slot, and how it all ends."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol, TypeVar

from aiohttp import WSCloseCode

from ttt_moshi.frames import seconds_to_frames
from ttt_moshi.inference.engine import Engine, Tick
from ttt_moshi.inference.errors import InferenceError
from ttt_moshi.inference.lobby import Lobby, Ticket
from ttt_moshi.inference.metrics import Metrics
from ttt_moshi.inference.sessions import Sessions
from ttt_moshi.inference.settings import Settings
from ttt_moshi.inference.slots import Reply, Slots, Snapshot

T = TypeVar("T")

SAVING_SECONDS = 30.0
"""for all conversations at the end"""

logger = logging.getLogger(__name__)


class Visitor(Protocol):
    """What the server knows of a connection (`visit.Visit`)."""

    over: asyncio.Event
    ticket: Ticket | None

    def end(self, code: int, reason: str) -> None: ...

    def deliver(self, reply: Reply | None, waited: float, broken: bool) -> None: ...


class Server:
    """What the visits of one server share. Everything but `engine` belongs to the event loop.

    Args:
        slots: watched, and not entered yet; the engine enters them.
        sessions: where conversations are kept; None keeps none.
        seed: of every conversation; None draws one for each.
        start: where every conversation begins (a prompt); None begins with nothing.
        prepare: called first in the thread of the model.

    Attributes:
        state_id, dtype: of the model.
        speaks: whether the model says anything.
        takes_prompts: whether visitors may say who Moshi should be.
        live: visits by the session that is going on in them, or will be once they have a place.
        tick_seconds: of the last tick.
    """

    def __init__(
        self,
        slots: Slots,
        settings: Settings,
        sessions: Sessions | None = None,
        seed: int | None = None,
        start: Snapshot | None = None,
        prepare: Callable[[], None] = lambda: None,
    ) -> None:
        self.settings, self.sessions, self.seed, self.start = settings, sessions, seed, start
        self.sample_rate, self.frame_size = slots.sample_rate, slots.frame_size
        self.places = slots.count
        self.metrics = Metrics(slots.count)
        self.lobby = Lobby(slots.count)
        self.live: dict[str, Visitor] = {}
        self.tick_seconds = 0.0
        self.failure: BaseException | None = None
        self.lost = 0
        """conversations whose last frames could not be saved when they ended"""
        self.state_id, self.dtype = slots.speaker.state_id, slots.speaker.dtype
        self.speaks = slots.speaker.speaks
        self.takes_prompts = start is None and self.speaks
        self._visits: set[Visitor] = set()
        self._talking: dict[int, Visitor] = {}
        # One thread: what is saved later is written later.
        self._disk = ThreadPoolExecutor(1, thread_name_prefix="sessions")
        self._loop: asyncio.AbstractEventLoop | None = None
        self.stopped = asyncio.Event()
        lag = settings.max_lag
        queue = None if lag is None else max(1, seconds_to_frames(lag))
        self.engine = Engine(slots, queue, self._on_tick, self._on_failure, prepare)

    async def open(self) -> None:
        """Loads and warms the model."""
        self._loop = asyncio.get_running_loop()
        if self.sessions is not None:
            await self._on_disk(self.sessions.tidy)
        # Whoever is interrupted here leaves at once; the thread ends with the process.
        await asyncio.shield(asyncio.wrap_future(self.engine.start()))

    async def close(self) -> None:
        """Ends all visits, saving their conversations, and then the model."""
        for visit in list(self._visits):
            visit.end(WSCloseCode.GOING_AWAY, "the server stops")
        waiting = [asyncio.create_task(visit.over.wait()) for visit in self._visits]
        if waiting:
            _, late = await asyncio.wait(waiting, timeout=SAVING_SECONDS)
            if late:
                self.lost += len(late)
                logger.error("%d conversations were not saved within %.0f s", len(late), SAVING_SECONDS)
        self.engine.stop()
        await asyncio.get_running_loop().run_in_executor(None, self.engine.join, 1.0)
        self._disk.shutdown()

    def arrive(self, visit: Visitor) -> None:
        """A connection has been opened."""
        self._visits.add(visit)

    def depart(self, visit: Visitor) -> None:
        """A connection has come to its end."""
        self._visits.discard(visit)

    async def call(self, function: Callable[[Slots], T]) -> T:
        """Runs `function` in the model's thread, between two ticks."""
        return await asyncio.wrap_future(self.engine.call(function))

    def new_session(self) -> str | None:
        """The id of a new conversation, None where none is kept."""
        return None if self.sessions is None else self.sessions.new_id()

    def in_words(self, error: BaseException) -> str:
        """An error for a visitor, who need not know where this machine keeps what."""
        if self.sessions is None:
            return str(error)
        folder = str(self.sessions.folder)
        return str(error).replace(f" in {folder}", "").replace(f"{folder}/", "").replace(folder, "the sessions")

    async def load(self, name: str) -> Snapshot:
        """A kept conversation. Raises InferenceError, OSError."""
        if self.sessions is None:
            raise InferenceError("this server keeps no conversations")
        return await self._on_disk(self.sessions.load, name, self.state_id)

    async def keep(self, name: str, snapshot: Snapshot) -> None:
        """Saves a conversation. Raises OSError."""
        assert self.sessions is not None
        await self._on_disk(self.sessions.save, name, snapshot, self.state_id)

    async def forget(self, name: str) -> None:
        """Deletes a conversation. Raises OSError."""
        if self.sessions is not None:
            await self._on_disk(self.sessions.forget, name)

    def claim(self, visit: Visitor, session: str) -> Visitor | None:
        """Gives a session to `visit` from now on; the visit that had it, None if none had."""
        before = self.live.get(session)
        self.live[session] = visit
        return before

    def live_visit(self, visit: Visitor, session: str | None, slot: int) -> None:
        """A conversation begins."""
        self._talking[slot] = visit
        if session is not None:
            self.live.setdefault(session, visit)  # another may have claimed it this very moment
        self._count()

    def forget_visit(self, visit: Visitor, session: str | None) -> None:
        """A conversation, or the wish for one, has ended."""
        self._talking = {slot: other for slot, other in self._talking.items() if other is not visit}
        if session is not None and self.live.get(session) is visit:
            del self.live[session]
        self._count()

    def _count(self) -> None:
        self.metrics.talking.set(len(self._talking))
        self.metrics.queueing.set(self.lobby.queue)

    async def _on_disk(self, function: Callable[..., T], *arguments: Any) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._disk, function, *arguments)

    def _on_tick(self, tick: Tick) -> None:
        """In the model's thread."""
        assert self._loop is not None
        self._loop.call_soon_threadsafe(self._deliver, tick)

    def _deliver(self, tick: Tick) -> None:
        self.metrics.tick(tick)
        self.tick_seconds = tick.seconds
        for slot, waited in tick.waited.items():
            if (visit := self._talking.get(slot)) is not None:
                visit.deliver(tick.replies.get(slot), waited, slot in tick.broken)

    def _on_failure(self, error: BaseException) -> None:
        """In the model's thread, which ends."""
        assert self._loop is not None
        self._loop.call_soon_threadsafe(self._fail, error)

    def _fail(self, error: BaseException) -> None:
        logger.error("the model has stopped", exc_info=error)
        self.failure = error
        for visit in list(self._visits):
            visit.end(WSCloseCode.INTERNAL_ERROR, "the model has stopped")
        self.stopped.set()
