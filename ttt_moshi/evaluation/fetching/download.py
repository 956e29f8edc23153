"""One file from an address: interrupted downloads go on, and nothing has its name before its digest is known."""

from __future__ import annotations

import hashlib
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from http.client import HTTPException, HTTPMessage
from pathlib import Path
from typing import IO, Any
from urllib.parse import urlsplit

from ttt_moshi.evaluation.errors import EvaluationError, writing

BLOCK = 1 << 20
TIMEOUT_SEC = 60


@dataclass(frozen=True)
class Expected:
    """What is known of a file before it is here.

    Args:
        sha256, md5: of its bytes.
        git_blob: its id in git, which is a SHA-1 of length and bytes.
        bytes: its length.
    """

    sha256: str | None = None
    md5: str | None = None
    git_blob: str | None = None
    bytes: int | None = None


def download(
    url: str,
    path: Path,
    expected: Expected,
    progress: Callable[[int, int], None] = lambda done, total: None,
    headers: Mapping[str, str] | None = None,
) -> str:
    """Brings `url` (http, https or file) to `path` and returns its SHA-256.

    What an interrupted download has left, `path` with `.part` behind it, is gone on from.

    Raises:
        EvaluationError: an address that cannot be read, one that broke off, and bytes that are not what was expected,
            which are deleted.
    """
    part = path.with_name(path.name + ".part")
    tag = path.with_name(path.name + ".part.tag")
    with writing(path):
        _append(url, part, tag, expected, progress, headers or {})
        tag.unlink(missing_ok=True)
        sha256, wrong = held_against(part, expected)
        if wrong:
            part.unlink()
            raise EvaluationError(f"{url} is not what was expected ({wrong}): deleted; call again to fetch it anew")
        part.replace(path)
    return sha256


def held_against(path: Path, expected: Expected) -> tuple[str, str]:
    """The SHA-256 of a file here, and how it differs from what was expected, "" where it does not. Raises `OSError`."""
    found = _digests(path)
    return found["sha256"], _differences(found, path.stat().st_size, expected)


def _append(
    url: str,
    part: Path,
    tag: Path,
    expected: Expected,
    progress: Callable[[int, int], None],
    headers: Mapping[str, str],
) -> None:
    size = expected.bytes
    begun = part.stat().st_size if part.exists() else 0
    if size is not None and begun >= size:
        return  # all of it; the digest says whether it is the right one
    request = urllib.request.Request(url, headers=dict(headers))
    # What cannot be told from another version of the file afterwards is gone on with only if the server knows it again.
    known = tag.read_text() if tag.exists() else None
    if begun and (known or expected.sha256 or expected.md5 or expected.git_blob):
        request.add_header("Range", f"bytes={begun}-")
        if known:
            request.add_header("If-Range", known)
    try:
        with _OPENER.open(request, timeout=TIMEOUT_SEC) as answer:
            if answer.status != 206:  # a server that cannot go on sends everything
                begun = 0
                part.parent.mkdir(parents=True, exist_ok=True)
                tag.unlink(missing_ok=True)
                if (etag := answer.headers.get("ETag")) and not etag.startswith("W/"):
                    tag.write_text(etag)
            length = answer.headers.get("Content-Length")
            total = begun + int(length) if length is not None else size or 0
            done = begun
            with part.open("ab" if begun else "wb") as file:
                while block := answer.read(BLOCK):
                    file.write(block)
                    done += len(block)
                    progress(done, total)
    except urllib.error.HTTPError as error:
        if error.code == 416 and error.headers.get("Content-Range") == f"bytes */{begun}":
            return  # all of it was there
        if error.code == 416:
            part.unlink()
            raise EvaluationError(f"{url} has become shorter: what was there is deleted; call again") from None
        raise EvaluationError(f"cannot fetch {url}: {error.code} {error.reason}") from None
    except (urllib.error.URLError, HTTPException, TimeoutError, ValueError) as error:
        reason = getattr(error, "reason", error)
        kept = f"; {_GO_ON}" if part.exists() else ""
        raise EvaluationError(f"cannot fetch {url}: {getattr(reason, 'strerror', None) or reason}{kept}") from None
    if total and done < total:
        raise EvaluationError(f"{url} broke off after {done:,} of {total:,} bytes; {_GO_ON}")


_GO_ON = "the same command goes on from where it was"


def _digests(path: Path) -> dict[str, str]:
    size = path.stat().st_size
    found = {"sha256": hashlib.sha256(), "md5": hashlib.md5(usedforsecurity=False)}
    found["git_blob"] = hashlib.sha1(f"blob {size}\0".encode(), usedforsecurity=False)
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            for digest in found.values():
                digest.update(block)
    return {name: digest.hexdigest() for name, digest in found.items()}


def _differences(found: Mapping[str, str], size: int, expected: Expected) -> str:
    """In words; empty where there is none."""
    if expected.bytes is not None and size != expected.bytes:
        return f"{size:,} bytes instead of {expected.bytes:,}"
    for name, value in found.items():
        wanted = getattr(expected, name)
        if wanted is not None and value != wanted:
            return f"{name} {value} instead of {wanted}"
    return ""


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows to another host without the token that was meant for the first."""

    def redirect_request(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: HTTPMessage, newurl: str
    ) -> Any:
        new = super().redirect_request(req, fp, code, msg, headers, newurl)
        if new is not None and urlsplit(newurl).netloc != urlsplit(req.full_url).netloc:
            new.remove_header("Authorization")
        return new


_OPENER = urllib.request.build_opener(_Redirects)
