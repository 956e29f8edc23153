"""Fetching a data set into a folder: what is there and right stays, what lacks is brought, what is wrong is named."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from fnmatch import fnmatchcase
from pathlib import Path
from urllib.parse import unquote, urlsplit

from huggingface_hub import HfApi, hf_hub_url
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, RepositoryNotFoundError, RevisionNotFoundError
from huggingface_hub.utils import build_hf_headers

from ttt_moshi.evaluation.errors import EvaluationError, writing
from ttt_moshi.evaluation.fetching.archives import inside, is_archive, unpack
from ttt_moshi.evaluation.fetching.download import Expected, download, held_against
from ttt_moshi.evaluation.fetching.record import NAME, Fetched, read_record, same_source, write_record
from ttt_moshi.files import only_writer

LOCK = ".fetching.lock"
Progress = Callable[[str, int, int], None]
"""told the name of a file, and how many of its bytes are here"""


@contextmanager
def alone_in(out: Path) -> Iterator[None]:
    """Makes the folder, which goes again if nothing is left in it, and keeps other processes from fetching into it.

    They would write into each other's files, and one record would replace the other.

    Raises:
        EvaluationError: another process is fetching into it, or it cannot be made.
    """
    made = not out.exists()
    with writing(out):
        out.mkdir(parents=True, exist_ok=True)
    try:
        with ExitStack() as stack:
            with writing(out):
                alone = stack.enter_context(only_writer(out / LOCK))
            if not alone:
                raise EvaluationError(f"another process is fetching into {out}: wait for it, or choose another --out")
            yield
    finally:
        if made:
            with suppress(OSError):  # something was fetched
                out.rmdir()


def fetch_repository(
    name: str,
    repository: str,
    patterns: Iterable[str],
    out: Path,
    folder: str,
    revision: str | None,
    progress: Progress,
) -> Fetched:
    """A data set of the Hugging Face hub at one commit: the one asked for, that of the first time, or the newest.

    The hub's own digests are asked for; archives are unpacked. Raises `EvaluationError`.
    """
    record = read_record(out)
    found = same_source(name, record, f"hf://datasets/{repository}")
    endpoint = os.environ.get("HF_ENDPOINT") or None
    try:
        info = HfApi(endpoint=endpoint).dataset_info(
            repository, revision=revision or found.revision, files_metadata=True
        )
    except RevisionNotFoundError:
        raise EvaluationError(f"{repository} has no revision {revision or found.revision}") from None
    except RepositoryNotFoundError:
        raise EvaluationError(f"no data set {repository} on the hub, or it needs a login (HF_TOKEN)") from None
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        raise EvaluationError(f"the hub cannot be asked for {repository}: {_reason(error)}") from error
    commit = str(info.sha)
    if found.revision not in (None, commit):
        raise EvaluationError(
            f"`{name}` was fetched at revision {found.revision}, and is asked for at {commit}: choose another --out"
        )
    found.revision = commit
    wanted = [
        sibling
        for sibling in info.siblings or []
        if any(fnmatchcase(sibling.rfilename, pattern) for pattern in patterns)
    ]
    if not wanted:
        raise EvaluationError(f"{repository} at {commit} holds none of {', '.join(patterns)}")
    headers = build_hf_headers()
    for sibling in wanted:
        lfs = sibling.lfs
        expected = Expected(
            sha256=lfs.sha256 if lfs else None,
            git_blob=None if lfs else sibling.blob_id,
            bytes=lfs.size if lfs else sibling.size,
        )
        url = hf_hub_url(repository, sibling.rfilename, repo_type="dataset", revision=commit, endpoint=endpoint)
        _bring(url, sibling.rfilename, expected, record, found, out, folder, progress, headers)
    return found


def _reason(error: BaseException) -> str:
    """What the system said first, as it does without a network; else what the library says."""
    first: BaseException | None = error
    while first is not None:
        if isinstance(first, OSError) and first.strerror:
            return first.strerror
        first = first.__cause__ or first.__context__
    return " ".join(str(error).split())


def fetch_url(name: str, url: str, expected: Expected, out: Path, folder: str, progress: Progress) -> Fetched:
    """One file from an address, unpacked where it is an archive. Raises `EvaluationError`."""
    record = read_record(out)
    found = same_source(name, record, url)
    file = Path(unquote(urlsplit(url).path)).name
    if not file:
        raise EvaluationError(f"{url} names no file")
    _bring(url, file, expected, record, found, out, folder, progress, {})
    return found


def _bring(
    url: str,
    name: str,
    expected: Expected,
    record: dict[str, Fetched],
    found: Fetched,
    out: Path,
    folder: str,
    progress: Progress,
    headers: dict[str, str],
) -> None:
    """One file of a data set: into its place, or its content where it is an archive; and into the record."""
    root = out / folder
    known = found.archives if is_archive(name) else found.files
    trusted = known.get(name)
    if trusted is not None and expected.sha256 not in (None, trusted):
        raise EvaluationError(f"{name} has another digest than when it was fetched first: {expected.sha256}, {trusted}")
    expected = Expected(expected.sha256 or trusted, expected.md5, expected.git_blob, expected.bytes)

    def told(done: int, total: int) -> None:
        progress(name, done, total)

    if is_archive(name):
        if trusted is not None and _all_there(root, found.files):
            return
        # Not its own name: an archive of that name may be somebody's, and this one is deleted.
        packed = inside(out, f".fetching-{Path(name).name}", url)
        known[name] = _left_by_an_earlier_call(packed, expected) or download(url, packed, expected, told, headers)
        write_record(out, record)
        for file in unpack(packed, root, taken=(packed, out / NAME)):
            path = root / file
            _check(path, found.files.get(file))
            found.files[file] = _sha256(path)
        write_record(out, record)
        packed.unlink()
        return
    path = inside(root, name, url)
    if path.exists():
        with writing(path):
            known[name], wrong = held_against(path, expected)
        if wrong:
            raise EvaluationError(f"{path} is corrupt, or another file ({wrong}): delete it, and call again")
    else:
        known[name] = download(url, path, expected, told, headers)
    write_record(out, record)


def _left_by_an_earlier_call(packed: Path, expected: Expected) -> str | None:
    """The SHA-256 of an archive whose unpacking was interrupted; None where it is not here, or not surely the one."""
    if not packed.is_file() or not (expected.sha256 or expected.md5 or expected.git_blob):
        return None
    with writing(packed):
        sha256, wrong = held_against(packed, expected)
    return None if wrong else sha256


def _all_there(root: Path, files: dict[str, str]) -> bool:
    """Whether every file of an archive is here; raises `EvaluationError` for one that is not what it was."""
    for name, digest in files.items():
        _check(root / name, digest)
    return bool(files) and all((root / name).is_file() for name in files)


def _check(path: Path, digest: str | None) -> None:
    if digest is not None and path.is_file() and _sha256(path) != digest:
        raise EvaluationError(f"{path} is corrupt, or another file: delete it, and call again")


def _sha256(path: Path) -> str:
    with writing(path):
        return held_against(path, Expected())[0]
