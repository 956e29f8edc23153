"""Files inside of tar files, named as if these were folders: `codes-00001.tar/monday.safetensors`.

Many small files are slow to list and to copy; a tar file of them is one, and webdataset reads it too. Only plain tar
files are read, since nothing can be read from the middle of a compressed one.
"""

from __future__ import annotations

import functools
import io
import tarfile
from collections.abc import Iterable
from pathlib import Path

from ttt_moshi.data.errors import DataError
from ttt_moshi.data.remote import is_there, local
from ttt_moshi.files import naming, read_bytes, replacing

TAR = ".tar"


def container(path: Path) -> Path:
    """The file on the disk: `path` itself, or the tar file that it lies in."""
    if TAR not in str(path):
        return path
    return next((parent for parent in path.parents if parent.suffix == TAR and is_there(parent)), path)


def is_stored(path: Path) -> bool:
    """Whether there is such a file, in a folder or in a tar file.

    Raises:
        DataError: a tar file that cannot be read.
    """
    tar = container(path)
    return is_there(path) if tar == path else path.relative_to(tar).as_posix() in _index(tar)


def stored_size(path: Path) -> int:
    """Bytes of a file, in a folder or in a tar file. Raises as `read_stored`."""
    return _place(path)[2]


def read_stored(path: Path, first: int | None = None) -> bytes:
    """The content of a file, in a folder or in a tar file.

    Args:
        first: only so many bytes of it.

    Raises:
        DataError: a tar file that cannot be read, or without that member.
        OSError: any other trouble.
    """
    file, offset, size = _place(path)
    local(file)
    if file == path and first is None:
        return read_bytes(path)
    size = size if first is None else min(size, first)
    with naming(file), file.open("rb") as opened:
        opened.seek(offset)
        content = opened.read(size)
    if len(content) < size:
        raise DataError(f"{file} ends in the middle of {path.name}; copy it again")
    return content


def _place(path: Path) -> tuple[Path, int, int]:
    """In which file on the disk something lies, from which byte on, and how many."""
    tar = container(path)
    if tar == path:
        return path, 0, local(path).stat().st_size
    place = _index(tar).get(path.relative_to(tar).as_posix())
    if place is None:
        raise DataError(f"{tar} does not hold {path.relative_to(tar)}")
    return tar, *place


def write_tar(path: Path, members: Iterable[tuple[str, bytes]]) -> None:
    """Writes a tar file, the whole or nothing; equal members make equal bytes."""
    with replacing(path) as temporary, tarfile.open(temporary, "w", format=tarfile.USTAR_FORMAT) as tar:
        for name, content in members:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))


def _index(tar: Path) -> dict[str, tuple[int, int]]:
    """Offset and size of each member."""
    stat = local(tar).stat()
    return _read_index(tar, stat.st_size, stat.st_mtime_ns)


@functools.lru_cache(maxsize=1024)
def _read_index(tar: Path, _size: int, _changed: int) -> dict[str, tuple[int, int]]:
    try:
        with tarfile.open(tar, "r:") as file:
            return {member.name: (member.offset_data, member.size) for member in file if member.isfile()}
    except (tarfile.TarError, OSError) as error:
        raise DataError(f"{tar} is not a plain tar file that can be read: {error}") from error
