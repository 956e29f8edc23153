"""The server speaks the protocol of moshi's clients, and what it says is what the conversation says."""

from __future__ import annotations

import asyncio
import json
import time
from contextlib import asynccontextmanager, suppress
from dataclasses import replace

import aiohttp
import numpy as np
import pytest
import sphn
import torch
from aiohttp.test_utils import TestServer

from ttt_moshi.inference import Conversation, InferenceError, Slots
from ttt_moshi.inference.app import make_app
from ttt_moshi.inference.prompt import begin_with, make_prompt
from ttt_moshi.inference.server import Server
from ttt_moshi.inference.sessions import Sessions
from ttt_moshi.inference.settings import Settings

PATIENT = Settings(max_lag=None, idle_seconds=600.0, ping_seconds=600.0)
"""the tests' machine may be slower than real time: nothing is dropped"""
WAIT = 120.0
"""seconds for a whole scene: whoever waits for what never comes fails"""


def noise(frames: int, seed: int = 0) -> np.ndarray:
    return (0.1 * np.random.default_rng(seed).standard_normal((frames, 1920))).astype(np.float32)


def opus(sound: np.ndarray) -> list[bytes]:
    """Opus messages of frames."""
    writer = sphn.OpusStreamWriter(24_000)
    return [bytes(message) for frame in sound if (message := writer.append_pcm(frame))]


def pcm(sound: np.ndarray) -> list[bytes]:
    return [(frame * 2**15).round().astype("<i2").tobytes() for frame in sound]


def expected(speaker, messages: list[bytes]) -> tuple[bytes, str]:
    """Opus and text that a conversation answers with, without a server."""
    reader, writer = sphn.OpusStreamReader(24_000), sphn.OpusStreamWriter(24_000)
    heard = np.concatenate([reader.append_bytes(message) for message in messages])
    frames = torch.from_numpy(heard[: len(heard) // 1920 * 1920]).split(1920)
    with Conversation(speaker) as conversation:
        replies = [reply for frame in frames if (reply := conversation.hear(frame)) is not None]
    assert len(replies) > 20 and sum(bool(reply.piece) for reply in replies) > 5
    sound = b"".join(bytes(writer.append_pcm(reply.samples.numpy())) for reply in replies)
    return sound, "".join(reply.piece for reply in replies).replace("▁", " ")


def ogg_payload(data: bytes) -> bytes:
    """The stream without its page headers, whose serial number is drawn at random."""
    payload, position = b"", 0
    while position < len(data):
        assert data[position : position + 4] == b"OggS"
        segments = data[position + 26]
        sizes = data[position + 27 : position + 27 + segments]
        begin = position + 27 + segments
        position = begin + sum(sizes)
        payload += data[begin:position]
    return payload


class Client:
    """A web socket that sorts what it receives."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self.socket = socket
        self.sound: list[bytes] = []
        self.text = ""
        self.events: list[dict] = []
        self.ready = False
        self.closed_with: int | None = None

    async def receive(self) -> bool:
        """One more message; False when the connection has been closed."""
        message = await self.socket.receive()
        if message.type is aiohttp.WSMsgType.CLOSE:
            # `close_code` becomes 1006 where the server has hung up before our answer to its goodbye could be sent.
            self.closed_with = message.data
        if message.type is not aiohttp.WSMsgType.BINARY:
            return False
        kind, content = message.data[0], message.data[1:]
        if kind == 0:
            self.ready = True
        elif kind == 1:
            self.sound.append(content)
        elif kind == 2:
            self.text += content.decode()
        else:
            assert kind == 4
            self.events.append(json.loads(content))
        return True

    async def until(self, done) -> None:
        while not done():
            assert await self.receive(), f"closed: {self.socket.close_code} {self.events}"

    async def closing(self) -> int:
        """The code with which the server closes."""
        while await self.receive():
            pass
        return self.socket.close_code if self.closed_with is None else self.closed_with

    def last(self, kind: str) -> dict | None:
        return next((event for event in reversed(self.events) if event["type"] == kind), None)

    async def say(self, messages: list[bytes]) -> None:
        for message in messages:
            await self.socket.send_bytes(b"\x01" + message)


class Scene:
    """A server in this process, and clients."""

    def __init__(self, site: TestServer, server: Server, session: aiohttp.ClientSession) -> None:
        self.site, self.server, self.session = site, server, session

    @asynccontextmanager
    async def client(self, query: str = "", greet: bool = True, **options):
        url = f"{self.site.make_url('/api/chat')}{query}"
        async with self.session.ws_connect(url, **options) as socket:
            client = Client(socket)
            if greet:
                await client.until(lambda: client.ready)
            yield client

    async def get(self, path: str, **headers) -> tuple[int, str]:
        async with self.session.get(self.site.make_url(path), headers=headers) as response:
            return response.status, await response.text()


@pytest.fixture(scope="module")
def one_speaker(make_speaker):
    return make_speaker()


@pytest.fixture
def play(one_speaker):
    """Runs a scene against a server: `play(scene, slots=1, ...)`."""

    def run(scene, slots=1, settings=PATIENT, seed=0, sessions=None, page=None, start=None):
        async def whole() -> None:
            server = Server(Slots(one_speaker, slots, watched=True), settings, sessions, seed, start)
            async with TestServer(make_app(server, page)) as site, aiohttp.ClientSession() as session:
                await scene(Scene(site, server, session))

        asyncio.run(asyncio.wait_for(whole(), WAIT))

    return run


def solo(speaker, messages: list[bytes], seed: int = 0) -> list[np.ndarray]:
    """What a conversation answers to frames of PCM, int16 each, without a server."""
    heard = [torch.from_numpy(np.frombuffer(m, "<i2").astype(np.float32) / 2**15) for m in messages]
    with Conversation(speaker, seed=seed) as conversation:
        replies = [reply for frame in heard if (reply := conversation.hear(frame)) is not None]
    return [np.rint(r.samples.clip(-1, 1).numpy() * (2**15 - 1)).astype("<i2") for r in replies]


def assert_said(messages: list[bytes], wanted: list[np.ndarray]) -> None:
    """To the last bit but one: a batch rounds otherwise than one alone."""
    for message, expected in zip(messages, wanted, strict=True):
        assert abs(np.frombuffer(message, "<i2").astype(int) - expected).max() <= 1


def test_visitors_hear_what_the_conversation_says(one_speaker, play):
    """In Opus, bit for bit; the second one finds no memory of the first."""
    voices = [opus(noise(32, seed)) for seed in range(2)]
    answers = [expected(one_speaker, voice) for voice in voices]

    async def scene(scene: Scene) -> None:
        async def visit(voice: list[bytes], sound: bytes, text: str) -> None:
            async with scene.client() as client:
                await client.say(voice)
                await client.until(lambda: len(b"".join(client.sound)) >= len(sound))
                assert ogg_payload(b"".join(client.sound)) == ogg_payload(sound)
                assert text.startswith(client.text) and len(client.text) > 10  # the last piece may still be on its way

        for voice, (sound, text) in zip(voices, answers, strict=True):
            await visit(voice, sound, text)

    play(scene)


def test_visitors_talk_side_by_side(one_speaker, play):
    """Each as if alone, and in PCM."""
    voices = [pcm(noise(24, seed)) for seed in range(3)]
    answers = [solo(one_speaker, voice) for voice in voices]

    async def scene(scene: Scene) -> None:
        async def visit(person: int) -> None:
            async with scene.client("?format=pcm") as client:
                await client.say(voices[person])
                await client.until(lambda: len(client.sound) == len(answers[person]))
                assert_said(client.sound, answers[person])

        await asyncio.gather(visit(0), visit(1), visit(2))

    play(scene, slots=2)


def test_what_the_memory_learns_is_told(one_speaker, play):
    """What one hears again and again becomes easier than it is for a memory that has heard nothing."""
    voice = pcm(noise(4)) * 6

    async def scene(scene: Scene) -> None:
        async with scene.client("?format=pcm&events=1") as client:
            await client.say(voice)
            await client.until(lambda: (told := client.last("memory")) is not None and told["loss"]["0"] is not None)
            told = client.last("memory")
            assert 0 < told["frames"] <= 24 and set(told["written"]) == {"0", "1"}
            assert all(0 < told["loss"][layer] < told["untaught"][layer] for layer in ("0", "1"))
            assert all(share > 0 for share in told["written"].values())

    play(scene)


@pytest.mark.parametrize("usual", [True, False])
def test_moshi_may_wait_for_the_first_sound(one_speaker, play, usual):
    """As the server or the visitor has it, with a prompt too; what is said after the sound is not held back."""
    silence, voice = pcm(np.zeros((12, 1920), np.float32)), pcm(noise(24))

    async def scene(scene: Scene) -> None:
        async def told(query: str) -> tuple[str, str]:
            async with scene.client(f"?format=pcm{query}") as client:
                await client.say(silence)
                await client.until(lambda: len(client.sound) >= 10)
                first = client.text
                await client.say(voice)
                await client.until(lambda: len(client.sound) >= 30)
                return first, client.text[len(first) :]

        for query, greets in (
            [("", False)]
            if not usual
            else (
                ("", True),
                ("&greeting=0", False),
                ("&greeting=1", True),
                ("&greeting=0&prompt=Ann", False),
            )
        ):
            first, later = await told(query)
            assert bool(first) == greets, query
            assert len(later) > 5, query
        assert (await scene.get("/api/chat?greeting=2"))[0] == 400

    play(scene, settings=replace(PATIENT, greeting=usual))


def test_who_finds_no_place_waits_in_order(play):
    async def scene(scene: Scene) -> None:
        async with scene.client("?events=1") as first:
            assert first.last("queue") is None
            async with (
                scene.client("?events=1", greet=False) as second,
                scene.client("?events=1", greet=False) as third,
            ):
                await second.until(lambda: second.events)
                await third.until(lambda: third.events)
                assert second.events == [{"type": "queue", "place": 1}]
                assert third.events == [{"type": "queue", "place": 2}]
                status, text = await scene.get("/api/chat")
                assert status == 503 and "try again later" in text
                await second.say(opus(noise(2)))  # nobody hears that
                await first.socket.close()
                await second.until(lambda: second.ready)
                await third.until(lambda: third.last("queue") == {"type": "queue", "place": 1})
                assert second.last("welcome")["frames"] == 0
                await second.socket.close()
                await third.until(lambda: third.ready)
        metrics = (await scene.get("/metrics"))[1]
        assert 'closed_connections_total{code="1000"}' in metrics and 'code="1011"' not in metrics
        assert scene.server.lobby.queue == 0

    play(scene, settings=replace(PATIENT, max_queue=2))


def test_who_gives_up_waiting_leaves_the_queue(play):
    async def scene(scene: Scene) -> None:
        async with scene.client() as first:
            async with scene.client("?events=1", greet=False) as second:
                await second.until(lambda: second.events)
            async with scene.client("?events=1", greet=False) as third:
                await third.until(lambda: third.last("queue") == {"type": "queue", "place": 1})
                await first.socket.close()
                await third.until(lambda: third.ready)

    play(scene)


BAD_MESSAGES = [
    ("not binary", "", 1003),
    (b"", "", 1003),
    (b"\x63odd", "", 1003),
    (b"\x01" + b"OggS\x65" + bytes(range(200)), "", 1007),
    (b"\x01x", "", 1007),
    (b"\x01Ogx", "", 1007),
    (b"\x01" + bytes(9000), "", 1007),
    (b"\x01" + bytes(70_000), "", 1009),
    (b"\x01" + bytes(3), "?format=pcm", 1007),
    (b"\x04{", "?events=1", 1007),
    (b"\x04[]", "?events=1", 1007),
    (b"\x04" + b"\xff", "?events=1", 1007),
    (b'\x04{"type": "dance"}', "?events=1", 1007),
    (b"\x04" + b"[" * 30_000, "?events=1", 1007),
]


def test_a_thousand_malformed_messages_end_their_own_connection_only(one_speaker, play):
    """Each with the right code, before a place is found and after, while somebody else talks undisturbed."""
    voice = pcm(noise(24))
    answer = solo(one_speaker, voice)
    rng = np.random.default_rng(0)
    codes: dict[int, int] = {}

    async def scene(scene: Scene) -> None:
        async def bad(message: str | bytes, query: str, greet: bool = False) -> int:
            async with scene.client(query, greet) as client:
                with suppress(ConnectionResetError):  # the server may close while a long one is still being sent
                    if isinstance(message, str):
                        await client.socket.send_str(message)
                    else:
                        await client.socket.send_bytes(message)
                code = await client.closing()
                codes[code] = codes.get(code, 0) + 1
                return code

        async with scene.client("?format=pcm") as client:
            for message, query, code in BAD_MESSAGES:
                assert await bad(message, query, greet=True) == code, message
            async with scene.client():  # has the other place
                for message, query, code in BAD_MESSAGES:
                    assert await bad(message, query) == code, message
            count = sum(codes.values())
            while count < 1000:
                batch = [
                    bytes([rng.choice([1, 1, 1, 9, 77])]) + b"x" + rng.bytes(int(rng.integers(1, 300)))
                    for _ in range(25)
                ]
                await asyncio.gather(*(bad(message, "") for message in batch))
                count += len(batch)
            await client.say(voice)
            await client.until(lambda: len(client.sound) == len(answer))
            assert_said(client.sound, answer)
        assert set(codes) == {1003, 1007, 1009} and sum(codes.values()) >= 1000
        assert (await scene.get("/healthz"))[0] == 200

    play(scene, slots=2, settings=replace(PATIENT, max_queue=100))


@pytest.mark.parametrize(("message", "allowed", "too_many"), [(b"\x06", 400, 2000), (b"\x06" + bytes(60_000), 12, 40)])
def test_floods_are_cut(play, message, allowed, too_many):
    """Of messages and of bytes; what is below the limits is not."""

    async def scene(scene: Scene) -> None:
        async with scene.client("?events=1&format=pcm") as client:
            for _ in range(allowed):
                await client.socket.send_bytes(message)
            await client.say(pcm(noise(3)))
            await client.until(lambda: len(client.sound) == 3)
        async with scene.client("?events=1") as client:
            with suppress(ConnectionResetError):
                for _ in range(too_many):
                    await client.socket.send_bytes(message)
            assert await client.closing() == 1008

    play(scene)


def test_late_audio_is_dropped_told_and_counted(play):
    async def scene(scene: Scene) -> None:
        async with scene.client("?events=1&format=pcm") as client:
            await client.say(pcm(noise(40)))
            await client.until(lambda: client.last("lag") is not None)
            dropped = client.last("lag")["dropped"]
            assert 0 < dropped <= 40 - 3
            metrics = (await scene.get("/metrics"))[1]
            assert f"ttt_moshi_dropped_frames_total {float(dropped)}" in metrics

    play(scene, settings=Settings(max_lag=0.24))


def test_who_does_not_read_stalls_nobody(one_speaker, play):
    """A client that only sends is let go; another one is served meanwhile."""
    voice = pcm(noise(24))
    answer = solo(one_speaker, voice)

    async def scene(scene: Scene) -> None:
        host, port = scene.site.host, scene.site.port
        _reader, writer = await asyncio.open_connection(host, port, limit=1)
        writer.write(
            f"GET /api/chat?format=pcm HTTP/1.1\r\nHost: {host}:{port}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n".encode()
        )
        await asyncio.sleep(0.2)
        (visit,) = scene.server._visits
        transport = visit._transport
        transport.set_write_buffer_limits(high=0)
        transport.pause_reading()

        for _ in range(200):  # as if the network took nothing: the outbox fills
            visit._send(b"\x02x")
        await visit.over.wait()
        async with scene.client("?format=pcm") as client:
            await client.say(voice)
            await client.until(lambda: len(client.sound) == len(answer))
            assert_said(client.sound, answer)
        assert 'closed_connections_total{code="1008"} 1.0' in (await scene.get("/metrics"))[1]
        writer.close()

    play(scene, slots=2)


def test_a_dead_line_frees_its_place(play):
    """Nobody closes it, and nobody answers a ping any more."""

    async def scene(scene: Scene) -> None:
        async with scene.client(), scene.client(greet=False) as waiting:
            await waiting.until(lambda: waiting.ready)
        assert 'closed_connections_total{code="1006"} 1.0' in (await scene.get("/metrics"))[1]

    play(scene, settings=replace(PATIENT, ping_seconds=1.0))


def test_who_says_nothing_is_let_go(play):
    async def scene(scene: Scene) -> None:
        async with scene.client() as client:
            assert await client.closing() == 1008
        async with scene.client() as client:

            async def babble() -> None:
                while True:  # messages of audio without any
                    await client.socket.send_bytes(b"\x01")
                    await asyncio.sleep(0.1)

            babbling = asyncio.create_task(babble())
            assert await client.closing() == 1008
            babbling.cancel()
        async with scene.client():
            pass

    play(scene, settings=Settings(max_lag=None, idle_seconds=0.5))


def test_pages_of_other_sites_and_strangers_stay_outside(play):
    settings = Settings(
        max_lag=None,
        token="sesame",
        hosts=frozenset({"127.0.0.1"}),
        origins=frozenset({"https://friend.example"}),
    )

    async def scene(scene: Scene) -> None:
        own = f"http://{scene.site.host}:{scene.site.port}"

        async def status(path: str = "/api/hello?token=sesame", **headers) -> int:
            return (await scene.get(path, **headers))[0]

        assert await status() == 200
        assert await status(Origin=own) == 200
        assert await status(Origin="https://friend.example") == 200
        assert await status("/api/hello", Authorization="Bearer sesame") == 200
        for origin in ("https://evil.example", "null", own.replace("127.0.0.1", "localhost"), f"{own}.evil.example"):
            assert await status(Origin=origin) == 403
            with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
                async with scene.client("?token=sesame", headers={"Origin": origin}):
                    pass
            assert refused.value.status == 403
        assert await status(Host="evil.example:80", Origin="http://evil.example:80") == 403
        for path in ("/api/hello", "/api/hello?token=", "/api/hello?token=sesame2", "/metrics", "/api/sessions/x"):
            assert await status(path) == 401
        with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
            async with scene.client():
                pass
        assert refused.value.status == 401
        async with scene.client("?token=sesame"):
            pass
        assert await status("/api/chat?token=sesame&format=mp3") == 400

    play(scene, settings=settings)


NO_REQUESTS = [
    (b"GET /api/hello HTTP/1.1\r\nHost: [\r\n", 400),
    (b"GET /api/hello HTTP/1.1\r\nHost: \xff\r\n", 400),
    (b"GET /api/hello HTTP/1.1\r\nHost: me\r\nOrigin: http://[\r\n", 400),
    (b"GET /api/hello HTTP/1.1\r\nHost: me\r\nOrigin: http://\xff\r\n", 400),
    (b"GET /api/hello HTTP/1.1\r\nHost: me\r\nAuthorization: Bearer \xff\xfe\r\n", 401),
    (b"GET /api/hello?token=%ff HTTP/1.1\r\nHost: me\r\n", 401),
    (b"GET /api/hello HTTP/1.1\r\nHost: me\r\nAuthorization: Bearer sesame\xff\r\n", 200),
    (b"GET /" + b"x" * 300 + b" HTTP/1.1\r\nHost: me\r\n", 404),
    (b"GET /%00 HTTP/1.1\r\nHost: me\r\n", 404),
    (b"GET /%ff HTTP/1.1\r\nHost: me\r\n", 404),
    (b"GET /circle HTTP/1.1\r\nHost: me\r\n", 404),
    (b"GET /index.html/x HTTP/1.1\r\nHost: me\r\n", 404),
    (b"GET /api/sessions/" + b"x" * 300 + b"?token=sesame HTTP/1.1\r\nHost: me\r\n", 401),
    (b"GET /api/chat HTTP/1.1\r\nHost: me\r\nAuthorization: Bearer sesame\xff\r\nUpgrade: websocket\r\n"
     b"Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: \xff\r\n", 400),
    (b"GET /api/chat HTTP/1.1\r\nHost: me\r\nAuthorization: Bearer sesame\xff\r\nUpgrade: websocket\r\n"
     b"Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: abc\r\n", 400),
]  # fmt: skip


def test_what_is_no_request_is_answered_as_such(play, tmp_path, caplog):
    """And not with an error of the server and its traceback, whatever bytes strangers send; the token may have any."""
    (tmp_path / "index.html").write_text("<p>hello</p>")
    (tmp_path / "circle").symlink_to(tmp_path / "circle")

    async def scene(scene: Scene) -> None:
        for lines, status in NO_REQUESTS:
            reader, writer = await asyncio.open_connection(scene.site.host, scene.site.port)
            writer.write(lines + b"\r\n")
            assert (await reader.readline()).split()[1] == str(status).encode(), lines
            writer.close()

    play(scene, settings=replace(PATIENT, token="sesame\udcff"), page=tmp_path)
    assert "Traceback" not in caplog.text


def test_a_conversation_is_kept_and_goes_on(one_speaker, play, tmp_path):
    """With draws, in another slot of another server, as if it had never stopped; fork and forget."""
    sessions = Sessions(tmp_path / "sessions")
    voice = pcm(noise(40))
    said = solo(one_speaker, voice, seed=5)
    names = []

    async def begin(scene: Scene) -> None:
        async with scene.client("?events=1&format=pcm") as client:
            await client.say(voice[:20])
            await client.until(lambda: len(client.sound) == len(said) - 20)
            assert_said(client.sound, said[:-20])
            names.append(client.last("welcome")["session"])
            await client.socket.send_bytes(b'\x04{"type": "save"}')
            await client.until(lambda: client.last("saved") is not None)
            assert client.last("saved")["frames"] == 20
            async with scene.session.get(scene.site.make_url(f"/api/sessions/{names[0]}")) as response:
                assert await response.read() == sessions.path(names[0]).read_bytes()
            assert (await scene.get("/api/sessions/guessed"))[0] == 404

    play(begin, seed=5, sessions=sessions)
    assert [one.name for one in sessions.listed()] == names and sessions.listed()[0].info.frames == 20
    sessions.fork(names[0], "fork")

    async def go_on(scene: Scene) -> None:
        async with scene.client(), scene.client(f"?events=1&format=pcm&resume={names[0]}") as client:
            assert client.last("welcome") == {"type": "welcome", "session": names[0], "resumed": True, "frames": 20}
            await client.say(voice[20:])
            await client.until(lambda: len(client.sound) == 20)
            assert_said(client.sound, said[-20:])
            await client.socket.send_bytes(b'\x04{"type": "forget"}')
            await client.until(lambda: len([e for e in client.events if e["type"] == "welcome"]) == 2)
            assert client.last("welcome")["session"] != names[0] and not client.last("welcome")["resumed"]

    play(go_on, slots=2, seed=6, sessions=sessions)
    assert [one.name for one in sessions.listed()] == ["fork"]

    async def refuse(scene: Scene) -> None:
        for name in (names[0], "..%2Fsecret", "x" * 65, ""):
            async with scene.client(f"?events=1&resume={name}", greet=False) as client:
                assert await client.closing() == 4004
                assert client.last("error") is not None and client.last("welcome") is None

    play(refuse, sessions=sessions)


def test_who_is_forgotten_and_leaves_at_once_is_forgotten(play, tmp_path):
    class Slow(Sessions):
        def forget(self, name: str) -> None:
            time.sleep(0.5)  # the disk is busy
            super().forget(name)

    sessions = Slow(tmp_path)

    async def scene(scene: Scene) -> None:
        async with scene.client("?events=1&format=pcm") as client:
            await client.say(pcm(noise(6)))
            await client.until(lambda: len(client.sound) == 6)
            await client.socket.send_bytes(b'\x04{"type": "save"}')
            await client.until(lambda: client.last("saved") is not None)
            assert sessions.listed()
            await client.socket.send_bytes(b'\x04{"type": "forget"}')
            await asyncio.sleep(0.1)

    play(scene, sessions=sessions)
    assert sessions.listed() == []


def test_a_conversation_moves_to_the_connection_that_asks_for_it(play, tmp_path):
    """The network was cut and nobody has noticed: whoever holds the id takes the place over, before all who wait."""

    async def scene(scene: Scene) -> None:
        async with scene.client("?events=1&format=pcm") as old, scene.client(greet=False) as waiting:
            await old.say(pcm(noise(6)))
            await old.until(lambda: len(old.sound) == 6)
            name = old.last("welcome")["session"]
            async with scene.client(f"?events=1&resume={name}") as new:
                assert await old.closing() == 4001
                assert new.last("welcome") == {"type": "welcome", "session": name, "resumed": True, "frames": 6}
                assert not waiting.ready
            await waiting.until(lambda: waiting.ready)

    play(scene, sessions=Sessions(tmp_path))


def test_a_conversation_is_in_one_connection_however_many_ask_for_it(play, tmp_path):
    """At once, while nobody has a place, and of one that goes on: the last who asked has it, and all that was heard."""
    sessions = Sessions(tmp_path)

    async def scene(scene: Scene) -> None:
        async with scene.client("?events=1&format=pcm") as client:
            await client.say(pcm(noise(6)))
            await client.until(lambda: len(client.sound) == 6)
            name = client.last("welcome")["session"]
        resume = f"?events=1&format=pcm&resume={name}"

        async def talk(client: Client, frames: int) -> None:
            heard = len(client.sound)
            await client.say(pcm(noise(frames)))
            await client.until(lambda: len(client.sound) == heard + frames)

        async with (
            scene.client() as one,
            scene.client() as other,
            scene.client(resume, greet=False) as first,
            scene.client(resume, greet=False) as second,
        ):
            await second.until(lambda: second.last("queue") == {"type": "queue", "place": 1})
            assert await first.closing() == 4001 and first.last("welcome") is None
            await one.socket.close()
            await other.socket.close()
            await second.until(lambda: second.ready)
            assert second.last("welcome") == {"type": "welcome", "session": name, "resumed": True, "frames": 6}
            await talk(second, 5)
            # While the one who talks is being saved for the first who asks, two more do.
            clients = [
                Client(await scene.session.ws_connect(f"{scene.site.make_url('/api/chat')}{resume}")) for _ in range(3)
            ]
            codes = [await client.closing() for client in (second, *clients[:2])]
            assert codes == [4001] * 3 and not any(client.last("welcome") for client in clients[:2])
            await clients[2].until(lambda: clients[2].ready)
            assert clients[2].last("welcome")["frames"] == 11
            await talk(clients[2], 2)
            await clients[2].socket.close()
        async with scene.client(resume) as client:
            assert client.last("welcome")["frames"] == 13
        assert 'closed_connections_total{code="4001"} 4.0' in (await scene.get("/metrics"))[1]

    play(scene, slots=2, sessions=sessions)
    assert [one.info.frames for one in sessions.listed()] == [13]


def test_who_asks_for_what_nobody_has_passes_nobody(play, tmp_path):
    """A claim that is taken over is worth the place in the queue that it had, and no better one."""

    async def scene(scene: Scene) -> None:
        async with scene.client() as talking, scene.client("?events=1", greet=False) as waiting:
            await waiting.until(lambda: waiting.events)
            for _ in range(3):
                async with scene.client("?events=1&resume=mine", greet=False) as client:
                    await client.until(lambda: client.events)
                    assert client.last("queue")["place"] == 2
                    async with scene.client("?events=1&resume=mine", greet=False) as again:
                        await again.until(lambda: again.events)
                        assert again.last("queue")["place"] == 2 and await client.closing() == 4001
            await talking.socket.close()
            await waiting.until(lambda: waiting.ready)

    play(scene, sessions=Sessions(tmp_path))


def test_a_conversation_is_kept_before_its_first_word_if_that_is_asked_for(play, tmp_path):
    """And only then: who comes and goes without a word leaves nothing."""
    sessions = Sessions(tmp_path)

    async def scene(scene: Scene) -> None:
        async with scene.client("?events=1"):
            pass
        async with scene.client("?events=1") as client:
            assert sessions.listed() == []
            await client.socket.send_bytes(b'\x04{"type": "save"}')
            await client.until(lambda: client.last("saved") is not None)
            name = client.last("saved")["session"]
        async with scene.client(f"?events=1&resume={name}") as client:
            assert client.last("welcome") == {"type": "welcome", "session": name, "resumed": True, "frames": 0}

    play(scene, sessions=sessions)


def test_a_visitor_s_prompt_acts_and_disturbs_nobody(one_speaker, play):
    """It is what `begin_with` makes of it, while somebody else is in the middle of a conversation."""
    voice = pcm(noise(16))
    plain = solo(one_speaker, voice)
    heard = [torch.from_numpy(np.frombuffer(m, "<i2").astype(np.float32) / 2**15) for m in voice]
    start = replace(begin_with(one_speaker, *make_prompt(one_speaker, text="one two three")), seed=0)
    with Conversation(one_speaker) as conversation:
        conversation.restore(start)
        replies = [conversation.hear(frame).samples.clip(-1, 1).numpy() for frame in heard]
    prompted = [np.rint(samples * (2**15 - 1)).astype("<i2") for samples in replies]
    assert any((a != b).any() for a, b in zip(plain, prompted, strict=True))

    async def scene(scene: Scene) -> None:
        assert json.loads((await scene.get("/api/hello"))[1])["takes_prompts"] is True
        async with scene.client("?events=1&format=pcm") as other:
            await other.say(voice[:8])
            await other.until(lambda: len(other.sound) == 8)
            async with scene.client("?events=1&format=pcm&prompt=one%20two%20three") as client:
                assert client.last("welcome")["frames"] == start.frames
                await client.say(voice)
                await client.until(lambda: len(client.sound) == 16)
                assert_said(client.sound, prompted)
            await other.say(voice[8:])
            await other.until(lambda: len(other.sound) == 16)
            assert_said(other.sound, plain)
            async with scene.client(f"?events=1&format=pcm&prompt={'word%20' * 60}", greet=False) as client:
                assert await client.closing() == 4005
                assert "attention window" in client.last("error")["text"]
            assert (await scene.get(f"/api/chat?prompt={'x' * 2001}"))[0] == 400
            async with scene.client("?format=pcm"):  # the place is free again
                pass

    play(scene, slots=2)


def test_a_server_with_a_prompt_of_its_own_takes_no_other(one_speaker, play):
    start = begin_with(one_speaker, *make_prompt(one_speaker, text="one two three"))

    async def scene(scene: Scene) -> None:
        assert json.loads((await scene.get("/api/hello"))[1])["takes_prompts"] is False
        assert (await scene.get("/api/chat?prompt=hello"))[0] == 400
        async with scene.client("?events=1") as client:
            assert client.last("welcome")["frames"] == start.frames

    play(scene, start=start)


def test_conversations_are_saved_meanwhile(play, tmp_path):
    sessions = Sessions(tmp_path)

    async def scene(scene: Scene) -> None:
        async with scene.client("?events=1&format=pcm") as client:
            await client.say(pcm(noise(3)))
            await client.until(lambda: client.last("saved") is not None)
            assert sessions.listed()[0].info.frames == client.last("saved")["frames"] > 0

    play(scene, settings=replace(PATIENT, save_seconds=0.5), sessions=sessions)


def test_a_failed_save_is_told_and_the_conversation_goes_on(play, tmp_path):
    (tmp_path / "file").write_text("no folder")

    async def scene(scene: Scene) -> None:
        async with scene.client("?events=1&format=pcm") as client:
            await client.say(pcm(noise(4)))
            await client.until(lambda: len(client.sound) == 4)
            await client.socket.send_bytes(b'\x04{"type": "save"}')
            await client.until(lambda: client.last("error") is not None)
            assert client.last("error")["text"].startswith("not saved: ")
            assert str(tmp_path) not in client.last("error")["text"], "visitors need not know where things are"
            heard = len(client.sound)
            await client.say(pcm(noise(4)))
            await client.until(lambda: len(client.sound) >= heard + 4)
            # Asked before the conversation ends, whose last save fails as well.
            assert "failed_saves_total 1.0" in (await scene.get("/metrics"))[1]

    play(scene, sessions=Sessions(tmp_path / "file"))


def test_a_memory_that_is_not_finite_ends_its_conversation_and_spares_what_was_saved(play, one_speaker, tmp_path):
    sessions = Sessions(tmp_path)

    async def scene(scene: Scene) -> None:
        async with scene.client("?events=1&format=pcm") as client:
            await client.say(pcm(noise(4)))
            await client.until(lambda: len(client.sound) == 4)
            await client.socket.send_bytes(b'\x04{"type": "save"}')
            await client.until(lambda: client.last("saved") is not None)
            memory = one_speaker.model.layers[0]._streaming_state.memory
            await scene.server.call(lambda slots: memory.W1[0].fill_(torch.nan))
            await client.say(pcm(noise(2)))
            assert await client.closing() == 1011
        assert sessions.listed()[0].info.frames == 4

    play(scene, sessions=sessions)


def test_the_model_s_failure_ends_all_and_is_told(play, one_speaker, monkeypatch):
    async def scene(scene: Scene) -> None:
        async with scene.client("?format=pcm") as client:
            monkeypatch.setattr(type(one_speaker.mimi), "encode", lambda self, x: 1 / 0)
            await client.say(pcm(noise(1)))
            assert await client.closing() == 1011
        assert (await scene.get("/healthz"))[0] == 503
        assert (await scene.get("/api/chat"))[0] == 503
        assert isinstance(scene.server.failure, ZeroDivisionError) and scene.server.stopped.is_set()
        with pytest.raises(InferenceError, match="the model has stopped"):
            await scene.server.call(lambda slots: None)

    play(scene)
    monkeypatch.undo()


def test_files_of_the_page_and_no_others(play, tmp_path):
    (tmp_path / "page").mkdir()
    (tmp_path / "page" / "index.html").write_text("<p>hello</p>")
    (tmp_path / "secret").write_text("secret")

    async def scene(scene: Scene) -> None:
        assert "hello" in (await scene.get("/"))[1]
        async with scene.session.get(f"{scene.site.make_url('/')}..%2Fsecret") as response:
            assert response.status in (403, 404)
        async with scene.session.get(scene.site.make_url("/")) as response:
            assert response.headers["X-Frame-Options"] == "DENY"

    play(scene, page=tmp_path / "page")


def test_a_stop_saves_everything(one_speaker, tmp_path):
    """With three who talk and one who waits."""
    sessions = Sessions(tmp_path)

    async def whole() -> None:
        server = Server(Slots(one_speaker, 3, watched=True), PATIENT, sessions, 0)
        site = TestServer(make_app(server, None))
        await site.start_server()
        async with aiohttp.ClientSession() as session:
            clients = []
            for _ in range(4):
                socket = await session.ws_connect(site.make_url("/api/chat?events=1&format=pcm"))
                clients.append(Client(socket))
            for client in clients[:3]:
                await client.until(lambda client=client: client.ready)
                await client.say(pcm(noise(4)))
                await client.until(lambda client=client: len(client.sound) == 4)
            _, *codes = await asyncio.gather(site.close(), *(client.closing() for client in clients))
            assert codes == [1001] * 4

    asyncio.run(asyncio.wait_for(whole(), WAIT))
    assert [one.info.frames for one in sessions.listed()] == [4, 4, 4]
    assert not any(getattr(m, "_streaming_state", None) for m in one_speaker.model.modules())
