"""One visitor, from the handshake to the end: what comes in, what goes out, and what is kept."""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, fields, replace
from functools import partial
from itertools import count
from typing import Any

import numpy as np
import torch
from aiohttp import WSCloseCode, WSMsgType, web

from ttt_moshi.errors import UserError
from ttt_moshi.frames import frames_to_seconds
from ttt_moshi.inference.errors import InferenceError
from ttt_moshi.inference.lobby import Ticket
from ttt_moshi.inference.prompt import begin_beside
from ttt_moshi.inference.server import Server, Visitor
from ttt_moshi.inference.slots import LayerMemory, Reply, Slots, Snapshot, why_broken
from ttt_moshi.inference.transcript import WORD_START, PieceReader
from ttt_moshi.inference.wire import AUDIO, EVENT, FORMATS, IGNORED, READY, TEXT, WireError, event, parse_event

ELSEWHERE, UNKNOWN_SESSION, BAD_PROMPT = 4001, 4004, 4005
"""close codes of our own: a conversation goes on in another connection, is not here, or cannot begin as was asked"""

WISHES = ("save", "forget")
"""what a page may ask for in JSON"""

MAX_OUTBOX = 125
"""messages that may wait for a client to read them: ten seconds of audio"""

CLOSING_SECONDS = 1.0
MEMORY_SECONDS = 5
PATIENT_FRAMES = 25
"""where no frame may be dropped, so many wait before the client has to"""

MEMORY = fields(LayerMemory)

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Wish:
    """What a client asked for in its address.

    Args:
        events: whether it understands JSON messages.
        format: of audio, a key of `FORMATS`.
        resume: the session to go on with.
        prompt: what Moshi should know or who she is, in a new conversation.
        greeting: whether Moshi may say a word before the visitor makes a sound, in a new conversation.
    """

    events: bool = False
    format: str = "opus"
    resume: str | None = None
    prompt: str | None = None
    greeting: bool = True


class Allowance:
    """So many units a second on average, and `burst` at once."""

    def __init__(self, rate: float, burst: float) -> None:
        self._rate, self._burst = rate, burst
        self._left, self._at = burst, time.monotonic()

    def spend(self, units: float) -> bool:
        """Whether that was allowed."""
        now = time.monotonic()
        self._left = min(self._burst, self._left + (now - self._at) * self._rate) - units
        self._at = now
        return self._left >= 0.0


class Visit:
    """A connection. `run` serves it to its end; `end` ends it from elsewhere.

    Attributes:
        over: set when nothing of it is left, and its conversation is saved, also by the visit that had it before.
        ticket: its claim to a place, once it has asked for one.
    """

    def __init__(
        self, server: Server, socket: web.WebSocketResponse, transport: asyncio.Transport | None, wish: Wish
    ) -> None:
        self._server, self._socket, self._transport, self._wish = server, socket, transport, wish
        self._audio = FORMATS[wish.format](server.sample_rate)
        self._outbox: asyncio.Queue[bytes] = asyncio.Queue(MAX_OUTBOX)
        self._reader = PieceReader()
        self._heard: np.ndarray = np.zeros(0, np.float32)
        self._messages, self._bytes = Allowance(250.0, 500.0), Allowance(256e3, 1e6)
        self._slot: int | None = None
        self._session: str | None = None
        self._worth_saving = True
        self._forgetting = self._unsaved = False
        self._before: Visitor | None = None
        self._closing: tuple[int, str] | None = None
        self._ending = asyncio.Event()
        self._last_audio = time.monotonic()
        self._dropped = self._frames = self._first_frames = 0
        self._kept_frames: int | None = None
        self._memory: Mapping[int, LayerMemory] = {}
        self._waited = 0.0
        self._keeping = asyncio.Lock()  # nothing is saved that has just been forgotten
        self.over = asyncio.Event()
        self.ticket: Ticket | None = None

    def end(self, code: int, reason: str) -> None:
        """Ends the visit; the first reason is the one that counts."""
        if self._closing is None:
            self._closing = (int(code), reason)
            self._ending.set()

    async def run(self) -> None:
        """Serves the connection until it ends."""
        # It is claimed now: others who ask for it while this one waits must find out who has it. It may still be going
        # on in a connection whose end nobody has noticed.
        self._session = self._wish.resume or None
        self._before = None if self._session is None else self._server.claim(self, self._session)
        self._server.arrive(self)
        ticket = self._server.lobby.ask(self._on_place, None if self._before is None else self._before.ticket)
        self.ticket = ticket
        if self._before is not None:
            self._before.end(ELSEWHERE, "this conversation goes on in another connection")
        tasks = [asyncio.create_task(work) for work in (self._read(), self._write(), self._talk(ticket.given))]
        ending: asyncio.Task[Any] = asyncio.create_task(self._ending.wait())
        try:
            await asyncio.wait([*tasks, ending], return_when=asyncio.FIRST_COMPLETED)
            for task in tasks:
                if task.done() and not task.cancelled() and (error := task.exception()) is not None:
                    logger.error("a visit failed", exc_info=error)
                    self.end(WSCloseCode.INTERNAL_ERROR, "an error of the server")
        finally:
            for task in (*tasks, ending):
                task.cancel()
            await asyncio.gather(*tasks, ending, return_exceptions=True)
            try:
                await self._finish()
            finally:
                ticket.leave()
                self._server.forget_visit(self, self._session)
                self._server.metrics.closed.labels((self._closing or (WSCloseCode.ABNORMAL_CLOSURE,))[0]).inc()
                self._server.depart(self)
                self.over.set()
        await self._close()

    def deliver(self, reply: Reply | None, waited: float, broken: bool) -> None:
        """What a tick brought, from the event loop."""
        self._frames += 1
        self._waited = max(self._waited, waited)
        if broken:
            self._worth_saving = False  # what was saved before is still good
            self.end(WSCloseCode.INTERNAL_ERROR, why_broken(self._frames)[:100])
        if reply is None:
            return
        sound = self._audio.encode(reply.samples.numpy())
        if sound:
            self._send(AUDIO + sound)
        text = self._reader.read(reply.piece) if reply.piece else ""
        if text:
            self._send(TEXT + text.replace(WORD_START, " ").encode())

    def _on_place(self, place: int) -> None:
        self._tell("queue", place=place)

    def _tell(self, kind: str, **values: Any) -> None:
        if self._wish.events:
            self._send(event(kind, **values))

    def _send(self, message: bytes) -> None:
        """Puts a message where the writer takes it from; whoever does not read for ten seconds is let go."""
        try:
            self._outbox.put_nowait(message)
        except asyncio.QueueFull:
            self.end(WSCloseCode.POLICY_VIOLATION, "replies are not read")

    async def _talk(self, given: asyncio.Future[int]) -> None:
        slot = await given
        await self._until_saved()
        snapshot = None
        if self._wish.resume is not None:
            try:
                snapshot = await self._server.load(self._wish.resume)
            except (UserError, OSError) as error:
                self._tell("error", text=self._server.in_words(error))
                self.end(UNKNOWN_SESSION, "this conversation cannot go on here")
                return
        try:
            await self._begin(slot, snapshot)
        except InferenceError as error:
            self._tell("error", text=str(error))
            self.end(BAD_PROMPT, str(error)[:100])
            return
        self._send(READY)
        await self._watch()

    async def _until_saved(self) -> None:
        """Waits until the visit that had the conversation before has saved it."""
        if self._before is not None:
            await self._before.over.wait()
            self._before = None  # which knows of one before it, and so on

    async def _begin(self, slot: int, snapshot: Snapshot | None) -> None:
        server = self._server
        seed = server.seed if server.seed is not None else secrets.randbits(62)
        start, prompt = snapshot, self._wish.prompt
        # What goes on has been greeted already.
        greeting = self._wish.greeting or snapshot is not None
        if snapshot is None and server.start is not None:
            start = replace(server.start, seed=seed)
        elif snapshot is None and prompt is not None:
            start = replace(await server.call(lambda slots: begin_beside(slots, prompt, greeting)), seed=seed)
        if start is None:
            await server.call(lambda slots: slots.join(slot, seed, greeting))
        else:
            await server.call(lambda slots: slots.restore(slot, start, greeting))
        self._session = self._wish.resume or server.new_session()
        server.live_visit(self, self._session, slot)
        self._heard = self._heard[:0]
        self._frames = 0 if start is None else start.frames
        self._first_frames = self._frames
        self._kept_frames = None if snapshot is None else snapshot.frames
        self._memory = {} if snapshot is None else snapshot.memory
        self._last_audio = time.monotonic()
        server.engine.attend(slot)
        self._slot = slot
        self._tell("welcome", session=self._session, resumed=snapshot is not None, frames=self._frames)

    async def _watch(self) -> None:
        """Once a second: how far behind, whether anybody is there, and whether it is time to save."""
        server, settings, saved = self._server, self._server.settings, time.monotonic()
        for seconds in count():
            await asyncio.sleep(1.0)
            slot = self._slot
            if slot is None:  # between two conversations
                continue
            waiting = server.engine.waiting(slot)
            if waiting:  # whoever is not heard yet has not fallen silent
                self._last_audio = time.monotonic()
            behind = frames_to_seconds(waiting) + self._waited
            self._waited = 0.0
            if seconds % MEMORY_SECONDS == 0 and (self._wish.events or server.sessions is not None):
                memory = await server.call(partial(Slots.memory, slot=slot))
                if any(own.loss is not None for own in memory.values()):
                    self._memory = memory
                shares = {field.name: {i: getattr(own, field.name) for i, own in memory.items()} for field in MEMORY}
                self._tell("memory", frames=self._frames, **shares)
            self._tell("lag", seconds=round(behind, 3), dropped=self._dropped, tick=round(server.tick_seconds, 4))
            if time.monotonic() - self._last_audio > settings.idle_seconds:
                self.end(WSCloseCode.POLICY_VIOLATION, f"no audio for {settings.idle_seconds:.0f} s")
                return
            if time.monotonic() - saved > settings.save_seconds:
                saved = time.monotonic()
                await self._save()

    async def _read(self) -> None:
        async for message in self._socket:
            if message.type is WSMsgType.ERROR:  # aiohttp has answered it with the right code
                self.end(self._socket.close_code or WSCloseCode.PROTOCOL_ERROR, "a message that is broken or too large")
                return
            if not self._messages.spend(1) or not self._bytes.spend(len(message.data)):
                self.end(WSCloseCode.POLICY_VIOLATION, "too many messages")
                return
            if message.type is not WSMsgType.BINARY:
                self.end(WSCloseCode.UNSUPPORTED_DATA, "a message that is not binary")
                return
            try:
                await self._understand(message.data)
            except WireError as error:
                self.end(WSCloseCode.INVALID_TEXT, str(error)[:100])
                return
        self.end(self._socket.close_code or WSCloseCode.ABNORMAL_CLOSURE, "")

    async def _understand(self, data: bytes) -> None:
        kind, content = data[:1], data[1:]
        if kind == AUDIO:
            await self._hear(self._audio.decode(content))
        elif kind == EVENT and self._wish.events:
            await self._obey(parse_event(content))
        elif kind not in (*IGNORED, EVENT):
            self.end(WSCloseCode.UNSUPPORTED_DATA, f"a message of an unknown kind ({data[:1].hex() or 'empty'})")

    async def _hear(self, samples: np.ndarray) -> None:
        if self._slot is None:
            return  # whoever waits is not heard
        server, size = self._server, self._server.frame_size
        if len(samples):  # bytes that never become sound hold no place
            self._last_audio = time.monotonic()
        self._heard = np.concatenate([self._heard, samples])
        while len(self._heard) >= size:
            frame, self._heard = torch.from_numpy(self._heard[:size].copy()), self._heard[size:]
            while server.settings.max_lag is None and server.engine.waiting(self._slot) >= PATIENT_FRAMES:
                await asyncio.sleep(0.01)
            dropped = server.engine.hear(self._slot, frame)
            self._dropped += dropped
            server.metrics.dropped.inc(dropped)

    async def _obey(self, wish: dict[str, Any]) -> None:
        """A JSON message of the page; a known wish means nothing before the conversation has begun."""
        if wish["type"] not in WISHES:
            raise WireError(f"an unknown wish: {wish['type'][:40]}")
        if self._slot is None:
            return
        if wish["type"] == "save":
            await self._save(asked=True)
        else:
            slot, old = self._slot, self._session
            self._forgetting = True  # from now on, whatever becomes of this connection
            async with self._keeping:
                try:
                    if old is not None:
                        await self._server.forget(old)
                except OSError as error:
                    self._forgetting = False
                    self._tell("error", text=f"not forgotten: {self._server.in_words(error)}")
                    return
                self._server.engine.leave(slot)
                self._slot = None
                self._server.forget_visit(self, old)
            self._wish = replace(self._wish, resume=None)
            self._forgetting = False
            await self._begin(slot, None)

    async def _save(self, asked: bool = False) -> None:
        """Keeps the conversation; a failure is told, and the conversation goes on.

        Args:
            asked: keep it even if nothing has been heard yet.
        """
        async with self._keeping:
            await self._keep(asked)

    async def _keep(self, asked: bool) -> None:
        if self._slot is None or self._session is None or not self._worth_saving:
            return
        slot, server = self._slot, self._server
        try:
            snapshot = await server.call(lambda slots: slots.snapshot(slot))
            new = snapshot.frames > (self._first_frames if self._kept_frames is None else self._kept_frames)
            if new or (asked and self._kept_frames is None):
                await server.keep(self._session, replace(snapshot, memory=self._memory))
                self._kept_frames = snapshot.frames
                server.metrics.saved.inc()
            self._unsaved = False
        except (UserError, OSError) as error:
            server.metrics.save_failures.inc()
            self._unsaved = True
            logger.error("a conversation was not saved: %s", error)
            self._tell("error", text=f"not saved: {server.in_words(error)}")
            return
        if self._kept_frames is not None:
            self._tell("saved", session=self._session, frames=self._kept_frames)

    async def _forget_now(self, session: str) -> None:
        """Who asked for it is gone, and cannot ask again."""
        async with self._keeping:
            try:
                await self._server.forget(session)
                self._kept_frames = None
            except OSError as error:
                logger.error("a conversation was not forgotten: %s", error)

    async def _finish(self) -> None:
        """Saves the conversation and frees the slot."""
        if self._slot is None:
            await self._until_saved()  # for whoever waits for this one
            return
        if self._forgetting and self._session is not None:
            await self._forget_now(self._session)
        else:
            await self._save()
            self._server.lost += self._unsaved
        self._server.engine.leave(self._slot)
        with suppress(UserError):
            await self._server.call(lambda slots: None)  # what the last ticks brought has come before this
        kept = f", kept as {self._session}" if self._kept_frames is not None else ", not kept"
        _, reason = self._closing or (0, "")
        logger.info("a conversation ends after %.1f s%s %s", frames_to_seconds(self._frames), kept, reason)

    async def _write(self) -> None:
        try:
            while True:
                await self._socket.send_bytes(await self._outbox.get())
        except ConnectionError:
            self.end(self._socket.close_code or WSCloseCode.ABNORMAL_CLOSURE, "the connection is gone")

    async def _close(self) -> None:
        code, reason = self._closing or (WSCloseCode.OK, "")
        try:
            await asyncio.wait_for(self._say_goodbye(code, reason), CLOSING_SECONDS)
        except (asyncio.TimeoutError, OSError):
            if self._transport is not None:
                self._transport.abort()

    async def _say_goodbye(self, code: int, reason: str) -> None:
        while not self._outbox.empty() and not self._socket.closed:
            await self._socket.send_bytes(self._outbox.get_nowait())
        await self._socket.close(code=code, message=reason.encode()[:120])
