"""Whoever opens connections and asks for nothing stops the server for nobody."""

from __future__ import annotations

import asyncio
import resource
import socket
import ssl
import subprocess
from contextlib import asynccontextmanager, suppress

import aiohttp
from aiohttp import web

from ttt_moshi.inference.door import Door

WAIT = 120.0
HALF = b"GET / HT"
WHOLE = b"GET / HTTP/1.1\r\nHost: me\r\n\r\n"
SLOW = b"GET /slow HTTP/1.1\r\nHost: me\r\n\r\n"
LARGE = b"GET /large HTTP/1.1\r\nHost: me\r\n\r\n"


class House:
    """An application behind a door: `/` answers at once, `/slow` after `answer` is set, `/large` with 20 MB."""

    def __init__(self, port: int) -> None:
        self._writers: list[asyncio.StreamWriter] = []
        self.port, self.asked, self.answer = port, asyncio.Event(), asyncio.Event()

    async def quick(self, request: web.Request) -> web.Response:
        return web.Response(text="quick")

    async def slow(self, request: web.Request) -> web.Response:
        self.asked.set()
        await self.answer.wait()
        return web.Response(text="slow")

    async def large(self, request: web.Request) -> web.Response:
        return web.Response(body=bytes(20_000_000))

    async def come(self, says: bytes) -> asyncio.StreamReader:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        writer.write(says)
        self._writers.append(writer)  # one that is forgotten is closed
        return reader


@asynccontextmanager
async def house(limit: int, patience: float, context: ssl.SSLContext | None = None):
    bound = socket.socket()
    bound.bind(("127.0.0.1", 0))
    inside = House(bound.getsockname()[1])
    app = web.Application()
    for name in ("quick", "slow", "large"):
        app.router.add_get("/" if name == "quick" else f"/{name}", getattr(inside, name))
    door = Door(app, limit, patience)
    runner = web.AppRunner(app, shutdown_timeout=0.1, **door.runner_options)
    await runner.setup()
    door.listen(bound, runner.server, context)
    try:
        yield inside
    finally:
        await door.close()
        await runner.cleanup()
        bound.close()


def play(scene) -> None:
    asyncio.run(asyncio.wait_for(scene(), WAIT))


async def status(reader: asyncio.StreamReader) -> bytes:
    return (await reader.readline())[9:12]


def test_who_does_not_ask_is_let_go_and_who_is_being_answered_is_not():
    async def scene() -> None:
        async with house(limit=100, patience=0.3) as inside:
            slow = await inside.come(SLOW)
            large = await inside.come(LARGE)
            for says in (b"", HALF, WHOLE + HALF):
                reader = await inside.come(says)
                said = await reader.read()
                assert said.count(b"quick") == says.count(WHOLE)
            inside.answer.set()
            assert await status(slow) == b"200"
            assert len(await large.read()) > 20_000_000
            assert b"slow" in await slow.read()

    play(scene)


def test_where_too_many_come_those_who_ask_for_nothing_make_room():
    async def scene() -> None:
        async with house(limit=2, patience=600.0) as inside:
            first = await inside.come(WHOLE)
            assert await status(first) == b"200"
            slow = await inside.come(SLOW)
            await inside.asked.wait()
            inside.asked.clear()
            half = await inside.come(HALF)
            assert b"quick" in await first.read()
            other = await inside.come(SLOW)
            assert await half.read() == b""
            await inside.asked.wait()
            late = await inside.come(WHOLE)  # everybody is being answered
            with suppress(ConnectionError):
                assert await late.read() == b""
            inside.answer.set()
            assert await status(slow) == await status(other) == b"200"
            again = await inside.come(WHOLE)
            assert await status(again) == b"200"

    play(scene)


def test_who_begins_no_tls_is_let_go(tmp_path):
    command = "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=me -addext subjectAltName=IP:127.0.0.1"
    files = ["-out", str(tmp_path / "cert.pem"), "-keyout", str(tmp_path / "key.pem")]
    subprocess.run([*command.split(), *files], check=True, capture_output=True)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(tmp_path / "cert.pem", tmp_path / "key.pem")
    trusting = ssl.create_default_context(cafile=str(tmp_path / "cert.pem"))

    async def scene() -> None:
        async with house(limit=2, patience=0.3, context=context) as inside:
            for says in (b"", b"\x16\x03\x01", WHOLE):
                reader = await inside.come(says)
                assert b"quick" not in await reader.read()
        async with house(limit=2, patience=600.0, context=context) as inside, aiohttp.ClientSession() as http:
            silent = [await inside.come(b"") for _ in range(3)]
            async with http.get(f"https://127.0.0.1:{inside.port}/", ssl=trusting) as response:
                assert await response.text() == "quick"
            for reader in silent[:2]:
                assert await reader.read() == b""

    play(scene)


def test_half_open_connections_stop_no_server_and_fill_no_disk(serve):
    """Of a server that may open fewer files than there are connections, while somebody talks with it."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (200, before[1]))
    try:
        server = serve("--idle_seconds", "600")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
    frame = b"\x01" + bytes(2 * 1920)

    async def scene() -> None:
        async def healthy() -> None:
            async with http.get(f"http://127.0.0.1:{server.port}/healthz", timeout=aiohttp.ClientTimeout(60)) as found:
                assert found.status == 200

        async with aiohttp.ClientSession() as http, http.ws_connect(server.url) as talking:
            heard: asyncio.Queue[bytes] = asyncio.Queue()

            async def listen() -> None:  # and answer pings
                async for message in talking:
                    heard.put_nowait(message.data[:1])

            listening = asyncio.create_task(listen())
            while await heard.get() != b"\x00":
                pass
            half = []
            for number in range(260):
                half.append(await asyncio.open_connection("127.0.0.1", server.port))
                half[-1][1].write(HALF)
                if number % 50 == 0:
                    await healthy()
            await healthy()
            for reader, _ in half:
                with suppress(ConnectionError):
                    assert await reader.read() == b""
            for says in (b"\x16\x03\x01\r\n\r\n", b"GET http://[/ HTTP/1.1\r\n\r\n") * 30:
                reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
                writer.write(says)
                assert await status(reader) == b"400"
                writer.close()
            # Its files run out all the same, by what no connection is counted for.
            used = resource.prlimit(server.process.pid, resource.RLIMIT_NOFILE, (12, before[1]))
            more = [await asyncio.open_connection("127.0.0.1", server.port) for _ in range(5)]
            await talking.send_bytes(frame)
            while await heard.get() != b"\x01":
                pass
            resource.prlimit(server.process.pid, resource.RLIMIT_NOFILE, used)
            await healthy()
            for _, writer in more:
                writer.close()
            assert not listening.done()

    play(scene)
    code, _ = server.stop(15)
    assert code == 0 and len(server.lines) < 12, server.lines
    assert not any("Traceback" in line for line in server.lines)
    assert any("no connection can be accepted: Too many open files" in line for line in server.lines)
