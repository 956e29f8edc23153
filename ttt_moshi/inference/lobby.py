"""Who has a place, and who waits for one in which order."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable


class Lobby:
    """Places for so many at once, given in the order of asking. For one event loop.

    Args:
        places: their number.
    """

    def __init__(self, places: int) -> None:
        self._free = list(range(places))[::-1]
        self._waiting: deque[Ticket] = deque()

    @property
    def free(self) -> int:
        """Places that nobody has."""
        return len(self._free)

    @property
    def queue(self) -> int:
        """How many wait."""
        return len(self._waiting)

    def ask(self, on_place: Callable[[int], None], instead_of: Ticket | None = None) -> Ticket:
        """Asks for a place.

        Args:
            on_place: told the place in the queue (1: next) at once and whenever it changes, as long as one has to wait.
            instead_of: somebody who leaves in favour of this one: it waits where that one waited, and before all
                others for a place that is given up.
        """
        ticket = Ticket(self, on_place)
        if instead_of is None:
            self._waiting.append(ticket)
        elif instead_of in self._waiting:
            self._waiting[self._waiting.index(instead_of)] = ticket
        else:
            self._waiting.appendleft(ticket)
        self._serve()
        return ticket

    def _serve(self) -> None:
        while self._free and self._waiting:
            ticket = self._waiting.popleft()
            if not ticket.given.done():  # cancelled: whoever waited is on the way out and takes no place along
                ticket.given.set_result(self._free.pop())
        for place, ticket in enumerate(self._waiting, 1):
            ticket.tell(place)

    def _leave(self, ticket: Ticket) -> None:
        if ticket in self._waiting:
            self._waiting.remove(ticket)
        elif ticket.given.done() and not ticket.given.cancelled():
            self._free.append(ticket.given.result())
        self._serve()


class Ticket:
    """Somebody's claim to a place."""

    def __init__(self, lobby: Lobby, on_place: Callable[[int], None]) -> None:
        self._lobby, self._on_place, self._told = lobby, on_place, 0
        self._left = False
        self.given: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    def tell(self, place: int) -> None:
        """Passes the place in the queue on, if it is news."""
        if place != self._told:
            self._told = place
            self._on_place(place)

    def leave(self) -> None:
        """Gives the place back, or the claim to one; a second time it does nothing."""
        if not self._left:
            self._left = True
            self._lobby._leave(self)
