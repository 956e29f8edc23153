"""What an evaluation has written, for tests that compare it."""

import json
from collections.abc import Callable
from pathlib import Path


def results(folder: Path) -> dict:
    return json.loads((folder / "results.json").read_text())


def content(folder: Path, without: Callable[[str], bool]) -> dict[str, bytes]:
    """The files of a folder by their paths in it, but how long it took and where a part of the path is one of those
    `without`."""
    found = {path.relative_to(folder): path for path in folder.rglob("*") if path.is_file()}
    return {
        str(name): path.read_bytes()
        for name, path in found.items()
        if name.name != "timing.json" and not any(map(without, name.parts))
    }
