"""What `data prepare` has done but not finished: a folder from which the same command goes on, wherever it ended.

`tried.jsonl` has the outcomes, `done/` what was made, under names that no other recording has, and `whole/` is what
becomes the data set. `named.json` tells what in there was made under which name, as long as it may be needed again.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TextIO

from blake3 import blake3

from ttt_moshi.data.errors import DataError
from ttt_moshi.data.prepare_one import Item, Outcome
from ttt_moshi.data.transcripts import transcript_path
from ttt_moshi.files import read_text, write_atomically

_TRIED = "tried.jsonl"
_NAMED = "named.json"


@contextmanager
def under_way(partial: Path, settings: Mapping[str, object]) -> Iterator[tuple[dict[str, Outcome], TextIO]]:
    """Outcomes of an interrupted call with the same settings, by the state of their files, and where to log others.

    Raises:
        DataError: another process is at it.
    """
    partial.mkdir(parents=True, exist_ok=True)
    path = partial / _TRIED
    with path.open("a+", encoding="utf-8") as record:
        try:
            fcntl.flock(record, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise DataError(f"{partial} is being written by another process") from None
        record.seek(0)
        earlier = _earlier(record, json.dumps(settings))
        if not earlier:
            record.truncate(0)
            for other in partial.iterdir():
                if other != path:
                    shutil.rmtree(other) if other.is_dir() and not other.is_symlink() else other.unlink()
            record.write(json.dumps(settings) + "\n")
            record.flush()
        _take_names_back(partial)
        yield earlier, record


def log_outcome(record: TextIO, state: str, outcome: Outcome) -> None:
    """Remembers what became of a recording whose files are in that state."""
    record.write(json.dumps([state, asdict(outcome)]) + "\n")
    record.flush()


def made(partial: Path, item: Item) -> Path:
    """Where a recording is made, under a name that no other has and that is never too long."""
    return partial / "done" / f"{blake3(os.fsencode(item.name)).hexdigest()}.wav"


def whole(partial: Path) -> Path:
    """What becomes the data set."""
    return partial / "whole"


def give_names(partial: Path, recordings: Iterable[tuple[Item, Outcome]]) -> None:
    """Gives recordings that were made, with their transcripts, the names of their outcomes."""
    moves: list[tuple[Path, Path]] = []
    for item, outcome in recordings:
        assert outcome.path is not None
        old, new = made(partial, item), whole(partial) / outcome.path
        moves.append((old, new))
        if outcome.word_times != "none":
            moves.append((transcript_path(old), transcript_path(new)))
    named = {old.name: new.relative_to(whole(partial)).as_posix() for old, new in moves}
    write_atomically(partial / _NAMED, json.dumps(named).encode())
    for old, new in moves:
        new.parent.mkdir(parents=True, exist_ok=True)
        old.replace(new)


def _take_names_back(partial: Path) -> None:
    """What has a name already may get another one, when its neighbours have changed."""
    path = partial / _NAMED
    if path.is_file():
        for old, new in json.loads(read_text(path)).items():
            if (whole(partial) / new).is_file():
                (whole(partial) / new).replace(partial / "done" / old)
        path.unlink()
    shutil.rmtree(whole(partial), ignore_errors=True)


def _earlier(record: Iterable[str], settings: str) -> dict[str, Outcome]:
    lines = iter(record)
    if next(lines, "").strip() != settings:
        return {}
    found = {}
    for line in lines:
        try:
            state, outcome = json.loads(line)
            found[state] = Outcome(**outcome)
        except (ValueError, TypeError):
            continue  # a line that an interruption cut short
    return found
