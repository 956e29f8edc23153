"""What is wrong with a recording and its words: one set of rules for `prepare`, `check` and training."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np

from ttt_moshi.data import fit
from ttt_moshi.data.fit import Fit, measure
from ttt_moshi.data.levels import Levels
from ttt_moshi.data.transcripts import MAIN_SPEAKER, Transcript, Word, told_repairs
from ttt_moshi.frames import FRAME_RATE

VERSION = 5
"""raised whenever the same files would be judged otherwise"""

MAX_REPAIRED = 0.1
"""share of the words of a transcript that may have had no usable time"""

_ROUNDING = 1 / FRAME_RATE
_MILLISECONDS = 20.0
_WINDOW = 5.0
_FASTEST = 20
"""words a second in so many seconds; characters of scripts without spaces count as words"""


@dataclass(frozen=True)
class Finding:
    """Something about one file. A problem needs mending; a note is a rule of this program that applies."""

    level: Literal["problem", "note"]
    kind: str
    where: str
    message: str


def judge_levels(name: str, levels: Levels) -> Iterator[Finding]:
    """Of audio with Moshi's channel first, if there is one channel or two."""
    whose = ["Moshi's channel", "the user's channel"]
    if levels.integer_scale:
        peak = max(levels.peaks)
        message = f"its samples reach {peak:,.0f} instead of 1: integers stored as floats, to be divided by full scale"
        yield Finding("problem", "integer scale", name, message)
        return
    if levels.silent_channel(0):
        yield Finding("problem", "silence", name, "Moshi's channel is silent from beginning to end")
    elif len(levels.peaks) == 2 and levels.silent_channel(1):
        yield Finding("note", "silence", name, "the user's channel is silent from beginning to end")
    if levels.identical and not levels.silent_channel(0):
        message = (
            "both channels hold the same sound: mono as stereo; `ttt-moshi data prepare --channels 1` makes it mono"
        )
        yield Finding("problem", "identical channels", name, message)
    for channel, channel_name in zip(range(len(levels.peaks)), whose, strict=False):
        if levels.clips(channel):
            message = f"{channel_name} is cut off at full scale in {levels.clipped[channel]:.1%} of its samples"
            yield Finding("note", "clipping", name, message)
        if levels.constant(channel):
            message = f"{channel_name} has a constant offset of {levels.means[channel]:.3f}"
            yield Finding("note", "offset", name, message)
        if levels.hums(channel):
            mains, share = levels.hum[channel]
            message = f"mains hum of {mains} Hz is {share:.0%} of the energy of {channel_name}"
            yield Finding("note", "hum", name, message)
        if levels.quiet(channel):
            decibels = 20 * math.log10(levels.loudness[channel])
            message = f"{channel_name} is very quiet ({decibels:.0f} dB); `ttt-moshi data prepare --normalise` lifts it"
            yield Finding("note", "quiet", name, message)


def judge_words(
    name: str, transcript: Transcript, seconds: float, decibels: np.ndarray | None, max_repaired: float = MAX_REPAIRED
) -> Iterator[Finding]:
    """Of a transcript beside a recording of so many seconds.

    Args:
        decibels: energies `[channels, hops]`, Moshi's channel first; None judges the words alone.
    """
    mine = [word for word in transcript.words if word.speaker == MAIN_SPEAKER]
    if not transcript.words:
        yield Finding("problem", "empty transcript", name, "it holds no words")
        return
    if not mine:
        others = ", ".join(sorted({word.speaker for word in transcript.words}))
        yield Finding("problem", "empty transcript", name, f"no word is Moshi's ({MAIN_SPEAKER}), all are {others}'s")
    if transcript.approximate:
        yield Finding("note", "word times", name, "word times are approximate")
    for told in told_repairs(transcript.repairs):
        yield Finding("note", "repaired", name, told)
    if transcript.repaired_share > max_repaired:
        message = f"{transcript.repaired_share:.0%} of its words had no usable time, more than {max_repaired:.0%}"
        yield Finding("problem", "too many repairs", name, message)
    last = max(word.end for word in transcript.words)
    if last > _MILLISECONDS * seconds and last / 1000 <= seconds + 1:
        message = f"its times go to {last:,.0f} in a recording of {seconds:.2f} s: milliseconds instead of seconds"
        yield Finding("problem", "milliseconds", name, message)
        return
    beyond = [word for word in transcript.words if word.end > seconds + _ROUNDING]
    if beyond:
        message = f"{_count(beyond)} end after the recording does ({seconds:.2f} s)"
        yield Finding("problem", "beyond the end", name, message)
    empty = [word for word in transcript.words if word.end <= word.start]
    if empty:
        yield Finding("note", "no duration", name, f"{_count(empty)} without duration, left out of the text stream")
    starts = np.array([word.start for word in mine])
    most = int((np.searchsorted(starts, starts + _WINDOW) - np.arange(len(starts))).max(initial=0))
    if most > _FASTEST * _WINDOW:
        message = f"{most} words of Moshi begin within {_WINDOW:g} s: nobody speaks so fast"
        yield Finding("problem", "too many words", name, message)
    if decibels is not None and len(mine) >= fit.ENOUGH_WORDS:
        yield from judge_fit(name, measure(transcript.words, decibels))


def judge_fit(name: str, found: Fit) -> Iterator[Finding]:
    """Whether words and audio belong together; at most the most likely explanation of a misfit."""
    if found.swapped - found.own > 2 * fit.BETTER and found.swapped > fit.GOOD:
        message = "the words fit the other channel: the channels, or the speakers, are exchanged (`--moshi_speaker`)"
        yield Finding("problem", "swapped channels", name, message)
    elif abs(found.lag) >= fit.SHIFT and found.best > fit.GOOD and found.best - found.own > fit.BETTER:
        late = "late" if found.lag < 0 else "early"
        yield Finding("problem", "shifted words", name, f"the words are about {abs(found.lag):.1f} s too {late}")
    elif (
        found.own < fit.POOR
        and found.best < fit.GOOD
        and found.in_silence > fit.IN_SILENCE
        and not found.together > fit.GOOD
    ):
        message = "the words do not fit the audio at any time: the transcript may be that of another recording"
        yield Finding("problem", "another recording", name, message)
    elif found.in_silence > fit.IN_SILENCE:
        message = f"Moshi's channel is silent in {found.in_silence:.0%} of Moshi's words: some may be the user's"
        yield Finding("problem", "words in silence", name, message)
    elif found.without_words > fit.WITHOUT_WORDS:
        message = (
            f"{found.seconds_without_words:.0f} s of speech on Moshi's channel, {found.without_words:.0%} of it, "
            "have no words"
        )
        long = found.seconds_without_words > fit.WITHOUT_WORDS_SECONDS
        yield Finding("problem" if long else "note", "speech without words", name, message)


def _count(words: list[Word]) -> str:
    what = "1 word" if len(words) == 1 else f"{len(words)} words"
    return f"{what} (first {words[0].text!r} at {words[0].start:.2f} s)"
