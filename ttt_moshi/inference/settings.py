"""How a server treats its visitors."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Settings:
    """How a server treats its visitors.

    Args:
        max_lag: seconds of a client's audio that may wait; of more the oldest is dropped. None drops nothing, and the
            client has to wait.
        max_queue: visitors who may wait for a place; others are turned away.
        idle_seconds: without audio, after which a visitor is let go.
        ping_seconds: between pings; one that is unanswered for half as long ends the connection.
        save_seconds: between saves of a conversation that goes on.
        greeting: whether Moshi may say a word before a visitor makes a sound, where the visitor does not choose.
        token: that clients must know; None lets everybody in.
        hosts: names under which browsers may reach the server; None any. A page of another site that makes its own name
            lead here is not among them.
        origins: other pages (https://example.org) that may talk to the server.
    """

    max_lag: float | None = 0.5
    max_queue: int = 16
    idle_seconds: float = 60.0
    ping_seconds: float = 5.0
    save_seconds: float = 30.0
    greeting: bool = True
    token: str | None = None
    hosts: frozenset[str] | None = None
    origins: frozenset[str] = field(default_factory=frozenset)
