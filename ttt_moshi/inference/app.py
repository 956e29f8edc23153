"""The server's web application: who may come in, and what is found at which address."""

from __future__ import annotations

import hmac
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any
from urllib.parse import SplitResult, urlsplit

from aiohttp import web

from ttt_moshi.inference.errors import InferenceError
from ttt_moshi.inference.server import Server
from ttt_moshi.inference.settings import Settings
from ttt_moshi.inference.visit import Visit, Wish
from ttt_moshi.inference.wire import FORMATS, MAX_MESSAGE_BYTES

MAX_PROMPT_LETTERS = 2000
PROMETHEUS = "text/plain; version=0.0.4; charset=utf-8"
STUCK_SECONDS = 10.0
"""a tick that takes longer is no good sign"""

SERVER: web.AppKey[Server] = web.AppKey("server", Server)


def make_app(server: Server, page: Path | None) -> web.Application:
    """The application: `/api/chat`, `/healthz`, `/metrics`, and the files of `page` (with an `index.html`) at `/`."""

    async def lifetime(app: web.Application) -> AsyncIterator[None]:
        await server.open()
        yield

    async def leave(_: web.Application) -> None:
        await server.close()

    app = web.Application(middlewares=[_headers])
    app[SERVER] = server
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

        async def file(request: web.Request) -> web.StreamResponse:
            return web.FileResponse(_inside(page, request.match_info["path"]))

        app.router.add_get("/", index)
        app.router.add_get("/{path:.+}", file)
    return app


def _inside(folder: Path, name: str) -> Path:
    """The file `name` of a folder; HTTP 404 for what is not there, is outside, or is no name that a file could have."""
    try:
        path = (folder / name).resolve()
        if path.is_relative_to(folder.resolve()) and path.is_file():
            return path
    except (OSError, ValueError, RuntimeError):  # too long; a byte 0; a circle of links, before Python 3.13
        pass
    raise web.HTTPNotFound


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
    server = request.app[SERVER]
    _admit(request, server.settings)
    wish = _wish(request, server.settings)
    if wish.prompt is not None and not server.takes_prompts:
        raise web.HTTPBadRequest(text="this server has a prompt of its own, or a model that takes none\n")
    if server.failure is not None:
        raise web.HTTPServiceUnavailable(text="the model has stopped\n")
    if server.lobby.free == 0 and server.lobby.queue >= server.settings.max_queue:
        raise web.HTTPServiceUnavailable(text="everybody is talking and too many wait; try again later\n")
    ping = server.settings.ping_seconds
    socket = web.WebSocketResponse(heartbeat=ping, max_msg_size=MAX_MESSAGE_BYTES, timeout=0.5, compress=False)
    try:
        await socket.prepare(request)
    except ValueError as error:  # which aiohttp lets through: the key is no base64
        raise web.HTTPBadRequest(text="the header Sec-WebSocket-Key is no key\n") from error
    await Visit(server, socket, request.transport, wish).run()
    return socket


async def _hello(request: web.Request) -> web.StreamResponse:
    """What a page should know before it asks for the microphone."""
    server = request.app[SERVER]
    _admit(request, server.settings)
    facts = {
        "sample_rate": server.sample_rate,
        "frame_size": server.frame_size,
        "places": server.places,
        "free": server.lobby.free,
        "queue": server.lobby.queue,
        "keeps_sessions": server.sessions is not None,
        "takes_prompts": server.takes_prompts,
        "greets": server.settings.greeting,
        "speaks": server.speaks,
        "state_id": server.state_id,
        "dtype": server.dtype,
    }
    return web.json_response(facts)


async def _download(request: web.Request) -> web.StreamResponse:
    """A kept conversation, for whoever holds its id."""
    server = request.app[SERVER]
    _admit(request, server.settings)
    try:
        if server.sessions is None:
            raise InferenceError("this server keeps no conversations")
        path = server.sessions.existing(request.match_info["name"])
    except InferenceError as error:
        raise web.HTTPNotFound(text=f"{server.in_words(error)}\n") from error
    return web.FileResponse(path, headers={"Content-Disposition": f'attachment; filename="{path.name}"'})


async def _health(request: web.Request) -> web.StreamResponse:
    server = request.app[SERVER]
    if server.failure is not None or not server.engine.alive:
        return web.Response(status=503, text="the model has stopped\n")
    if server.engine.stuck_seconds > STUCK_SECONDS:
        return web.Response(status=503, text="the model does not answer\n")
    return web.Response(text="ok\n")


async def _metrics(request: web.Request) -> web.StreamResponse:
    server = request.app[SERVER]
    _admit(request, server.settings)
    return web.Response(body=server.metrics.text(), headers={"Content-Type": PROMETHEUS})


def _admit(request: web.Request, settings: Settings) -> None:
    """Turns away pages of other sites, and whoever does not know the token."""
    host = _address("Host", f"//{request.host}").hostname or ""
    origin = request.headers.get("Origin")
    if settings.hosts is not None and host not in settings.hosts:
        raise web.HTTPForbidden(text=f"this server is not known as {host[:80]}\n")
    if origin is not None and _address("Origin", origin).netloc != request.host and origin not in settings.origins:
        raise web.HTTPForbidden(text="a page of another site may not talk to this server\n")
    if settings.token is not None:
        given = request.query.get("token") or request.headers.get("Authorization", "").removeprefix("Bearer ")
        # Bytes that are no text stay what they are, as in the arguments of a command.
        known, told = (token.encode(errors="surrogateescape") for token in (settings.token, given))
        if not hmac.compare_digest(known, told):
            raise web.HTTPUnauthorized(text="the token is missing or wrong\n")


def _address(header: str, text: str) -> SplitResult:
    """The address in a header; HTTP 400 if there is none."""
    try:
        parts = urlsplit(text)
        if text.isascii():
            return parts
    except ValueError:
        pass
    raise web.HTTPBadRequest(text=f"the header {header} is no address\n")


def _wish(request: web.Request, settings: Settings) -> Wish:
    """What the address asks for; other parameters are those of moshi's own page, which mean nothing here."""
    query = request.query
    form = query.get("format", "opus")
    if form not in FORMATS:
        raise web.HTTPBadRequest(text=f"format is {' or '.join(FORMATS)}\n")
    prompt = query.get("prompt", "").strip() or None
    if prompt is not None and len(prompt) > MAX_PROMPT_LETTERS:
        raise web.HTTPBadRequest(text=f"a prompt has at most {MAX_PROMPT_LETTERS} letters\n")
    greeting = query.get("greeting", str(int(settings.greeting)))
    if greeting not in ("0", "1"):
        raise web.HTTPBadRequest(text="greeting is 0 or 1\n")
    return Wish(query.get("events") == "1", form, query.get("resume"), prompt, greeting == "1")
