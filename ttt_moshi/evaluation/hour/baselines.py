"""The model beside what it has to beat: its window without a memory, with a sink, and memories that know nothing."""

from __future__ import annotations

from typing import Any

from ttt_moshi.evaluation.scoring.engine import Engine

SINK = 4
"""frames, as StreamingLLM (arXiv 2309.17453) keeps"""

WINDOW, SINK_NAME, MEMORY, WIDE = "window", "sink", "memory", "wide"


def baselines(engine: Engine, window: int, wide: int, forget: int, sink: int) -> dict[str, Engine]:
    """The model as it is read by each baseline, by name.

    `window` is attention alone, `sink` the same with its first frames kept, `wide` attention alone through a window of
    `wide` frames: the ceiling. A model with a memory adds `memory`, and what must not help: `no_writes`, which like
    `window` is exactly zero where attention does not reach; `reset` (emptied every `forget` frames) and `swapped` (then
    that of another recording), past which a little comes through hidden states that are still in the window.
    """
    scorer = engine.scorer
    alone: dict[str, Any] = {"gate": 0.0} if scorer.has_memory else {}
    narrow: dict[str, Any] = {"window": window, "sink": 0}
    found = {WINDOW: narrow | alone}
    if sink < window:
        found[SINK_NAME] = narrow | alone | {"sink": sink}
    if scorer.has_memory:
        found |= {
            MEMORY: narrow,
            "no_writes": narrow | {"inner_lr": 0.0},
            "reset": narrow | {"reset_every": forget},
            "swapped": narrow | {"swap_every": forget},
        }
    found[WIDE] = alone | {"window": wide, "sink": 0}
    return {name: engine.varied(**changes) for name, changes in found.items()}
