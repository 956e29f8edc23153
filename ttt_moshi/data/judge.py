"""The rules at training's door: what `data check` finds, asked once for every content."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict

from ttt_moshi.data.addresses import readable
from ttt_moshi.data.audio import AudioInfo
from ttt_moshi.data.digests import Digests
from ttt_moshi.data.listen import listen, moshi_first
from ttt_moshi.data.rules import VERSION, Finding, judge_levels, judge_words
from ttt_moshi.data.sources import Recording
from ttt_moshi.data.transcripts import read_transcript

CERTAIN = ("milliseconds", "swapped channels", "integer scale", "identical channels", "too many repairs")
"""kinds of problems with which nobody wants to train; the others may be right, and are warnings"""


def judge_recording(recording: Recording, digests: Digests) -> list[Finding]:
    """What is wrong with a recording and its transcript. Pre-tokenized recordings have neither audio nor words.

    Raises:
        DataError: a recording or transcript that cannot be read.
    """
    if recording.encoded:
        return []
    if recording.transcript is not None:
        read_transcript(recording.transcript, recording.moshi_speaker)
    asked = f"rules {VERSION} {recording.moshi_speaker} {recording.transcript_digest}"
    found = json.loads(digests.remember(recording.audio, asked, lambda _: json.dumps(list(_judge(recording)))))
    return [Finding(**finding) for finding in found]


def _judge(recording: Recording) -> Iterator[dict[str, str]]:
    assert isinstance(recording.info, AudioInfo)
    order = moshi_first(recording.info.channels, recording.moshi_speaker)
    levels, decibels = listen(recording.audio, order)
    yield from map(asdict, judge_levels(readable(str(recording.audio)), levels))
    if recording.transcript is not None:
        transcript = read_transcript(recording.transcript, recording.moshi_speaker)
        name = readable(str(recording.transcript))
        yield from map(asdict, judge_words(name, transcript, recording.info.seconds, decibels))
