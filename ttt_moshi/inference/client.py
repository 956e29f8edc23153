"""A visitor of a server who is a program: it talks as moshi's own clients do, but by no clock.

Time is counted in frames. The visitor hears an answer `lead` frames after what it answers, and says the next frame only
when what is heard meanwhile has come. So a conversation is the same on any machine, however slow; with Moshi the lead
is 160 ms, which is what a line without delay would cost: the frame itself, and the delay of its codebooks.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aiohttp
import numpy as np
from yarl import URL

from ttt_moshi.frames import FRAME_SIZE, SAMPLE_RATE
from ttt_moshi.inference.errors import InferenceError
from ttt_moshi.inference.transcript import WORD_START
from ttt_moshi.inference.wire import AUDIO, READY, TEXT, Opus, WireError

USUAL_LEAD, LONGEST_LEAD = 2, 25
FIRST_SECONDS = 10.0
"""of waiting for the first answer, after which one more frame is said"""
ANSWER_SECONDS = 120.0
PLACE_SECONDS = 600.0
FASTEST = 15.0
"""times real time, at most: a server may take more for a flood"""


class Call:
    """A conversation that has begun.

    Attributes:
        lead: frames from what is said to its answer.
        pieces: text by the frame in which it is heard, "▁" for a space.
    """

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self._socket = socket
        self._audio = Opus(SAMPLE_RATE)
        self._waiting: np.ndarray = np.zeros(0, np.float32)
        self._answers: list[np.ndarray] = []
        self._said = 0
        self._begun = 0.0
        self.lead = 0
        self.pieces: dict[int, str] = {}

    async def exchange(self, frame: np.ndarray) -> np.ndarray:
        """Says a frame and gives the one that is heard meanwhile, both float32 [FRAME_SIZE].

        Raises:
            InferenceError: the server has ended the conversation, or does not answer.
        """
        await self._say(frame)
        heard = self._said - 1 - self.lead
        if heard < 0:
            return np.zeros(FRAME_SIZE, np.float32)
        if not await self._until(heard + 1, ANSWER_SECONDS):
            raise InferenceError(f"the server has not answered for {ANSWER_SECONDS:.0f} s")
        return self._answers[heard]

    async def _say(self, frame: np.ndarray) -> None:
        now = asyncio.get_running_loop().time()
        self._begun = self._begun or now
        await asyncio.sleep(self._begun + self._said * FRAME_SIZE / SAMPLE_RATE / FASTEST - now)
        try:
            await self._socket.send_bytes(AUDIO + self._audio.encode(frame))
        except ConnectionError as error:
            raise InferenceError(f"the server has ended the conversation ({self._socket.close_code})") from error
        self._said += 1

    async def begin(self) -> None:
        """Waits for a place, and finds out how many frames the server wants before it answers the first of them, which
        are silence. Raises `InferenceError`."""
        if not await self._receive(PLACE_SECONDS, until_ready=True):
            raise InferenceError(f"the server had no place for {PLACE_SECONDS:.0f} s")
        while not self._answers:
            if self._said == LONGEST_LEAD:
                raise InferenceError(f"the server answers nothing to {LONGEST_LEAD} frames")
            await self._say(np.zeros(FRAME_SIZE, np.float32))
            if self._said >= USUAL_LEAD:
                await self._until(1, FIRST_SECONDS)
        self.lead = self._said
        self.pieces = {frame + self.lead: piece for frame, piece in self.pieces.items()}

    async def _until(self, frames: int, seconds: float) -> bool:
        """Receives until so many frames have been answered; False where they are not in time."""
        while len(self._answers) < frames:
            if not await self._receive(seconds):
                return False
        return True

    async def _receive(self, seconds: float, until_ready: bool = False) -> bool:
        """One message, or those until the greeting; False where there is none in time."""
        while True:
            try:
                message = await self._socket.receive(timeout=seconds)
            except asyncio.TimeoutError:
                return False
            if message.type is not aiohttp.WSMsgType.BINARY:
                why = message.extra or self._socket.close_code or message.type.name.lower()
                raise InferenceError(f"the server has ended the conversation ({why})")
            kind, content = message.data[:1], message.data[1:]
            if kind == AUDIO:
                try:
                    self._hear(self._audio.decode(content))
                except WireError as error:
                    raise InferenceError(f"the server sends what is no audio: {error}") from None
            elif kind == TEXT:
                frame = len(self._answers) - 1 + self.lead
                text = content.decode(errors="replace").replace(" ", WORD_START)
                self.pieces[frame] = self.pieces.get(frame, "") + text
            if not until_ready or kind == READY:
                return True

    def _hear(self, samples: np.ndarray) -> None:
        self._waiting = np.concatenate([self._waiting, samples])
        while len(self._waiting) >= FRAME_SIZE:
            self._answers.append(self._waiting[:FRAME_SIZE])
            self._waiting = self._waiting[FRAME_SIZE:]


@asynccontextmanager
async def call(server: str) -> AsyncIterator[Call]:
    """A conversation with the server at `server`, http://HOST:PORT, with its token as `serve` writes it (#token=TOKEN).

    Raises:
        InferenceError: nobody answers there, or turns the visitor away.
    """
    try:
        async with aiohttp.ClientSession() as session, session.ws_connect(_address(server, "/api/chat")) as socket:
            one = Call(socket)
            await one.begin()
            yield one
    except aiohttp.WSServerHandshakeError as error:
        raise InferenceError(f"{server} turns visitors away: {error.status} {error.message}") from None
    except aiohttp.ClientError as error:
        raise InferenceError(f"nobody to talk with at {server}: {error}") from None


async def served_model(server: str) -> dict[str, str | None]:
    """`state_id` and `dtype` of the model that a server serves; None where it does not say.

    Raises:
        InferenceError: nobody answers there, or turns the visitor away.
    """
    try:
        async with aiohttp.ClientSession() as session, session.get(_address(server, "/api/hello")) as response:
            if response.status != 200:
                raise InferenceError(f"{server} does not say what it serves: {response.status} {response.reason}")
            facts = await response.json()
            return {key: facts.get(key) for key in ("state_id", "dtype")}
    except (aiohttp.ClientError, ValueError, AttributeError) as error:
        raise InferenceError(f"nobody to talk with at {server}: {error}") from None


def check_address(server: str) -> None:
    """Raises `InferenceError` for what is no address of a server."""
    _address(server, "/")


def _address(server: str, path: str) -> URL:
    try:
        given = URL(server)
        whole = given.scheme in ("http", "https") and bool(given.host)
    except ValueError:
        whole = False
    if not whole:
        raise InferenceError(f"{server!r} is no address of a server: http://HOST:PORT")
    token = given.fragment.removeprefix("token=") if given.fragment.startswith("token=") else None
    return given.with_path(path).with_query({"token": token} if token else {}).with_fragment(None)
