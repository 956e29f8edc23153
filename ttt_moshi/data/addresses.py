"""URLs as paths: `s3://bucket/calls/a.wav` is `CACHE/copies/s3/bucket/calls/a.wav`, whether a copy lies there or not.

So names, suffixes and what lies beside a file are found as on a disk. `ttt_moshi.data.remote` fetches the copies.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from urllib.parse import unquote

from fsspec.implementations.local import LocalFileSystem

_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://(.*)", re.DOTALL)
_LOCAL = ("file", "local")


def default_cache() -> Path:
    """Where copies lie unless something else is said."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ttt-moshi"


class _Place:
    """Of this process, like its working folder: a path says no more than itself."""

    cache = default_cache()


def remote_cache() -> Path:
    return _Place.cache


def set_remote_cache(folder: Path) -> None:
    _Place.cache = folder.absolute()


def copies_folder() -> Path:
    return _Place.cache / "copies"


def is_url(text: str) -> bool:
    return "://" in text and (_URL.fullmatch(text) is not None or "::" in text)


def path_of(text: str) -> Path:
    """The path that stands for a URL; of `file://`, and of what is a path already, the path itself.

    Raises:
        ValueError: a URL whose file has no place of its own.
    """
    if not is_url(text):
        return Path(text)
    match = _URL.fullmatch(text)
    if match is None:
        raise ValueError("URLs in URLs (`::`) cannot be read: name the file itself, its copy is kept anyway")
    scheme, rest = match[1].lower(), match[2]
    if scheme in _LOCAL:
        return Path(LocalFileSystem._strip_protocol(text))
    if scheme in ("http", "https") and re.search("[?#]", rest):
        raise ValueError("addresses with `?` or `#` cannot be read: what lies beside such a file has no name")
    parts = rest.rstrip("/").split("/")
    if not any(parts):
        raise ValueError("it names no file")
    return copies_folder().joinpath(scheme, *map(_quoted, parts))


def url_of(path: Path) -> str | None:
    """The URL that a path stands for; None where it is a path and nothing else."""
    copies = copies_folder()
    if copies not in path.parents:
        return None
    scheme, *parts = path.relative_to(copies).parts
    return f"{scheme}://{'/'.join(map(_unquoted, parts))}"


def made_beside(folder: Path) -> Path:
    """Where things are kept that are made for the files of a folder: in it, and for URLs in the cache."""
    copies = copies_folder()
    return _Place.cache / "made" / folder.relative_to(copies) if copies in folder.parents else folder


def readable(text: str) -> str:
    """A message in which URLs stand for the paths that stand for them."""
    return re.sub(rf"{re.escape(str(copies_folder()))}/([a-z0-9+.-]+)/", r"\1://", text)


def child(folder: Path, name: str) -> Path:
    """What is called `name` in a folder that stands for a URL."""
    return folder / _quoted(name)


def named_in(folder: Path, name: str) -> Path:
    """What a list in a folder calls `name`: a URL, or a path relative to the folder, which may stand for a URL itself.

    Raises:
        ValueError: see `path_of`.
    """
    if is_url(name):
        return path_of(name)
    if url_of(folder) is None or Path(name).is_absolute():
        return folder / name
    for part in name.split("/"):
        folder = folder.parent if part == ".." else folder if part in ("", ".") else child(folder, part)
    return folder


def _quoted(part: str) -> str:
    """As the name of a file: `//` and `..` mean nothing in the names of a store."""
    if part in ("", ".", ".."):
        return part.replace(".", "%2E") or "%"
    return part.replace("%", "%25")


def _unquoted(name: str) -> str:
    return "" if name == "%" else unquote(name)
