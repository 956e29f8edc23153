"""The server behind moshi's web page and command-line client: the same messages over one web socket.

A message is a byte that says what it is, and its content: 0 the server is ready, 1 sound (Opus in Ogg), 2 text (UTF-8).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import sphn
import torch
from aiohttp import WSMsgType, web

from ttt_moshi.inference.conversation import Conversation, Reply
from ttt_moshi.inference.transcript import WORD_START

READY, SOUND, TEXT = b"\x00", b"\x01", b"\x02"
WARM_UP_FRAMES = 4

logger = logging.getLogger(__name__)


def make_app(conversation: Conversation, page: Path | None) -> web.Application:
    """The application: `/api/chat`, and the files of `page` (with an `index.html`) at `/`.

    Args:
        conversation: entered already; every visitor begins it anew, and a second one at a time is turned away.
    """
    # The model has a thread of its own, so that sound keeps coming in while it thinks.
    thread = ThreadPoolExecutor(1, thread_name_prefix="moshi")
    busy = asyncio.Lock()

    async def chat(request: web.Request) -> web.StreamResponse:
        if busy.locked():
            raise web.HTTPServiceUnavailable(text="somebody else is talking to Moshi; try again later\n")
        async with busy:
            socket = web.WebSocketResponse()
            await socket.prepare(request)
            logger.info("a conversation begins")
            try:
                await _talk(conversation, socket, thread)
            finally:
                logger.info(
                    "the conversation ended after %.1f s",
                    conversation.frames * conversation.frame_size / conversation.sample_rate,
                )
            return socket

    async def lifetime(app: web.Application) -> AsyncIterator[None]:
        await asyncio.get_running_loop().run_in_executor(thread, _warm_up, conversation)
        yield
        thread.shutdown()

    app = web.Application()
    app.cleanup_ctx.append(lifetime)
    app.router.add_get("/api/chat", chat)
    if page is not None:

        async def index(request: web.Request) -> web.StreamResponse:
            return web.FileResponse(page / "index.html")

        app.router.add_get("/", index)
        app.router.add_static("/", page)
    return app


def _warm_up(conversation: Conversation) -> None:
    """The first frames compile kernels and record graphs, for which no visitor should wait."""
    for _ in range(WARM_UP_FRAMES):
        conversation.hear(torch.zeros(conversation.frame_size))


async def _talk(conversation: Conversation, socket: web.WebSocketResponse, thread: ThreadPoolExecutor) -> None:
    """One visitor, from the handshake to the end."""
    loop, size = asyncio.get_running_loop(), conversation.frame_size
    await loop.run_in_executor(thread, conversation.start_over)
    reader = sphn.OpusStreamReader(conversation.sample_rate)
    writer = sphn.OpusStreamWriter(conversation.sample_rate)
    await socket.send_bytes(READY)
    waiting: np.ndarray = np.zeros(0, np.float32)
    async for message in socket:
        if message.type is not WSMsgType.BINARY or message.data[:1] != SOUND:
            logger.warning("a message that is not sound is passed over")
            continue
        heard = reader.append_bytes(message.data[1:])
        waiting = np.concatenate([waiting, heard])
        while len(waiting) >= size:
            frame, waiting = torch.from_numpy(waiting[:size].copy()), waiting[size:]
            reply = await loop.run_in_executor(thread, conversation.hear, frame)
            if reply is not None:
                await _send(reply, socket, writer)


async def _send(reply: Reply, socket: web.WebSocketResponse, writer: sphn.OpusStreamWriter) -> None:
    sound = writer.append_pcm(reply.samples.numpy())
    if sound:
        await socket.send_bytes(SOUND + sound)
    if reply.piece:
        await socket.send_bytes(TEXT + reply.piece.replace(WORD_START, " ").encode())
