"""Copies of files at URLs (any that fsspec opens), in a folder of bounded size that several processes may share.

A copy is taken for what lies at the URL while the store names the same content for it (an ETag or the like, and the
size), which each process asks once. It is fetched under another name and renamed when it is whole. What was not used
for longest goes first.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from errno import ENOENT
from pathlib import Path
from typing import Any, TypeVar

import fsspec
from blake3 import blake3

from ttt_moshi.data.addresses import (
    child,
    copies_folder,
    default_cache,
    named_in,
    path_of,
    remote_cache,
    set_remote_cache,
    url_of,
)
from ttt_moshi.data.errors import DataError, PassingError
from ttt_moshi.files import partial_beside, read_text, write_atomically

DEFAULT_GB = 50.0

_MARKS = (
    "ETag", "etag", "sha256", "blob_id", "md5Hash", "md5", "Content-MD5", "Digest", "generation", "mtime",
    "LastModified", "last_modified", "Last-Modified", "updated", "modified", "created",
)  # fmt: skip
"""what stores call that which changes with the content of a file, the most certain first"""
_WITHOUT_FOLDERS = ("http://", "https://")
_GONE = (404, 410)
_PAUSES = (0.5, 2.0)
"""seconds before each further attempt"""
_UNSEEN = 8
"""so many processes may fill the cache at once and keep its bound"""
_ROOM = "room"
"""a lock that no copy has: it is taken while that of a copy is held"""

_T = TypeVar("_T")


@dataclass(frozen=True)
class Version:
    """What a store says of a file's content."""

    size: int | None
    mark: str | None
    """changes with the content; None where the store says nothing"""


class _Copies:
    """What this process knows of the files at URLs."""

    def __init__(self, gigabytes: float) -> None:
        self.bound = round(gigabytes * 1e9)
        self.versions: dict[Path, Version | None] = {}
        self.listed: set[Path] = set()
        self.checked: set[Path] = set()
        """copies that are what lies at the URL"""
        self.free = 0
        """bytes that may be fetched before the folder must be looked through again"""
        self.lock = threading.RLock()


_copies = _Copies(DEFAULT_GB)


def use_cache(folder: str | Path | None, gigabytes: float) -> None:
    """Where this process keeps its copies (None: `default_cache`), and how much they may take. What it knew of any file
    is forgotten.

    Raises:
        DataError: `folder` is a file.
    """
    global _copies
    place = default_cache() if folder is None else Path(folder)
    if place.exists() and not place.is_dir():
        raise DataError(f"{place} is a file: name a folder for copies (`data.remote_cache_dir`)")
    set_remote_cache(place)
    _copies = _Copies(gigabytes)


def cache_in_use() -> tuple[Path, float]:
    """What `use_cache` needs, for processes that this one starts."""
    return remote_cache(), _copies.bound / 1e9


def located(text: str) -> Path:
    """A path or a URL as a path.

    Raises:
        DataError: a URL that cannot be read, whatever lies there.
    """
    try:
        path = path_of(text)
        if path != Path(text):
            fsspec.get_filesystem_class(text.partition("://")[0].lower())
    except (ValueError, ImportError) as error:
        raise DataError(f"{text}: {error}") from error
    return path


def located_out(text: str) -> Path:
    """`located`, of something that is to be written.

    Raises:
        DataError: nothing can be written there, whoever tries.
    """
    if text.lower().startswith(_WITHOUT_FOLDERS):
        raise DataError(f"{text}: nothing can be written to such servers; name a place in a store, such as s3://")
    return located(text)


def is_there(path: Path) -> bool:
    """Whether there is a file, on the disk or at the URL that the path stands for.

    Raises:
        DataError: a store that cannot be asked, or a disk: a folder that may not be entered, a name that is too long.
    """
    if url_of(path) is not None:
        return version_of(path) is not None
    try:
        return path.is_file()
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}") from error


def local(path: Path) -> Path:
    """The path, once a copy lies there where it stands for a URL.

    Raises:
        FileNotFoundError: nothing lies at the URL.
        DataError: what lies there cannot be fetched, or has no room.
    """
    url = url_of(path)
    if url is None:
        return path
    if path not in _copies.checked or not path.exists():
        version = version_of(path)
        if version is None:
            raise FileNotFoundError(ENOENT, os.strerror(ENOENT), url)
        with _locked(_lock_of_copy(path)):
            if version.mark is None or not path.is_file() or _recorded(path) != version:
                _fetch(path, url)
        _copies.checked.add(path)
    try:
        os.utime(path)
    except FileNotFoundError:
        return local(path)  # it had to make room in this moment
    return path


def version_of(path: Path) -> Version | None:
    """What the store says of a file; None where it has none. Asked once, a folder at a time where there are folders.

    Raises:
        DataError: a store that cannot be asked.
    """
    with _copies.lock:
        if path not in _copies.versions and path.parent not in _copies.listed:
            _ask(path)
        return _copies.versions.get(path)


def files_below(folder: Path, suffix: str = "") -> list[Path]:
    """The files below a folder at a URL, in the order of their names.

    Raises:
        DataError: a store without folders, or that cannot be asked.
    """
    url = url_of(folder)
    assert url is not None
    remote, base = _store(url)
    if url.startswith(_WITHOUT_FOLDERS):
        raise DataError(f"{url}: such servers have no folders that could be listed; name the jsonl file itself")
    found = _trying(f"cannot list {url}", lambda: remote.find(base, detail=True) if remote.exists(base) else {})
    files = []
    with _copies.lock:
        for name, facts in found.items():
            below = remote._strip_protocol(name)
            if not below.startswith(base):
                raise DataError(f"{url}: the store calls a file in it {below}, which does not lie there")
            path = folder
            for part in below.removeprefix(base).lstrip("/").split("/"):
                path = child(path, part)
            _copies.versions[path] = _version(facts)
            if name.endswith(suffix):
                files.append(path)
    return sorted(files)


def outgoing(target: Path, part: str = "whole") -> Path:
    """Where a folder is made that is to be sent to a URL."""
    return remote_cache() / "outgoing" / target.relative_to(copies_folder()) / part


def send(folder: Path, target: Path, late: Callable[[str], int], sent: Path | None = None) -> None:
    """Sends the files of a folder to the URL that `target` stands for, and deletes the folder.

    Args:
        late: by name, which come after others; those above 0 lead readers to all before them and are always sent.
        sent: a file that remembers what has arrived, so that the same call goes on where it was interrupted; None takes
            a file that is there with as many bytes for the same.

    Raises:
        DataError: one did not arrive; the folder is still there.
    """
    names = sorted(file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file())
    arrived = None if sent is None else _lines(sent)
    try:
        for name in sorted(names, key=lambda name: (late(name), name)):
            file, place = folder / name, named_in(target, name)
            stat, version = file.stat(), None if late(name) else version_of(place)
            line = json.dumps([name, stat.st_size, stat.st_mtime_ns])
            if version is None or version.size != stat.st_size or (arrived is not None and line not in arrived):
                put(file, place)
                if sent is not None:
                    with sent.open("a", encoding="utf-8") as record:
                        record.write(line + "\n")
    except DataError as error:
        raise DataError(f"{error}; everything lies in {folder}") from error
    shutil.rmtree(folder)


def _lines(path: Path) -> set[str]:
    return set(read_text(path).splitlines()) if path.is_file() else set()


def delete(folder: Path) -> None:
    """Deletes a folder at a URL with all that is in it. Raises DataError where it cannot."""
    url = url_of(folder)
    assert url is not None
    remote, name = _store(url)
    _trying(f"cannot delete {url}", lambda: remote.rm(name, recursive=True))
    with _copies.lock:
        _copies.versions.clear()
        _copies.listed.clear()


def put(file: Path, place: Path) -> None:
    """Sends a file to the URL that `place` stands for, and asks whether it arrived. Raises DataError: it did not."""
    url = url_of(place)
    assert url is not None
    remote, name = _store(url)

    def send_it() -> None:
        remote.makedirs(name.rpartition("/")[0], exist_ok=True)
        remote.put_file(str(file), name)
        remote.invalidate_cache()
        if remote.info(name)["size"] != file.stat().st_size:
            raise OSError("it did not arrive whole")

    _trying(f"cannot write {url}", send_it)
    with _copies.lock:
        _copies.versions.pop(place, None)
        _copies.listed.discard(place.parent)
        _copies.checked.discard(place)


def _store(url: str) -> tuple[Any, str]:
    return _trying(f"cannot open {url}", lambda: fsspec.core.url_to_fs(url))


def _ask(path: Path) -> None:
    url, folder = url_of(path), url_of(path.parent)
    assert url is not None
    remote, name = _store(url)
    if url.startswith(_WITHOUT_FOLDERS) or folder is None:
        _copies.versions[path] = _ask_alone(url, remote, name)
        return
    parent = name.rpartition("/")[0]
    remote.invalidate_cache()
    try:
        entries = _trying(f"cannot list {folder}", lambda: _or_none(lambda: remote.ls(parent, detail=True))) or []
    except DataError as error:
        if not isinstance(error.__cause__, PermissionError):
            raise
        # Files of some stores may be read by whoever may not list them.
        _copies.versions[path] = _ask_alone(url, remote, name)
        return
    for entry in entries:
        if entry["type"] == "file":
            _copies.versions[child(path.parent, entry["name"].rpartition("/")[2])] = _version(entry)
    _copies.listed.add(path.parent)


def _ask_alone(url: str, remote: Any, name: str) -> Version | None:
    def ask() -> Version | None:
        try:
            found = remote.info(name)
        except FileNotFoundError as error:
            # To fsspec's client of web servers nothing is there whatever goes wrong.
            cause = error.__cause__
            if url.startswith(_WITHOUT_FOLDERS) and cause is not None and getattr(cause, "status", 0) not in _GONE:
                raise cause from None
            return None
        return _version(found) if found["type"] == "file" else None

    return _trying(f"cannot read {url}", ask)


def _or_none(ask: Callable[[], _T]) -> _T | None:
    try:
        return ask()
    except (FileNotFoundError, NotADirectoryError):
        return None


def _version(facts: dict[str, Any]) -> Version:
    mark = next((f"{name} {facts[name]}" for name in _MARKS if facts.get(name)), None)
    return Version(facts.get("size"), mark)


def _fetch(path: Path, url: str) -> None:
    remote, name = _store(url)

    def fetch() -> None:
        with _copies.lock:
            version = _copies.versions[path]
        assert version is not None
        _make_room(url, version.size or 0)
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = partial_beside(path)
        try:
            remote.get_file(name, str(temporary))
            arrived = Version(temporary.stat().st_size, version.mark)
            remote.invalidate_cache()
            now = _version(remote.info(name))
            if version.size is None:
                _make_room(url, 0)
            if (now.mark is not None and now.mark != version.mark) or arrived.size != (now.size or arrived.size):
                with _copies.lock:
                    _copies.versions[path] = now
                raise OSError("it changed while it was read, or did not arrive whole")
            path.unlink(missing_ok=True)  # first, so that no copy is taken for what another one is
            _note(path).parent.mkdir(parents=True, exist_ok=True)
            write_atomically(_note(path), json.dumps(asdict(version)).encode(), durable=False)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)

    _trying(f"cannot fetch {url}", fetch)


def _recorded(path: Path) -> Version | None:
    """What was at the URL when the copy was made."""
    try:
        return Version(**json.loads(read_text(_note(path))))
    except (OSError, ValueError, TypeError):
        return None


def _note(path: Path) -> Path:
    """Beside the folder of copies, where it is in nobody's way."""
    return remote_cache() / "versions" / path.relative_to(copies_folder())


def _make_room(url: str, size: int) -> None:
    """Deletes copies until one more of `size` bytes has room, those first that were not used for longest."""
    bound = _copies.bound
    if size > bound:
        raise PassingError(
            f"{url} has {size / 1e9:.2f} GB, and all copies together may take {bound / 1e9:g} GB: raise "
            "`data.remote_cache_gb`, in commands `--remote_cache_gb`"
        )
    with _locked(_ROOM), _copies.lock:
        if size > _copies.free:
            found = sorted(_all_copies())
            total = sum(entry[1] for entry in found)
            for _, own, path in found:
                if total + size <= bound:
                    break
                path.unlink(missing_ok=True)
                total -= own
            _copies.free = size + (bound - total - size) // _UNSEEN
        _copies.free -= size


def _all_copies() -> Iterator[tuple[float, int, Path]]:
    """Time of use, size and path of what is there."""
    for place, _, names in os.walk(copies_folder()):
        for name in names:
            path = Path(place, name)
            try:
                stat = path.stat()
            except FileNotFoundError:
                continue
            yield stat.st_mtime, stat.st_size, path


def _lock_of_copy(path: Path) -> str:
    """Copies share a few locks. Whoever holds one may wait for `_ROOM`, and never for another one of these."""
    return blake3(str(path).encode("utf-8", "surrogateescape")).hexdigest()[:3]


@contextmanager
def _locked(name: str) -> Iterator[None]:
    """Keeps other processes, and threads, from the same work."""
    locks = remote_cache() / "locks"
    try:
        locks.mkdir(parents=True, exist_ok=True)
        file = (locks / name).open("a")
    except OSError as error:
        raise PassingError(
            f"copies of remote files cannot be kept in {remote_cache()}: {error.strerror or error}; "
            "`data.remote_cache_dir`, in commands `--remote_cache_dir`, names another folder"
        ) from error
    with file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _trying(what: str, work: Callable[[], _T]) -> _T:
    """Does what may fail for a moment.

    Raises:
        PassingError: none of several attempts was a success; begins with `what`.
    """
    for pause in (*_PAUSES, None):
        try:
            return work()
        except DataError:
            raise
        except Exception as error:
            lasting = isinstance(error, (ImportError, PermissionError, NotImplementedError, ValueError))
            if pause is None or lasting:
                told = " ".join(str(error).split()) or type(error).__name__
                raise PassingError(f"{what}: {told}") from error
            time.sleep(pause)
    raise AssertionError("the last attempt has ended")
