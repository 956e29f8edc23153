"""Plain transcripts: words without times, one or two speakers."""

from __future__ import annotations

import re
from pathlib import Path

from ttt_moshi.data.errors import DataError
from ttt_moshi.data.transcripts import MAIN_SPEAKER, OTHER_SPEAKER, MoshiSpeaker

_LABEL = re.compile(r"^\s*([AB])\s*:\s*(.*)$")


def read_plain_text(path: Path, moshi_speaker: MoshiSpeaker) -> list[tuple[str, str]]:
    """`(speaker, word)` pairs in the order of the file.

    A line that begins with `A:` or `B:` belongs to that speaker and so do the lines after it until the next label; text
    before any label is Moshi's.

    Raises:
        DataError: a file that is not UTF-8 text, or that holds no words.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text: {error}") from error
    speaker = MAIN_SPEAKER
    pairs = []
    for line in lines:
        label = _LABEL.match(line)
        if label:
            speaker = MAIN_SPEAKER if label[1] == moshi_speaker else OTHER_SPEAKER
            line = label[2]
        pairs += [(speaker, word) for word in line.split()]
    if not pairs:
        raise DataError(f"{path} holds no words")
    return pairs
