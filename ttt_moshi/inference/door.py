"""Who may be connected: so many at once, and for a short time only as long as they ask for nothing."""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
import time
from collections.abc import Awaitable, Callable
from typing import Any, cast

from aiohttp import web
from aiohttp.abc import AbstractAccessLogger
from aiohttp.http_exceptions import HttpProcessingError

PATIENCE_SECONDS = 10.0
"""for a whole request: from a new connection, and from one that has had its answer"""

UNREAD_SECONDS = 30.0
"""as long as a reply may lie unread"""

ACCEPT_AGAIN_SECONDS = 1.0
BACKLOG = 128
LOG_SECONDS = 60.0

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Seldom(logging.Filter):
    """Lets a line through once a minute, however often strangers bring it about; it says how many were left out."""

    def __init__(self) -> None:
        super().__init__()
        self._told: dict[str, float] = {}
        self._left_out: dict[str, int] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether the line is written; one about what was no HTTP goes without a traceback."""
        error = record.exc_info[1] if record.exc_info else None
        kind = f"{record.msg} {type(error).__name__}"
        now = time.monotonic()
        if now - self._told.get(kind, -LOG_SECONDS) < LOG_SECONDS:
            self._left_out[kind] = self._left_out.get(kind, 0) + 1
            return False
        self._told[kind] = now
        left_out = self._left_out.pop(kind, 0)
        if left_out:
            record.msg = f"{record.getMessage()} ({left_out} more since it was last said)"
            record.args = ()
        if isinstance(error, HttpProcessingError):
            record.msg, record.args = f"{record.getMessage()}: what came is no HTTP", ()
            record.exc_info = record.exc_text = None
        return True


logger = logging.getLogger(__name__)
logger.addFilter(Seldom())


class _Guest(asyncio.Protocol):
    """One connection, seen from the door: it passes all that happens on to aiohttp's handler of it.

    Attributes:
        since: when it began to ask for nothing; None while a request is being answered.
    """

    def __init__(self, door: Door, handler: web.RequestHandler) -> None:
        self._door, self.handler = door, handler
        self.since: float | None = time.monotonic()
        self.transport: asyncio.Transport | None = None
        self.arriving: asyncio.Task[None] | None = None
        self.timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.handler.connection_made(transport)

    def data_received(self, data: bytes) -> None:
        try:
            self.handler.data_received(data)
        except ValueError as error:
            if self.since is None or self.transport is None:
                raise
            # aiohttp's parser lets errors of some addresses (`http://[/`) through.
            logger.warning("a request for what is no address: %s", error)
            self.transport.write(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
            self.transport.close()

    def eof_received(self) -> None:
        self.handler.eof_received()

    def pause_writing(self) -> None:
        self.handler.pause_writing()

    def resume_writing(self) -> None:
        self.handler.resume_writing()

    def connection_lost(self, error: Exception | None) -> None:
        self._door.gone(self)
        self.handler.connection_lost(error)

    def leave(self) -> None:
        """Ends the connection at once."""
        if self.transport is not None:
            self.transport.abort()
        elif self.arriving is not None:
            self.arriving.cancel()


class Door:
    """Accepts the connections of a web application, which it is put in front of.

    aiohttp waits for a request for ever, and asyncio accepts until no file can be opened any more: so whoever opened
    connections and said nothing would stop the server for everybody.

    Args:
        app: not set up yet.
        limit: of connections at the same time. Beyond it the one that has asked for nothing for the longest time is
            closed; where all are being answered, the new one.
        patience: seconds until one that asks for nothing is closed.

    Attributes:
        runner_options: what `web.AppRunner` has to be given besides `app`.
    """

    def __init__(self, app: web.Application, limit: int, patience: float = PATIENCE_SECONDS) -> None:
        self._limit, self._patience = limit, patience
        self._guests: dict[web.RequestHandler, _Guest] = {}
        self._accepting: list[asyncio.Task[None]] = []
        door = self

        class Answered(AbstractAccessLogger):
            """Whom aiohttp tells that an answer has been sent."""

            def log(self, request: web.BaseRequest, response: web.StreamResponse, time: float) -> None:
                door._asks_nothing(request.protocol)

        @web.middleware
        async def asks(request: web.Request, handler: Handler) -> web.StreamResponse:
            door._asks(request.protocol)
            return await handler(request)

        app.middlewares.insert(0, asks)
        self.runner_options: dict[str, Any] = {"access_log_class": Answered, "access_log": logger, "logger": logger}

    def listen(self, bound: socket.socket, server: web.Server, context: ssl.SSLContext | None = None) -> None:
        """Lets connections in, from now until `close`.

        Args:
            bound: a socket with an address.
            server: of a runner with `runner_options`.
        """
        bound.listen(BACKLOG)
        bound.setblocking(False)
        self._accepting.append(asyncio.create_task(self._accept(bound, server, context)))

    async def close(self) -> None:
        """Lets nobody in any more. Those who are in stay."""
        arriving = [guest.arriving for guest in self._guests.values() if guest.arriving is not None]
        for task in (*self._accepting, *arriving):
            task.cancel()
        await asyncio.gather(*self._accepting, *arriving, return_exceptions=True)

    def gone(self, guest: _Guest) -> None:
        """A connection has ended."""
        self._guests.pop(guest.handler, None)
        if guest.timer is not None:
            guest.timer.cancel()

    async def _accept(self, bound: socket.socket, server: web.Server, context: ssl.SSLContext | None) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                connection, _ = await loop.sock_accept(bound)
            except ConnectionAbortedError:  # gone before it came
                continue
            except OSError as error:
                logger.error("no connection can be accepted: %s", error.strerror)
                await asyncio.sleep(ACCEPT_AGAIN_SECONDS)
                continue
            if len(self._guests) >= self._limit and not self._make_room():
                connection.close()
                continue
            guest = _Guest(self, server())
            self._guests[guest.handler] = guest
            self._wait_for_request(guest)
            guest.arriving = loop.create_task(self._arrive(guest, connection, context))

    async def _arrive(self, guest: _Guest, connection: socket.socket, context: ssl.SSLContext | None) -> None:
        """The beginning of a connection, which may take long with TLS."""
        loop = asyncio.get_running_loop()
        try:
            if hasattr(socket, "TCP_USER_TIMEOUT"):  # Linux
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, round(1000 * UNREAD_SECONDS))
            await loop.connect_accepted_socket(lambda: guest, connection, ssl=context)
        except BaseException as error:
            connection.close()
            self.gone(guest)
            if not isinstance(error, OSError):  # hung up, or no TLS
                raise
        finally:
            guest.arriving = None

    def _make_room(self) -> bool:
        """Whether somebody could be let go for a new connection."""
        idle = [(guest.since, guest) for guest in self._guests.values() if guest.since is not None]
        if not idle:
            logger.warning("all %d connections are being answered: new ones are turned away", self._limit)
            return False
        logger.warning("all %d connections are taken: of those who ask for nothing the oldest are closed", self._limit)
        _, guest = min(idle, key=lambda one: one[0])
        self.gone(guest)
        guest.leave()
        return True

    def _asks(self, handler: web.RequestHandler) -> None:
        guest = self._guests.get(handler)
        if guest is not None:
            guest.since = None
            if guest.timer is not None:
                guest.timer.cancel()

    def _asks_nothing(self, handler: web.RequestHandler) -> None:
        guest = self._guests.get(handler)
        if guest is not None:
            guest.since = time.monotonic()
            self._wait_for_request(guest)

    def _wait_for_request(self, guest: _Guest) -> None:
        if guest.timer is not None:
            guest.timer.cancel()
        guest.timer = asyncio.get_running_loop().call_later(self._patience, self._lose_patience, guest)

    def _lose_patience(self, guest: _Guest) -> None:
        if guest.transport is None or not guest.transport.get_write_buffer_size():
            guest.leave()
        else:  # what it was answered is still on the way
            self._wait_for_request(guest)
