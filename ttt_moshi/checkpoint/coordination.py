"""How ranks tell each other results and failures: small JSON messages in a key-value store, never a collective.

A background thread may use it while training runs its own collectives. Waiting polls, because a blocking call would
hold the store's connection against everybody else in the process. Every rank leaves a sign of life every few seconds,
so that a dead one is noticed long before the longest wait is over.
"""

from __future__ import annotations

import atexit
import json
import time
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from threading import Event, Thread
from typing import Any

import torch.distributed as dist

from ttt_moshi.checkpoint.errors import CheckpointError, LostLock, UnreadableCheckpoint

BEAT = 2.0  # seconds between signs of life
SILENCE = 20.0  # seconds without one after which a rank counts as dead
_TOLD = {kind.__name__: kind for kind in (LostLock, UnreadableCheckpoint)}  # errors that keep their kind on all ranks


class Coordinator:
    """One conversation of `world_size` ranks. A round is one save, load or opening; all ranks make the same rounds.

    `place` is what they speak about; all must mean the same. `timeout` is the longest wait for another rank, seconds.
    """

    def __init__(self, store: dist.Store | None, rank: int, world_size: int, place: str, timeout: float):
        if store is None:
            if world_size > 1 and not dist.is_initialized():
                raise CheckpointError("several ranks need init_process_group, or a coordinator, before a store")
            store = dist.HashStore() if world_size == 1 else dist.distributed_c10d._get_default_store()
        self.rank, self.world_size, self.timeout, self._place = rank, world_size, timeout, place
        # Every rank counts its own constructions, so that a second store on the same folder starts clean.
        instance = store.add(f"checkpoint/instance/{rank}", 1)
        self._store = dist.PrefixStore(f"checkpoint/{instance}", store)
        self._round = 0
        self._heard = 0  # the last round that all whom this rank writes to are known to have reached
        self._posted: dict[int, list[str]] = {}
        self._signs: dict[int, tuple[bytes, float]] = {}  # rank -> its last sign of life, and when it was first seen
        self._beating: Event | None = None

    def next_round(self) -> int:
        """Begin a new exchange, forgetting messages of earlier ones that everybody has read."""
        self._round += 1
        for number in [number for number in self._posted if number < self._heard]:
            for key in self._posted.pop(number):
                self._store.delete_key(key)
        if self.world_size > 1 and self._beating is None:
            self._beating = _beat(self._store, self.rank, weakref.ref(self))
            self._agree(self._round)
        return self._round

    def _agree(self, number: int) -> None:
        """Raise CheckpointError on all ranks if they do not speak about the same place."""
        with self.broadcast_errors(number):
            places = self.gather(number, "place", self._place)
            if places is not None and len(set(places)) > 1:
                other = next(rank for rank, place in enumerate(places) if place != places[0])
                raise CheckpointError(
                    f"the ranks do not write to one folder: rank 0 has {places[0]}, rank {other} has {places[other]}. "
                    "Give all of them the same absolute run_dir"
                )
            self.share(number, "agreed", True)

    def post(self, number: int, key: str, value: Any) -> None:
        """Leave a JSON message for the others."""
        name = f"{number}/{key}"
        self._posted.setdefault(number, []).append(name)
        self._store.set(name, json.dumps(value))

    @contextmanager
    def broadcast_errors(self, number: int) -> Iterator[None]:
        """Whatever goes wrong inside, everybody who waits in this round learns that it is lost, and why at first."""
        try:
            yield
        except BaseException as error:
            what = str(error) if isinstance(error, CheckpointError) else f"{type(error).__name__}: {error}"
            self._posted.setdefault(number, []).append(f"{number}/failed")
            news = json.dumps({"kind": type(error).__name__, "what": f"rank {self.rank}: {what}"})
            with suppress(RuntimeError):  # the store's host is gone, and with it whoever could have been told
                self._store.compare_set(f"{number}/failed", "", news)
            raise

    def fetch(self, number: int, key: str, sender: int) -> Any:
        """Wait for a message. Raises CheckpointError when some rank failed, or the sender is dead or too slow."""
        name, failed = f"{number}/{key}", f"{number}/failed"
        begin = time.monotonic()
        looked = begin
        try:
            while not self._store.check([name]):
                if self._store.check([failed]):
                    news = json.loads(self._store.get(failed))
                    raise _TOLD.get(news["kind"], CheckpointError)(news["what"])
                now = time.monotonic()
                if now - begin > self.timeout:
                    raise CheckpointError(
                        f"no news of {key!r} from rank {sender} for {self.timeout:.0f} s (patience_minutes)"
                    )
                if now - looked > min(BEAT, SILENCE / 4):
                    looked = now
                    self._check_alive(sender, now)
                time.sleep(0.005)
            return json.loads(self._store.get(name))
        except dist.DistError as error:
            raise CheckpointError(f"the ranks cannot reach one another any more; one may be dead: {error}") from error

    def _check_alive(self, rank: int, now: float) -> None:
        """Raise CheckpointError if a rank that has given signs of life no longer does."""
        name = f"alive/{rank}"
        if not self._store.check([name]):
            return  # it has not come this far yet
        sign = self._store.get(name)
        last, since = self._signs.get(rank, (b"", now))
        if sign != last:
            self._signs[rank] = sign, now
        elif now - since > SILENCE:
            raise CheckpointError(f"rank {rank} has given no sign of life for {now - since:.0f} s: it is dead")

    def gather(self, number: int, key: str, value: Any) -> list[Any] | None:
        """Give a value; rank 0 gets those of all ranks in order, the others None."""
        self.post(number, f"{key}/{self.rank}", value)
        if self.rank:
            return None
        values = [self.fetch(number, f"{key}/{rank}", rank) for rank in range(self.world_size)]
        self._heard = number
        return values

    def share(self, number: int, key: str, value: Any) -> Any:
        """Rank 0's value, on all ranks."""
        if self.rank == 0:
            self.post(number, key, value)
            return value
        value = self.fetch(number, key, 0)
        self._heard = number
        return value

    def close(self) -> None:
        """Give no more signs of life until the next round."""
        if self._beating is not None:
            self._beating.set()
            self._beating = None


def _beat(store: dist.Store, rank: int, owner: weakref.ref[Coordinator]) -> Event:
    """Leave a sign of life every few seconds in a thread; setting the event ends it, as does the owner's end."""
    stop = Event()

    def work() -> None:
        number = 0
        while owner() is not None:
            try:
                store.set(f"alive/{rank}", str(number := number + 1))
            except RuntimeError:  # the store's host is gone: whoever waits for this rank learns that otherwise
                return
            if stop.wait(BEAT):
                return

    thread = Thread(target=work, name="checkpoint-alive", daemon=True)
    thread.start()

    def end() -> None:
        stop.set()
        thread.join(1.0)  # not inside the store's code when the interpreter ends

    atexit.register(end)
    return stop
