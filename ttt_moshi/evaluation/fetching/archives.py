"""Unpacking archives of data sets: files and folders alone, and none outside of the folder."""

from __future__ import annotations

import shutil
import tarfile
import zipfile
import zlib
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import IO

from ttt_moshi.evaluation.errors import EvaluationError, writing

SUFFIXES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")


def is_archive(name: str) -> bool:
    """By its name."""
    return name.lower().endswith(SUFFIXES)


def unpack(archive: Path, folder: Path, taken: Collection[Path] = ()) -> list[str]:
    """Unpacks what is not there yet and returns the names of all files, relative to `folder`.

    Args:
        taken: paths that no file of the archive may have.

    Raises:
        EvaluationError: an archive that is corrupt, holds links, or names a path outside of `folder` or one of `taken`.
    """
    taken = {path.resolve() for path in taken}
    names = []
    try:
        for name, content in _members(archive):
            path = inside(folder, name, archive.name)
            if path in taken:
                raise EvaluationError(f"{archive.name} holds a file {name!r}, which is another one's name here")
            names.append(path.relative_to(folder.resolve()).as_posix())
            if path.exists():
                with writing(path):
                    if not path.is_file() or not _holds(path, content):
                        raise EvaluationError(
                            f"{path} is corrupt, or another file than that of {archive.name}: delete it, and call again"
                        )
                continue
            with writing(path):
                path.parent.mkdir(parents=True, exist_ok=True)
                partial = path.with_name(path.name + ".part")
                with partial.open("wb") as file:
                    shutil.copyfileobj(content, file, 1 << 20)
                partial.replace(path)
    except (tarfile.TarError, zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        raise EvaluationError(f"{archive} is corrupt or no archive that can be read here: {error}") from error
    if not names:
        raise EvaluationError(f"{archive} holds no files")
    return names


def _holds(path: Path, content: IO[bytes]) -> bool:
    """Whether a file has just this content."""
    with path.open("rb") as file:
        while True:
            own, given = file.read(1 << 20), content.read(1 << 20)
            if own != given:
                return False
            if not own:
                return True


def inside(folder: Path, name: str, source: str) -> Path:
    """The path of a file that `source` names. Raises `EvaluationError` for one outside of `folder`."""
    path = (folder / name).resolve()
    if path == folder.resolve() or not path.is_relative_to(folder.resolve()):
        raise EvaluationError(f"{source} names a file outside of its folder: {name!r}")
    return path


def _members(archive: Path) -> Iterator[tuple[str, IO[bytes]]]:
    if archive.name.lower().endswith(".zip"):
        with zipfile.ZipFile(archive) as packed:
            for one in packed.infolist():
                if one.is_dir():
                    continue
                if (one.external_attr >> 16) & 0o170000 == 0o120000:
                    raise EvaluationError(f"{archive.name} holds a link: {one.filename!r}")
                with packed.open(one) as content:
                    yield one.filename, content
        return
    with tarfile.open(archive) as packed:
        for member in packed:
            if member.isdir():
                continue
            file = packed.extractfile(member) if member.isreg() else None
            if file is None:
                raise EvaluationError(f"{archive.name} holds a link or a device: {member.name!r}")
            with file:
                yield member.name, file
