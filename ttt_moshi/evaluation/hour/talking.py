"""What a model does that talks by itself for an hour with a user who is played to it, minute by minute."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any, Literal

import numpy as np

from ttt_moshi.data import Codec
from ttt_moshi.data.voiced import Span
from ttt_moshi.evaluation.conversations import Talker
from ttt_moshi.evaluation.errors import EvaluationError
from ttt_moshi.evaluation.hour.planted import Held
from ttt_moshi.evaluation.scoring.engine import Engine
from ttt_moshi.evaluation.speech_quality import RATINGS, Listener
from ttt_moshi.evaluation.tasks.curves import by_minute, group_sums
from ttt_moshi.evaluation.tasks.free_running import MINUTE, STATISTICS, collapse_minute, minutes_of
from ttt_moshi.evaluation.turn_events import share_of_time, speech_spans_of, turn_events, within
from ttt_moshi.extras import MissingPackageError
from ttt_moshi.inference.driver import Conversation, Item

MINUTE_SEC = 60.0
OWN = ("words_per_minute", "silence", "overlap", "gap", "nll_under_base")
"""share of time without a sound of the agent; seconds in which both speak; median seconds until the agent takes the
turn; nats a token (text and semantic) of what the agent said"""


def free_running(
    engine: Engine, talker: Talker, codec: Codec, items: Sequence[Item], frames: int, what: str
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The curves over minutes and what each conversation did."""
    heard = engine.counting(f"{what}: talking", frames * len(items))
    conversations = talker.converse(what, items, engine.ranks, heard)
    likelihood, unlikely = _under_base(engine, conversations, codec, what)
    listener, deaf = _listener()
    minutes = []
    for one, nll in zip(conversations, likelihood, strict=True):
        agent, user = spans_of(one, "output"), spans_of(one, "input")
        rated = listener.rate_minutes(one.blocks("output"), agent) if listener else []
        minutes.append(minute_statistics(one, agent, user, engine.scorer.text_padding, nll, rated))
    collapsed = [
        collapse_minute(minutes_of(conversation.tokens[:2], engine.scorer.text_padding))
        for conversation in conversations
    ]
    entry: dict[str, Any] = {
        "conversations": len(conversations),
        "frames": frames,
        "collapsed": sum(minute is not None for minute in collapsed),
        "collapse_minutes": [minute for minute in collapsed if minute is not None],
        "minutes": by_minute(minutes, (*STATISTICS, *OWN, *RATINGS)),
    }
    for name, reason in (("nll_under_base", unlikely), ("dnsmos", deaf)):
        if reason is not None:
            entry[name] = {"status": "skipped", "reason": reason}
    samples = [
        {"id": conversation.folder.name, "collapse_minute": minute, "minutes": own}
        for conversation, minute, own in zip(conversations, collapsed, minutes, strict=True)
    ]
    return entry, samples


def spans_of(conversation: Conversation, side: Literal["output", "input"]) -> list[Span]:
    """Where a side speaks."""
    return speech_spans_of(conversation.blocks(side))


def minute_statistics(
    conversation: Conversation,
    agent: Sequence[Span],
    user: Sequence[Span],
    padding: tuple[int, int],
    nll: np.ndarray | None,
    rated: Sequence[Mapping[str, float]] = (),
) -> list[dict[str, Any]]:
    """Everything about each minute of a conversation.

    Args:
        agent, user: where either speaks.
        nll: [1 + dep_q, frames] of what the agent said, None where it is not known.
        rated: how good each minute sounds, as far as it is known.
    """
    events = turn_events(agent, user)
    found = []
    for number, minute in enumerate(minutes_of(conversation.tokens[:2], padding)):
        first = number * MINUTE
        start, end = number * MINUTE_SEC, min((number + 1) * MINUTE_SEC, conversation.seconds)
        here = within(events, start, end)
        gaps = [e.seconds for e in here if e.kind == "gap" and e.agent]
        said = sum(start <= word.start < end for word in conversation.words)
        statistics = asdict(minute) | {
            "words_per_minute": said * MINUTE_SEC / (end - start),
            "silence": 1 - share_of_time(agent, start, end),
            "overlap": sum(e.seconds for e in here if e.kind == "overlap"),
            "gap": float(np.median(gaps)) if gaps else None,
        }
        if nll is not None:
            sums = [group_sums(nll, group, first, first + MINUTE) for group in ("text", "semantic")]
            tokens = sum(count for _, count in sums)
            statistics["nll_under_base"] = sum(total for total, _ in sums) / tokens if tokens else None
        found.append({**statistics, **(rated[number] if number < len(rated) else {})})
    return found


def _listener() -> tuple[Listener | None, str | None]:
    """What rates the speech, or the reason why nothing does."""
    try:
        return Listener(), None
    except MissingPackageError as reason:
        return None, str(reason)


def _under_base(
    engine: Engine, conversations: Sequence[Conversation], codec: Codec, what: str
) -> tuple[Sequence[np.ndarray | None], str | None]:
    """NLL of every conversation's tokens under the base model, or the reason why there is none."""
    held = Held()
    try:
        base = engine.varied(base=True, window=None, sink=0).reading(held)
    except EvaluationError as reason:
        return [None] * len(conversations), str(reason)
    examples = []
    for conversation in conversations:
        user = codec.encode((block[None] for block in conversation.blocks("input")), 1)[0].numpy()
        frames = min(user.shape[1], conversation.tokens.shape[1])
        codes = np.concatenate([conversation.tokens[:, :frames], user[:, :frames]]).astype(np.int32)
        examples.append(held.add(conversation.folder.name, codes, [str(conversation.folder)]))
    nll = base.nll(examples, f"{what}: under the base model")
    return [nll[example.id] for example in examples], None
