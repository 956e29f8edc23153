"""How ranks tell each other results and failures: small JSON messages in a key-value store, never a collective.

A background thread may use it while training runs its own collectives. Waiting polls, because a blocking call would
hold the store's connection against everybody else in the process.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch.distributed as dist

from ttt_moshi.checkpoint.errors import CheckpointError, LostLock, UnreadableCheckpoint

_TOLD = {kind.__name__: kind for kind in (LostLock, UnreadableCheckpoint)}  # errors that keep their kind on all ranks


class Coordinator:
    """One conversation of `world_size` ranks. A round is one save, load or opening; all ranks make the same rounds."""

    def __init__(self, store: dist.Store | None, rank: int, world_size: int, name: str, timeout: float):
        if store is None:
            if world_size > 1 and not dist.is_initialized():
                raise CheckpointError("several ranks need init_process_group, or a coordinator, before a store")
            store = dist.HashStore() if world_size == 1 else dist.distributed_c10d._get_default_store()
        self.rank, self.world_size, self._timeout = rank, world_size, timeout
        # Every rank counts its own constructions, so that a second store on the same folder starts clean.
        instance = store.add(f"checkpoint/{name}/instance/{rank}", 1)
        self._store = dist.PrefixStore(f"checkpoint/{name}/{instance}", store)
        self._round = 0
        self._heard = 0  # the last round that all whom this rank writes to are known to have reached
        self._posted: dict[int, list[str]] = {}

    def next_round(self) -> int:
        """Begin a new exchange, forgetting messages of earlier ones that everybody has read."""
        self._round += 1
        for number in [number for number in self._posted if number < self._heard]:
            for key in self._posted.pop(number):
                self._store.delete_key(key)
        return self._round

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
            self._store.compare_set(f"{number}/failed", "", news)
            raise

    def fetch(self, number: int, key: str) -> Any:
        """Wait for a message. Raises CheckpointError when some rank failed, or after the timeout."""
        name, failed = f"{number}/{key}", f"{number}/failed"
        deadline = time.monotonic() + self._timeout
        while not self._store.check([name]):
            if self._store.check([failed]):
                news = json.loads(self._store.get(failed))
                raise _TOLD.get(news["kind"], CheckpointError)(news["what"])
            if time.monotonic() > deadline:
                raise CheckpointError(f"no news of {key!r} from other ranks for {self._timeout:.0f} s; one may be dead")
            time.sleep(0.005)
        return json.loads(self._store.get(name))

    def gather(self, number: int, key: str, value: Any) -> list[Any] | None:
        """Give a value; rank 0 gets those of all ranks in order, the others None."""
        self.post(number, f"{key}/{self.rank}", value)
        if self.rank:
            return None
        values = [self.fetch(number, f"{key}/{rank}") for rank in range(self.world_size)]
        self._heard = number
        return values

    def share(self, number: int, key: str, value: Any) -> Any:
        """Rank 0's value, on all ranks."""
        if self.rank == 0:
            self.post(number, key, value)
            return value
        value = self.fetch(number, key)
        self._heard = number
        return value
