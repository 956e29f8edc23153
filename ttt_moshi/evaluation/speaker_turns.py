"""Who speaks when, from the words of a transcript."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

from ttt_moshi.data.transcripts import MAIN_SPEAKER, Word
from ttt_moshi.frames import FRAME_RATE


@dataclass(frozen=True)
class SpeakerTurn:
    """Consecutive words of the agent or of the user: frames [start, stop) of the recording."""

    agent: bool
    start: int
    stop: int


def speaker_turns(words: Sequence[Word]) -> list[SpeakerTurn]:
    """The turns of words in the order of their start times: a turn ends where the other one's next word begins it.

    Turns overlap where the speakers do. Everybody but the agent is the user.
    """
    turns = []
    for agent, group in groupby(words, key=lambda word: word.speaker == MAIN_SPEAKER):
        own = list(group)
        start = math.floor(own[0].start * FRAME_RATE)
        stop = math.ceil(max(word.end for word in own) * FRAME_RATE)
        turns.append(SpeakerTurn(agent, start, max(stop, start + 1)))
    return turns
