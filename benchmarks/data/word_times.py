"""How far off are the word times that `ttt-moshi data prepare` guesses from plain transcripts?

    python benchmarks/data/word_times.py FOLDER [--align pocketsphinx]

FOLDER holds stereo recordings with word times (either transcript layout). Their words are written down without times,
one line per turn, prepared as plain transcripts, and compared with the true times.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path

import numpy as np

from ttt_moshi.data.prepare import prepare
from ttt_moshi.data.prepare_one import Choices
from ttt_moshi.data.transcripts import MAIN_SPEAKER, Word, read_transcript


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="stereo wavs with .json transcripts beside them")
    parser.add_argument("--align", choices=("pocketsphinx",), help="as in `data prepare`")
    args = parser.parse_args()
    folder = args.folder
    everything: list[float] = []
    with tempfile.TemporaryDirectory() as scratch:
        plain, out = Path(scratch, "plain"), Path(scratch, "out")
        plain.mkdir()
        truth = {path.stem: read_transcript(path).words for path in sorted(folder.glob("*.json"))}
        for name, words in truth.items():
            shutil.copy(folder / f"{name}.wav", plain)
            (plain / f"{name}.txt").write_text(as_text(words), encoding="utf-8")
        for outcome in prepare(plain, out, Choices(align=args.align)).outcomes:
            print(f"{outcome.source}: {outcome.done[-1]}")
        for name, words in truth.items():
            guessed = read_transcript(out / "recordings" / f"{name}.json").words
            for speaker in ("A", "B"):
                errors = np.abs(np.subtract(starts(guessed, speaker), starts(words, speaker)))
                everything += errors.tolist()
                median, high = np.percentile(errors, [50, 90])
                print(
                    f"{name} {speaker}: {len(errors)} words, start off by {median:.2f} s (median), {high:.2f} s (90 %)"
                )
        median, high = np.percentile(everything, [50, 90])
        print(f"together: {len(everything)} words, start off by {median:.2f} s (median), {high:.2f} s (90 %)")


def as_text(words: Sequence[Word]) -> str:
    turns = groupby(words, key=lambda word: word.speaker == MAIN_SPEAKER)
    return "".join(f"{'A' if main else 'B'}: {' '.join(word.text for word in turn)}\n" for main, turn in turns)


def starts(words: Sequence[Word], speaker: str) -> list[float]:
    """Start of every word; an entry of several words counts as several that start together."""
    mine = [word for word in words if (word.speaker == MAIN_SPEAKER) == (speaker == "A")]
    return [word.start for word in mine for _ in word.text.split()]


if __name__ == "__main__":
    main()
