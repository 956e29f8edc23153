"""A server in this process, for what talks with it from here."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

from aiohttp import web

from ttt_moshi.inference.app import make_app
from ttt_moshi.inference.server import Server
from ttt_moshi.inference.settings import Settings
from ttt_moshi.inference.slots import Slots
from ttt_moshi.moshi.device import use_device

PATIENT = Settings(max_lag=None, idle_seconds=3600.0, ping_seconds=600.0)
"""nothing is dropped, whoever is slow"""


@asynccontextmanager
async def hosted(slots: Slots, seed: int) -> AsyncIterator[str]:
    """Serves on a free port of this machine alone, and gives the address.

    Args:
        slots: watched, and not entered yet.
        seed: of every conversation.
    """
    server = Server(slots, PATIENT, None, seed, prepare=partial(use_device, str(slots.speaker.model.device)))
    runner = web.AppRunner(make_app(server, None), access_log=None)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()
