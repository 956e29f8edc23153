"""What a task gives back."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass
class Outcome:
    """An entry of `results.json`, the examples behind it, and what identifies them."""

    entry: dict[str, Any]
    samples: list[dict[str, Any]]  # one JSON line per item, with a stable `id`
    scores: dict[str, float] = field(default_factory=dict)  # per recording, higher = likelier, for submission files
    data_digest: str = ""
