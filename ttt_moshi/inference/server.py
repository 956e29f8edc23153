"""The server: who may come in, who talks in which slot, and how it all ends."""

from __future__ import annotations

import asyncio
import hmac
import logging
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

from aiohttp import WSCloseCode, web

from ttt_moshi.frames import seconds_to_frames
from ttt_moshi.inference.engine import Engine, Tick
from ttt_moshi.inference.errors import InferenceError
from ttt_moshi.inference.lobby import Lobby
from ttt_moshi.inference.metrics import Metrics
from ttt_moshi.inference.sessions import Sessions
from ttt_moshi.inference.settings import Settings
from ttt_moshi.inference.slots import Slots, Snapshot
from ttt_moshi.inference.visit import Visit, Wish
from ttt_moshi.inference.wire import FORMATS, MAX_MESSAGE_BYTES

T = TypeVar("T")

PING_SECONDS = 5.0
"""a ping unanswered for half as long ends the connection"""
SAVING_SECONDS = 30.0
"""for all conversations at the end"""
STUCK_SECONDS = 10.0
"""a tick that takes longer is no good sign"""

logger = logging.getLogger(__name__)


class House:
    """What the visits of one server share. Everything but `engine` belongs to the event loop.

    Args:
        slots: not entered yet; the engine enters them.
        sessions: where conversations are kept; None keeps none.
        seed: of every conversation; None draws one for each.
        start: where every conversation begins (a prompt); None begins with nothing.
        prepare: called first in the thread of the model.

    Attributes:
        live: visits by the session that is going on in them.
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
        self.live: dict[str, Visit] = {}
        self.tick_seconds = 0.0
        self.failure: BaseException | None = None
        self._state_id = slots.speaker.state_id
        self._visits: set[Visit] = set()
        self._talking: dict[int, Visit] = {}
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
        await asyncio.wrap_future(self.engine.start())

    async def close(self) -> None:
        """Ends all visits, saving their conversations, and then the model."""
        for visit in list(self._visits):
            visit.end(WSCloseCode.GOING_AWAY, "the server stops")
        waiting = [asyncio.create_task(visit.over.wait()) for visit in self._visits]
        if waiting:
            _, late = await asyncio.wait(waiting, timeout=SAVING_SECONDS)
            if late:
                logger.error("%d conversations were not saved within %.0f s", len(late), SAVING_SECONDS)
        self.engine.stop()
        await asyncio.get_running_loop().run_in_executor(None, self.engine.join, 1.0)
        self._disk.shutdown()

    async def receive(self, request: web.Request, wish: Wish) -> web.WebSocketResponse:
        """Serves one connection to its end."""
        socket = web.WebSocketResponse(
            heartbeat=PING_SECONDS, max_msg_size=MAX_MESSAGE_BYTES, timeout=0.5, compress=False
        )
        await socket.prepare(request)
        visit = Visit(self, socket, request.transport, wish)
        self._visits.add(visit)
        try:
            await visit.run()
        finally:
            self._visits.discard(visit)
        return socket

    async def call(self, function: Callable[[Slots], T]) -> T:
        """Runs `function` in the model's thread, between two ticks."""
        return await asyncio.wrap_future(self.engine.call(function))

    def new_session(self) -> str | None:
        """The id of a new conversation, None where none is kept."""
        return None if self.sessions is None else self.sessions.new_id()

    async def load(self, name: str) -> Snapshot:
        """A kept conversation. Raises InferenceError, OSError."""
        if self.sessions is None:
            raise InferenceError("this server keeps no conversations")
        return await self._on_disk(self.sessions.load, name, self._state_id)

    async def keep(self, name: str, snapshot: Snapshot) -> None:
        """Saves a conversation. Raises OSError."""
        assert self.sessions is not None
        await self._on_disk(self.sessions.save, name, snapshot, self._state_id)

    async def forget(self, name: str) -> None:
        """Deletes a conversation. Raises OSError."""
        if self.sessions is not None:
            await self._on_disk(self.sessions.forget, name)

    def live_visit(self, visit: Visit, session: str | None, slot: int) -> None:
        """A conversation begins."""
        self._talking[slot] = visit
        if session is not None:
            self.live[session] = visit
        self._count()

    def forget_visit(self, visit: Visit, session: str | None) -> None:
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


HOUSE: web.AppKey[House] = web.AppKey("house", House)


def make_app(house: House, page: Path | None) -> web.Application:
    """The application: `/api/chat`, `/healthz`, `/metrics`, and the files of `page` (with an `index.html`) at `/`."""

    async def lifetime(app: web.Application) -> AsyncIterator[None]:
        await house.open()
        yield

    async def leave(_: web.Application) -> None:
        await house.close()

    app = web.Application(middlewares=[_headers])
    app[HOUSE] = house
    app.cleanup_ctx.append(lifetime)
    app.on_shutdown.append(leave)  # type: ignore[arg-type]
    app.router.add_get("/api/chat", _chat)
    app.router.add_get("/api/hello", _hello)
    app.router.add_get("/api/sessions/{name}", _download)
    app.router.add_get("/healthz", _health)
    app.router.add_get("/metrics", _metrics)
    if page is not None:

        async def index(request: web.Request) -> web.StreamResponse:
            return web.FileResponse(page / "index.html")

        app.router.add_get("/", index)
        app.router.add_static("/", page)
    return app


@web.middleware
async def _headers(request: web.Request, handler: Callable[[web.Request], Any]) -> web.StreamResponse:
    """Pages of other sites may neither frame nor read what is served here."""
    response: web.StreamResponse = await handler(request)
    if not response.prepared:
        response.headers["X-Content-Type-Options"] = "nosniff"
        response.headers["X-Frame-Options"] = "DENY"
        response.headers["Referrer-Policy"] = "no-referrer"
        response.headers["Cache-Control"] = "no-cache"
    return response


async def _chat(request: web.Request) -> web.StreamResponse:
    house = request.app[HOUSE]
    _admit(request, house.settings)
    wish = _wish(request)
    if house.failure is not None:
        raise web.HTTPServiceUnavailable(text="the model has stopped\n")
    if house.lobby.free == 0 and house.lobby.queue >= house.settings.max_queue:
        raise web.HTTPServiceUnavailable(text="everybody is talking and too many wait; try again later\n")
    return await house.receive(request, wish)


async def _hello(request: web.Request) -> web.StreamResponse:
    """What a page should know before it asks for the microphone."""
    house = request.app[HOUSE]
    _admit(request, house.settings)
    facts = {
        "sample_rate": house.sample_rate,
        "frame_size": house.frame_size,
        "places": house.places,
        "free": house.lobby.free,
        "queue": house.lobby.queue,
        "keeps_sessions": house.sessions is not None,
    }
    return web.json_response(facts)


async def _download(request: web.Request) -> web.StreamResponse:
    """A kept conversation, for whoever holds its id."""
    house = request.app[HOUSE]
    _admit(request, house.settings)
    try:
        if house.sessions is None:
            raise InferenceError("this server keeps no conversations")
        path = house.sessions.existing(request.match_info["name"])
    except InferenceError as error:
        raise web.HTTPNotFound(text=f"{error}\n") from error
    return web.FileResponse(path, headers={"Content-Disposition": f'attachment; filename="{path.name}"'})


async def _health(request: web.Request) -> web.StreamResponse:
    house = request.app[HOUSE]
    if house.failure is not None or not house.engine.alive:
        return web.Response(status=503, text="the model has stopped\n")
    if house.engine.stuck_seconds > STUCK_SECONDS:
        return web.Response(status=503, text="the model does not answer\n")
    return web.Response(text="ok\n")


async def _metrics(request: web.Request) -> web.StreamResponse:
    house = request.app[HOUSE]
    _admit(request, house.settings)
    return web.Response(body=house.metrics.text(), headers={"Content-Type": "text/plain; version=0.0.4; charset=utf-8"})


def _admit(request: web.Request, settings: Settings) -> None:
    """Turns away pages of other sites, and whoever does not know the token."""
    host = urlsplit(f"//{request.host}").hostname or ""
    origin = request.headers.get("Origin")
    if settings.hosts is not None and host not in settings.hosts:
        raise web.HTTPForbidden(text=f"this server is not known as {host[:80]}\n")
    if origin is not None and origin not in settings.origins and urlsplit(origin).netloc != request.host:
        raise web.HTTPForbidden(text="a page of another site may not talk to this server\n")
    if settings.token is not None:
        given = request.query.get("token") or request.headers.get("Authorization", "").removeprefix("Bearer ")
        if not hmac.compare_digest(given.encode(), settings.token.encode()):
            raise web.HTTPUnauthorized(text="the token is missing or wrong\n")


def _wish(request: web.Request) -> Wish:
    """What the address asks for; other parameters are those of moshi's own page, which mean nothing here."""
    query = request.query
    form = query.get("format", "opus")
    if form not in FORMATS:
        raise web.HTTPBadRequest(text=f"format is {' or '.join(FORMATS)}\n")
    return Wish(query.get("events") == "1", form, query.get("resume"))
