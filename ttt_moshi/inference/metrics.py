"""What a server tells about itself, in the form that Prometheus reads."""

from __future__ import annotations

from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from ttt_moshi.inference.engine import TICK_SECONDS, Tick

_BUCKETS = (0.005, 0.01, 0.02, 0.03, 0.04, 0.06, TICK_SECONDS, 0.12, 0.16, 0.24, 0.5, 1.0, 2.0)


class Metrics:
    """Counters of one server, in a registry of their own."""

    def __init__(self, slots: int) -> None:
        self._registry = CollectorRegistry()
        place: dict[str, Any] = {"namespace": "ttt_moshi", "registry": self._registry}
        Gauge("slots", "places for conversations", **place).set(slots)
        self.talking = Gauge("talking", "conversations that are going on", **place)
        self.queueing = Gauge("queueing", "visitors who wait for a place", **place)
        self.frames = Counter("frames", "frames of users that were heard", **place)
        self.late = Counter(
            "late_frames", "frames that waited longer than a frame lasts before they were heard", **place
        )
        self.dropped = Counter("dropped_frames", "frames that came too late and were not heard", **place)
        self.saved = Counter("saved_sessions", "times that a conversation was saved", **place)
        self.save_failures = Counter("failed_saves", "times that a conversation could not be saved", **place)
        self.closed = Counter("closed_connections", "connections that ended, by web socket code", ["code"], **place)
        self.tick_seconds = Histogram("tick_seconds", "time of one tick of all slots", buckets=_BUCKETS, **place)
        self.wait_seconds = Histogram(
            "wait_seconds", "time that a frame waited for its tick", buckets=_BUCKETS, **place
        )

    def tick(self, tick: Tick) -> None:
        """Counts one tick."""
        self.tick_seconds.observe(tick.seconds)
        self.frames.inc(len(tick.waited))
        for waited in tick.waited.values():
            self.wait_seconds.observe(waited)
            self.late.inc(waited > TICK_SECONDS)

    def text(self) -> bytes:
        """The page that Prometheus reads."""
        return generate_latest(self._registry)
