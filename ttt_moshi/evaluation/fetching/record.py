"""What was fetched: `fetched.json` in the folder, with the digest of every file.

A digest that nobody published is that of the first time, and what comes later is held against it; so the file is worth
keeping beside results, and may be put into an empty folder to have the same files again or none.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ttt_moshi.evaluation.documents import read_json
from ttt_moshi.evaluation.errors import EvaluationError, well_formed
from ttt_moshi.evaluation.results import write_json

NAME = "fetched.json"


@dataclass
class Fetched:
    """One data set.

    Args:
        revision: commit of the repository, None for an address.
        archives: SHA-256 of those that were unpacked, by name.
        files: SHA-256 of those that lie here, by their paths below the folder of the data set.
    """

    source: str
    revision: str | None = None
    archives: dict[str, str] = field(default_factory=dict)
    files: dict[str, str] = field(default_factory=dict)


def read_record(out: Path) -> dict[str, Fetched]:
    """By name; empty where nothing was fetched yet. Raises `EvaluationError` for a file that is no such record."""
    path = out / NAME
    if not path.is_file():
        return {}
    with well_formed(path):
        found: dict[str, Any] = read_json(path)
        return {name: _checked(Fetched(**values)) for name, values in found.items()}


def _checked(one: Fetched) -> Fetched:
    """Raises ValueError for what is no record."""
    texts = [one.source, *one.archives.items(), *one.files.items()]
    for text in (word for entry in texts for word in (entry if isinstance(entry, tuple) else (entry,))):
        if not isinstance(text, str):
            raise ValueError(f"{text!r} is neither a name nor a digest")
    return one


def write_record(out: Path, record: dict[str, Fetched]) -> None:
    """Raises `EvaluationError` where it cannot be written."""
    write_json(out / NAME, {name: asdict(one) for name, one in record.items()})


def same_source(name: str, record: dict[str, Fetched], source: str) -> Fetched:
    """The record of a data set, a new one where there is none.

    Raises:
        EvaluationError: under this name something else was fetched here.
    """
    found = record.setdefault(name, Fetched(source))
    if found.source != source:
        raise EvaluationError(
            f"`{name}` was fetched here from {found.source}, and not from {source}: choose another --out"
        )
    return found
