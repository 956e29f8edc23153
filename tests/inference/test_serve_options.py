"""What the options of `serve` change, through the command as it is typed."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import socket
import ssl
import subprocess
import threading
from contextlib import suppress

import aiohttp
import numpy as np
import pytest

from ttt_moshi.cli.main import main

POLLS = 600
"""of 0.1 s, until the server answers"""


@pytest.fixture
def served(trained, tmp_path, monkeypatch):
    """Runs `serve` with options in this process while a coroutine asks it: `served(ask, *options)`."""
    monkeypatch.chdir(tmp_path)

    def run(ask, *options: str, scheme: str = "http") -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        ended, problems = threading.Event(), []

        async def whole() -> None:
            # The certificate is its own, and made for these tests.
            async with aiohttp.ClientSession(
                f"{scheme}://127.0.0.1:{port}", connector=aiohttp.TCPConnector(ssl=False)
            ) as http:
                for _ in range(POLLS):
                    with suppress(aiohttp.ClientError):
                        await status(http, "/healthz")
                        break
                    if ended.is_set():
                        return
                    await asyncio.sleep(0.1)
                try:
                    await ask(http)
                finally:
                    os.kill(os.getpid(), signal.SIGTERM)  # it answered, so it handles the signal

        def visit() -> None:
            try:
                asyncio.run(whole())
            except BaseException as error:  # noqa: BLE001  of the other thread
                problems.append(error)

        visitor = threading.Thread(target=visit)
        visitor.start()
        command = ["serve", "--checkpoint_dir", str(trained), "--no_ttt_verify", "--port", str(port)]
        code = main([*command, *([] if "--host" in options else ["--host", "127.0.0.1"]), *options])
        ended.set()
        visitor.join()
        if problems:
            raise problems[0]
        assert code == 0

    return run


async def status(http: aiohttp.ClientSession, path: str, **headers: str) -> int:
    async with http.get(path, headers=headers) as response:
        return response.status


async def text(http: aiohttp.ClientSession, path: str) -> str:
    async with http.get(path) as response:
        return await response.text()


async def talk(http: aiohttp.ClientSession, query: str = "", frames: int = 0) -> tuple[int, int]:
    """Says frames of noise at once and nothing after them: (how many were dropped, the code that closes it)."""
    dropped = 0
    noise = np.random.default_rng(0).integers(-3000, 3000, (frames, 1920), dtype="<i2")
    async with http.ws_connect(f"/api/chat?events=1&format=pcm{query}") as connection:
        while (await connection.receive()).data[:1] != b"\x00":
            pass
        for frame in noise:
            await connection.send_bytes(b"\x01" + frame.tobytes())
        async for message in connection:
            if message.data[:1] == b"\x04" and (event := json.loads(message.data[1:]))["type"] == "lag":
                dropped = event["dropped"]
        return dropped, connection.close_code or 0


def test_without_options_it_is_for_this_machine_alone(served, tmp_path):
    async def ask(http: aiohttp.ClientSession) -> None:
        assert "Talk to Moshi" in await text(http, "/")
        hello = json.loads(await text(http, "/api/hello"))
        assert (hello["places"], hello["keeps_sessions"]) == (1, True)
        assert await status(http, "/api/hello", Host="other.example") == 403
        assert await status(http, "/api/hello", Origin="https://friend.example") == 403
        async with http.ws_connect("/api/chat?format=pcm"):
            async with http.ws_connect("/api/chat?format=pcm"):
                pass  # waits for a place
            assert await status(http, "/api/hello") == 200

    served(ask)


@pytest.mark.skipif(shutil.which("openssl") is None, reason="makes a certificate with openssl")
def test_it_lets_others_in_over_https_with_another_page(served, tmp_path):
    (tmp_path / "page").mkdir()
    (tmp_path / "page" / "index.html").write_text("<p>my own</p>")
    for folder in ("certificate", "other"):
        (tmp_path / folder).mkdir()
        command = "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=me -addext subjectAltName=IP:127.0.0.1"
        files = ["-out", str(tmp_path / folder / "cert.pem"), "-keyout", str(tmp_path / folder / "key.pem")]
        subprocess.run([*command.split(), *files], check=True, capture_output=True)

    async def ask(http: aiohttp.ClientSession) -> None:
        assert await text(http, "/") == "<p>my own</p>"
        hello = json.loads(await text(http, "/api/hello"))
        assert (hello["places"], hello["keeps_sessions"]) == (2, False)
        assert await status(http, "/api/hello", Host="other.example") == 200
        assert await status(http, "/api/hello", Origin="https://friend.example") == 200
        assert await status(http, "/api/hello", Origin="https://stranger.example") == 403
        async with http.ws_connect("/api/chat?format=pcm"), http.ws_connect("/api/chat?format=pcm"):
            assert await status(http, "/api/chat") == 503  # nobody waits
        trusted = ssl.create_default_context(cafile=str(tmp_path / "certificate" / "cert.pem"))
        async with http.get("/healthz", ssl=trusted) as response:
            assert response.status == 200
        stranger = ssl.create_default_context(cafile=str(tmp_path / "other" / "cert.pem"))
        with pytest.raises(aiohttp.ClientConnectorCertificateError):
            await http.get("/healthz", ssl=stranger)

    options = ("--host", "0.0.0.0", "--allow_anyone", "--ssl", "certificate", "--static", "page", "--slots", "2")
    options = (*options, "--queue", "0", "--sessions", "none", "--origin", "https://Friend.EXAMPLE:443")
    served(ask, *options, scheme="https")
    assert not (tmp_path / "none").exists() and not (tmp_path / "sessions").exists()


def test_it_lets_in_who_knows_the_token_and_is_in_time(served, tmp_path):
    async def ask(http: aiohttp.ClientSession) -> None:
        assert await status(http, "/api/hello") == 401 and await status(http, "/api/hello?token=sesame") == 200
        assert await status(http, "/?token=sesame") == 404  # no page
        dropped, code = await talk(http, "&token=sesame", frames=20)
        assert code == 1008 and 0 < dropped < 20

    options = ("--host", "0.0.0.0", "--token", "sesame", "--static", "none", "--max_lag", "0.16")
    served(ask, *options, "--idle_seconds", "1.5", "--sessions", "kept")
    (session,) = (tmp_path / "kept").iterdir()
    assert session.suffix == ".session"


def test_it_hears_all_where_no_lag_is_too_much(served):
    async def ask(http: aiohttp.ClientSession) -> None:
        assert await talk(http, frames=20) == (0, 1008)
        assert await words_before_saving(http) == (0, False)

    served(ask, "--max_lag", "inf", "--idle_seconds", "1.5", "--no_greeting", "--pad_bias", "-1000")


async def words_before_saving(http: aiohttp.ClientSession) -> tuple[int, bool]:
    """What comes to somebody who says nothing aloud before the conversation is saved: how many pieces of text, and
    whether it goes on afterwards.
    """
    silence = b"\x01" + bytes(2 * 1920)
    async with http.ws_connect("/api/chat?events=1&format=pcm") as connection:
        while (await connection.receive()).data[:1] != b"\x00":
            pass
        for _ in range(20):
            await connection.send_bytes(silence)
        words, saved = 0, False
        async for message in connection:
            if saved and message.data[:1] == b"\x01":
                return words, True
            words += message.data[:1] == b"\x02"
            if message.data[:1] == b"\x04" and json.loads(message.data[1:])["type"] == "saved":
                saved = True
                with suppress(ConnectionError):
                    await connection.send_bytes(silence)
        assert saved
        return words, False


def test_it_greets_and_saves_in_between(served):
    """Where the options of the test before held its words back, and nothing was saved before the end."""

    async def ask(http: aiohttp.ClientSession) -> None:
        words, goes_on = await words_before_saving(http)
        assert words > 0 and goes_on

    served(ask, "--max_lag", "inf", "--save_seconds", "0.2", "--pad_bias", "-1000", "--temp_text", "9")


@pytest.mark.slow
def test_a_sink_changes_what_it_says_once_the_window_is_full(served):
    heard: dict[str, np.ndarray] = {}

    def listen(name: str):
        async def ask(http: aiohttp.ClientSession) -> None:
            noise = np.random.default_rng(0).integers(-3000, 3000, (48, 1920), dtype="<i2")
            async with http.ws_connect("/api/chat?events=1&format=pcm") as connection:
                while (await connection.receive()).data[:1] != b"\x00":
                    pass
                for frame in noise:
                    await connection.send_bytes(b"\x01" + frame.tobytes())
                said = b""
                async for message in connection:
                    said += message.data[1:] if message.data[:1] == b"\x01" else b""
                heard[name] = np.frombuffer(said, "<i2")

        return ask

    common = ("--seed", "5", "--temp", "2", "--temp_text", "2", "--max_lag", "inf", "--idle_seconds", "1")
    for name, options in (("plain", ()), ("sink", ("--sink", "4"))):
        served(listen(name), *common, *options, "--sessions", "none")
    plain, sink = heard["plain"], heard["sink"]
    inside = 28 * 1920  # the window has not filled up yet
    assert len(plain) == len(sink) > 40 * 1920
    assert (plain[:inside] == sink[:inside]).all() and (plain != sink).any()
