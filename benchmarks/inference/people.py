"""Made-up visitors of a server: they speak in real time, and leave as people and networks do."""

from __future__ import annotations

import asyncio
import json
import random
import time
from dataclasses import dataclass, field

import aiohttp
import numpy as np

FRAME_SECONDS = 0.08
FRAME_SIZE = 1920
DEAD_SECONDS = 10.0
"""longer than the server takes to find out"""
ENDS = ("close", "close", "close", "cut", "cut", "die", "forget")
"""how conversations end: by a goodbye, a cut line, a line that goes dead without a word, or for good"""


@dataclass
class Found:
    """What the visitors saw.

    Attributes:
        delays: seconds between sending a frame, as soon as its 80 ms are over, and Moshi's frame of the same time.
        ticks: seconds of a tick, as the server tells once a second.
        lags: seconds that the server was behind a conversation, as it tells with them.
        sessions: frames of every conversation that is kept, when it was saved last.
        ends: how many conversations ended how.
        refused: what should not have happened.
    """

    delays: list[float] = field(default_factory=list)
    ticks: list[float] = field(default_factory=list)
    lags: list[float] = field(default_factory=list)
    sessions: dict[str, int] = field(default_factory=dict)
    ends: dict[str, int] = field(default_factory=dict)
    refused: list[str] = field(default_factory=list)


class Visitor:
    """One connection after another, until the time is over.

    Args:
        url: of `/api/chat`, with `events=1&format=pcm`.
    """

    def __init__(self, url: str, found: Found, seed: int) -> None:
        self._url, self._found = url, found
        self._random = random.Random(seed)
        self._mine: list[str] = []

    async def visit_until(self, end: float) -> None:
        """Comes and goes until `end`, a time of `time.monotonic`."""
        while (left := end - time.monotonic()) > 1.0:
            how = self._random.choice(ENDS)
            resume = self._random.choice(self._mine) if self._mine and self._random.random() < 0.5 else None
            await self.talk(min(left, self._random.uniform(3.0, 25.0)), how, resume)
            self._found.ends[how] = self._found.ends.get(how, 0) + 1

    async def talk(self, seconds: float, how: str = "close", resume: str | None = None) -> None:
        """One conversation of so many seconds, from the moment that there is a place."""
        connector = aiohttp.TCPConnector()
        address = self._url if resume is None else f"{self._url}&resume={resume}"
        async with aiohttp.ClientSession(connector=connector) as http, http.ws_connect(address) as socket:
            talk = _Talk(socket, self._found)
            if not await talk.wait_for_place():
                self._found.refused.append(f"{resume or 'a new conversation'} was closed with {socket.close_code}")
                return
            listening = asyncio.create_task(talk.listen())
            await talk.speak(seconds, self._random.randrange(2**31))
            if how == "forget":
                await socket.send_bytes(b'\x04{"type": "forget"}')
                await asyncio.sleep(0.5)
            listening.cancel()
            if how == "die":  # nothing is read, so no ping is answered
                await asyncio.sleep(DEAD_SECONDS)
            if how in ("cut", "die"):
                await connector.close()
        if how == "forget":
            self._mine = [one for one in self._mine if one != talk.first]
            self._found.sessions.pop(talk.first, None)
        elif talk.first not in self._mine:
            self._mine.append(talk.first)


class _Talk:
    def __init__(self, socket: aiohttp.ClientWebSocketResponse, found: Found) -> None:
        self._socket, self._found = socket, found
        self._sent: list[float] = []
        self._replies = self._frames = 0
        self.first = ""

    async def wait_for_place(self) -> bool:
        while (message := await self._socket.receive()).type is aiohttp.WSMsgType.BINARY:
            if message.data[:1] == b"\x00":
                return True
            self._understand(message.data)
        return False

    async def speak(self, seconds: float, seed: int) -> None:
        """Noise, a frame every 80 ms of the clock."""
        noise = np.random.default_rng(seed)
        began = time.monotonic()
        for frame in range(round(seconds / FRAME_SECONDS)):
            await asyncio.sleep(max(0.0, began + frame * FRAME_SECONDS - time.monotonic()))
            samples = noise.integers(-3000, 3000, FRAME_SIZE, dtype="<i2")
            try:
                await self._socket.send_bytes(b"\x01" + samples.tobytes())
            except ConnectionError:
                self._found.refused.append(f"a conversation was closed with {self._socket.close_code}")
                return
            self._sent.append(time.monotonic())

    async def listen(self) -> None:
        async for message in self._socket:
            if message.type is aiohttp.WSMsgType.BINARY:
                self._understand(message.data)

    def _understand(self, data: bytes) -> None:
        if data[:1] == b"\x01":
            # A reply for every frame, in order: the model answers from its first frame on.
            if self._replies < len(self._sent):
                self._found.delays.append(time.monotonic() - self._sent[self._replies])
            self._replies += 1
        elif data[:1] == b"\x04":
            event = json.loads(data[1:])
            if event["type"] == "welcome" and not self.first:
                self.first, self._frames = event["session"], event["frames"]
                self._found.sessions.setdefault(self.first, 0)
            elif event["type"] == "saved":
                self._found.sessions[event["session"]] = event["frames"]
            elif event["type"] == "lag":
                self._found.ticks.append(event["tick"])
                self._found.lags.append(event["seconds"])
            elif event["type"] == "error":
                self._found.refused.append(event["text"])
