"""Places go round in the order of asking, and none is ever lost."""

from __future__ import annotations

import asyncio

from ttt_moshi.inference.lobby import Lobby


def test_who_is_cancelled_while_waiting_takes_no_place_along():
    """A visit that ends cancels its waiting first, and gives its ticket back a moment later."""

    async def scene() -> None:
        lobby = Lobby(1)
        told: list[int] = []
        first, second, third = lobby.ask(told.append), lobby.ask(told.append), lobby.ask(told.append)
        assert first.given.done() and told == [1, 2]
        second.given.cancel()
        first.leave()
        assert third.given.result() == 0
        second.leave()
        assert (lobby.free, lobby.queue) == (0, 0)
        third.leave()
        assert (lobby.free, lobby.queue) == (1, 0)

    asyncio.run(scene())
