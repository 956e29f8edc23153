"""What lies in a folder of a benchmark, without what operating systems leave in folders and archives."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path


def files_in(folder: Path, *suffixes: str) -> list[Path]:
    """The files of a folder that end so, in small letters or capital ones, by name."""
    return chosen_of(folder, filter(Path.is_file, folder.glob("*")), *suffixes)


def folders_in(folder: Path) -> list[Path]:
    """The folders in a folder, by name."""
    return sorted(path for path in folder.glob("*") if path.is_dir() and not _is_left_over(path.name))


def chosen_of(folder: Path, paths: Iterable[Path], *suffixes: str) -> list[Path]:
    """Of some files below a folder those that end so, in small letters or capital ones, by name."""
    return sorted(
        path
        for path in paths
        if path.suffix.lower() in suffixes and not any(map(_is_left_over, path.relative_to(folder).parts))
    )


def _is_left_over(name: str) -> bool:
    """Hidden files, such as the `._NAME` that macOS puts beside every file, and what its archives add."""
    return name.startswith(".") or name == "__MACOSX"
