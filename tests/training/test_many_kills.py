"""Ten kills in one run, at moments that nobody chose: while starting, in a step, in a save, while resuming."""

from __future__ import annotations

import random
import signal
import time
from collections.abc import Callable
from typing import Any

import pytest

STATEFUL = ("--train.stateful", "true", "--train.backprop_clips", "2", "--train.random_phase", "true")
KILLS, STEPS = 10, 60


@pytest.mark.slow
@pytest.mark.parametrize(
    ("seed", "ranks", "options"),
    [(1, 1, ()), (2, 1, ()), (3, 1, STATEFUL), (4, 1, STATEFUL), (5, 2, ("--batch_size", "1"))],
)
def test_ten_kills_change_nothing(launch: Callable[..., Any], seed: int, ranks: int, options: tuple[str, ...]) -> None:
    run = ("--max_steps", str(STEPS), "--ckpt_freq", "1", "--num_ckpt_keep", "2", "--duration_sec", "1.6", *options)
    whole = launch("whole", *run)
    whole.run(ranks=ranks)
    killed = launch("killed", *run)
    draw = random.Random(seed)
    logged = []
    for _ in range(KILLS):
        again = ("--checkpoint.resume", "true") if killed.store.steps() else ("--overwrite_run_dir", "true")
        while_starting = draw.random() < 0.2
        steps = len(killed.records) + draw.randint(1, 3)
        pause = draw.uniform(0.5, 3.0) if while_starting else draw.uniform(0.0, 0.1)

        def moment(starting: bool = while_starting, steps: int = steps, pause: float = pause) -> bool:
            # A resumed run first cuts its log back, so its length may fall before it grows.
            if not starting and len(killed.records) < steps:
                return False
            time.sleep(pause)
            return True

        status, _ = killed.run_until(moment, signal.SIGKILL, *again, ranks=ranks)
        assert status == -signal.SIGKILL
        logged.append(len(killed.records))
    killed.run("--checkpoint.resume", "true", ranks=ranks)
    print(f"killed {KILLS} times, having logged {logged} steps")
    assert killed.state_id(STEPS) == whole.state_id(STEPS)
    assert killed.timeless == whole.timeless
    assert len(set(logged)) > 2, "the kills did not fall into different places"
