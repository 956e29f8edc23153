"""How often do the rules of `ttt-moshi data check` miss that words and audio do not belong together, or cry wolf?

    python benchmarks/data/belongs.py FOLDER [--seconds 30]

FOLDER holds stereo recordings with word times beside them (any format that names A and B or SPEAKER_MAIN). Each, with
either speaker as Moshi, is cut into stretches and judged as it is and with one fault at a time.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from ttt_moshi.data.fit import ENOUGH_WORDS, measure
from ttt_moshi.data.listen import listen
from ttt_moshi.data.rules import judge_fit
from ttt_moshi.data.transcripts import MAIN_SPEAKER, OTHER_SPEAKER, Word, read_transcript
from ttt_moshi.data.voiced import HOP
from ttt_moshi.frames import SAMPLE_RATE


@dataclass(frozen=True)
class Stretch:
    """A part of a recording with Moshi's channel first."""

    recording: str
    words: tuple[Word, ...]
    decibels: np.ndarray


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seconds", type=float, default=30.0, help="length of a stretch (default: %(default)s)")
    args = parser.parse_args()
    stretches = [part for wav in sorted(args.folder.glob("*.wav")) for part in cut(wav, args.seconds)]
    counts: dict[str, Counter[str]] = {}
    for number, part in enumerate(stretches):
        for fault, words, decibels in faults(part, stretches[number + 1 :] + stretches[:number]):
            found = [finding.kind for finding in judge_fit("", measure(words, decibels))]
            counts.setdefault(fault, Counter())[found[0] if found else "no problem"] += 1
    print(f"{len(stretches)} stretches of {args.seconds:g} s with {ENOUGH_WORDS} words of the agent or more")
    for fault, verdicts in counts.items():
        missed = verdicts["no problem"]
        right = fault.startswith("as it is")
        rate = "false alarms" if right else "missed"
        wrong = verdicts.total() - missed if right else missed
        told = ", ".join(f"{kind} {count}" for kind, count in verdicts.most_common())
        print(f"{fault:<24}{rate} {wrong / verdicts.total():6.1%} of {verdicts.total()}   ({told})")


def cut(wav: Path, seconds: float) -> Iterator[Stretch]:
    """The stretches of a recording that have words enough to judge, for either speaker as Moshi."""
    words = read_transcript(wav.with_suffix(".json")).words
    _, decibels = listen(wav, (0, 1))
    hops = round(seconds * SAMPLE_RATE / HOP)
    for right in (False, True):
        told = [replace(w, speaker=_speaker(w, right)) for w in words]
        own = decibels[::-1] if right else decibels
        for first in range(0, decibels.shape[1] - hops + 1, hops):
            start = first * HOP / SAMPLE_RATE
            inside = _moved([w for w in told if start <= w.start and w.end <= start + seconds], -start)
            if sum(word.speaker == MAIN_SPEAKER for word in inside) >= ENOUGH_WORDS:
                yield Stretch(wav.stem, inside, own[:, first : first + hops])


def faults(part: Stretch, others: Sequence[Stretch]) -> Iterator[tuple[str, tuple[Word, ...], np.ndarray]]:
    """Names of faults with the words and energies that they leave."""
    words, decibels = part.words, part.decibels
    mine = tuple(word for word in words if word.speaker == MAIN_SPEAKER)
    yield "as it is", words, decibels
    yield "as it is, Moshi's alone", mine, decibels
    yield "channels swapped", words, decibels[::-1]
    for by in (1.0, 2.0, 5.0):
        yield f"{by:g} s late", _moved(words, by), decibels
        yield f"{by:g} s early", _moved(words, -by), decibels
    yield "all words are Moshi's", tuple(replace(word, speaker=MAIN_SPEAKER) for word in words), decibels
    foreign = next((other for other in others if other.recording != part.recording), None)
    if foreign is not None:
        yield "another recording's", foreign.words, decibels


def _moved(words: Sequence[Word], by: float) -> tuple[Word, ...]:
    return tuple(replace(w, start=max(0.0, w.start + by), end=max(0.0, w.end + by)) for w in words)


def _speaker(word: Word, right: bool) -> str:
    return MAIN_SPEAKER if (word.speaker == MAIN_SPEAKER) != right else OTHER_SPEAKER


if __name__ == "__main__":
    main()
