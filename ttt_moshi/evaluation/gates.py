"""Does the model still talk? A few recorded users are played to a model in training, which talks by itself.

Teacher-forced losses can fall while a model that hears itself falls apart. A conversation fails a gate when it is

- empty: there is no word, or nothing to be heard of the agent;
- endless: from its first sound on, the agent is never silent for a second;
- looping: at least half of the sequences of four text tokens have occurred in it before.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch

from ttt_moshi.evaluation.conversations import Talker
from ttt_moshi.evaluation.errors import EvaluationStopped
from ttt_moshi.evaluation.recorded import TwoSides, two_sided
from ttt_moshi.evaluation.scoring.engine import ShouldStop
from ttt_moshi.evaluation.scoring.ranks import Ranks
from ttt_moshi.evaluation.tasks.free_running import REPEATED, repeated_grams
from ttt_moshi.evaluation.turn_events import share_of_time, speech_spans
from ttt_moshi.frames import SAMPLE_RATE
from ttt_moshi.inference.driver import Conversation, Driver, Item

FAILURES = ("empty", "endless", "loops")
RANKED = ("failed", *FAILURES, "off_length")
"""the smaller, the better"""
BREATH_SEC = 1.0


@dataclass(frozen=True)
class Gates:
    """What the conversations are like.

    Args:
        record: means over them: "failed" (in any gate), `FAILURES`, "silence" (share of time without a sound of the
            agent), and where the recorded agents speak "length_ratio" (seconds of speech over theirs) and "off_length"
            (mean of |log2| of it, from 0 as long to 3 for eight times or an eighth); "conversations".
        sample: float32 [samples], what the model says in the first one.
    """

    record: dict[str, float]
    sample: np.ndarray


def prompts(spec: str, count: int) -> list[TwoSides]:
    """The first recorded dialogues of a list.

    Raises:
        EvaluationError: one in which no user can be heard.
        DataError: a list or recording that cannot be used.
    """
    return two_sided(spec)[:count]


def pass_gates(
    driver: Driver,
    dialogues: Sequence[TwoSides],
    seconds: float,
    folder: Path,
    ranks: Ranks,
    padding: tuple[int, int],
    should_stop: ShouldStop,
) -> Gates:
    """Plays so many seconds of each dialogue's user. Call it on all ranks; each holds its share.

    Args:
        folder: where the conversations are written, in the place of earlier ones.
        padding: ids of PAD and EPAD in the text.

    Raises:
        EvaluationStopped: on all ranks, when one was asked to stop.
        EvaluationError: a conversation that broke off, or cannot be written.
    """
    samples = round(seconds * SAMPLE_RATE)

    def stop_if_asked(count: int) -> None:
        if should_stop():
            raise EvaluationStopped

    items = [Item(one.name, partial(_user, one, samples)) for one in dialogues]
    held = Talker(driver, folder.parent).converse(folder.name, items, ranks, stop_if_asked, overwrite=True)
    agents = ranks.together(lambda: [dialogue.read()[0, :samples] for dialogue in dialogues])
    found = [judge(said, recorded, padding) for said, recorded in zip(held, agents, strict=True)]
    names = dict.fromkeys(name for one in found for name in one)
    means = {name: float(np.mean([one[name] for one in found if name in one])) for name in names}
    return Gates({**means, "conversations": len(found)}, held[0].agent)


def _user(dialogue: TwoSides, samples: int) -> torch.Tensor:
    return torch.from_numpy(dialogue.read()[1, :samples].copy())


def judge(conversation: Conversation, recorded: np.ndarray, padding: tuple[int, int]) -> dict[str, float]:
    """One conversation beside what the recorded agent, float32 [samples], did at the same time: see `Gates`."""
    seconds, spans = conversation.seconds, speech_spans(conversation.agent)
    # After each stretch of speech; the last one lasts until the end.
    silences = [after - span.end for span, after in zip(spans, [*(s.start for s in spans[1:]), seconds], strict=False)]
    text = conversation.tokens[0]
    words = text[(text >= 0) & ~np.isin(text, padding)]
    repeated = repeated_grams(words)
    found = {
        "empty": float(not spans or not len(words)),
        "endless": float(bool(spans) and max(silences) < BREATH_SEC),
        "loops": float(repeated is not None and repeated >= REPEATED),
    }
    found = {"failed": max(found.values()), **found, "silence": 1 - share_of_time(spans, 0, seconds)}
    true = share_of_time(speech_spans(recorded), 0, seconds)
    if true:
        ratio = (1 - found["silence"]) / true
        found |= {"length_ratio": ratio, "off_length": float(min(3.0, abs(np.log2(max(ratio, 1e-9)))))}
    return found
