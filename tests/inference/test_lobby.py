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


def test_who_comes_instead_of_another_has_what_that_one_had():
    async def scene() -> None:
        lobby = Lobby(1)
        told: dict[str, list[int]] = {name: [] for name in "abcdef"}
        a = lobby.ask(told["a"].append)
        b, c, d = (lobby.ask(told[name].append) for name in "bcd")
        e = lobby.ask(told["e"].append, instead_of=c)
        assert told["e"] == [2] and told["d"] == [3] and lobby.queue == 3
        c.leave()
        f = lobby.ask(told["f"].append, instead_of=a)
        assert told["f"] == [1] and told["b"] == [1, 2]
        for ticket in (a, f, b, e):
            ticket.leave()
        assert d.given.result() == 0
        d.leave()
        assert (lobby.free, lobby.queue) == (1, 0)

    asyncio.run(scene())
