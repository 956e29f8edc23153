"""A data set of codes alone, from which training needs neither the audio nor the codec nor the transcripts."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from ttt_moshi.data.addresses import url_of
from ttt_moshi.data.corpus import Corpus, OnRecording
from ttt_moshi.data.encoded import SUFFIX, encoded_bytes, read_encoded_info, write_encoded
from ttt_moshi.data.errors import DataError
from ttt_moshi.data.remote import files_below, is_there, local, outgoing, send
from ttt_moshi.data.shards import TAR, write_tar
from ttt_moshi.data.sources import Recording, parts, told_divisions
from ttt_moshi.files import read_text, write_atomically
from ttt_moshi.frames import frames_to_seconds

LIST = "data"
"""of a data set that is made, without its suffix"""


def pretokenize(corpus: Corpus, out: Path, on_recording: OnRecording | None = None, *, tar: bool = False) -> Path:
    """Encodes a data set, or a shard of it, as `Corpus.encode_all` does, and writes it as pre-tokenized recordings.

    `out` then holds `codes/*.safetensors`, named by content, and a list for each shard, an empty one where the shard
    has no recordings; training reads the folder as a whole. It may be a path that stands for a URL. A recording whose
    file is there is not written again. Weights of the data set are left out.

    Args:
        tar: whether there is one tar file for each shard instead, in which every recording is followed by its line of
            the list (`.json`), as webdataset reads them.

    Returns:
        The list of this shard.

    Raises:
        DataError: a recording or transcript that cannot be used, or `out` has the lists of another number of shards or
            of another data set.
        OSError: `out` cannot be written.
    """
    rank, shards = corpus.shard
    require_same_shards(out, shards)
    _require_same_recordings(out, corpus)  # before hours of work
    if url_of(out) is not None:
        here = outgoing(out, f"{rank + 1}-of-{shards}")
        listed = pretokenize(corpus, here, on_recording, tar=tar)
        send(here, out, late=lambda name: name == listed.name or name.endswith(TAR))
        return out / listed.name
    out.mkdir(parents=True, exist_ok=True)
    corpus.encode_all(on_recording=on_recording)
    _require_same_recordings(out, corpus)  # once more: another call may have ended before this one
    part, listed = _part(corpus), _list(out, corpus)
    folder = f"codes{part}{TAR}" if tar else "codes"
    named = [(_name(corpus, recording), recording) for recording in corpus.recordings]
    recordings = dict(named)  # what is listed twice is stored once
    lines = [_line(folder, name, recording) for name, recording in named]
    if tar and lines:
        write_tar(out / folder, _members(corpus, recordings, folder))
    elif lines:
        (out / folder).mkdir(exist_ok=True)
        for name, recording in recordings.items():
            if not _is_there(out / folder / name, recording.frames):
                write_encoded(out / folder / name, corpus.whole(recording))
    write_atomically(listed, "".join(json.dumps(line) + "\n" for line in lines).encode())
    return listed


def require_same_shards(out: Path, shards: int) -> None:
    """Raises DataError where `out` has lists of another number of shards: beside them those of this one would name
    every recording once more. Nobody knows here whether they are wanted, so they are not deleted.
    """
    files = files_below(out, ".jsonl") if url_of(out) is not None else out.glob("*.jsonl")
    others = parts(files).get((out, LIST), {})
    others.pop(shards, None)
    if others:
        raise DataError(
            f"{out} has a data set {told_divisions(others)}, and with `--shard` of {shards} every recording would be "
            "in it once more: delete these lists (what they name in `codes` is not made again), or name another folder"
        )


def _require_same_recordings(out: Path, corpus: Corpus) -> None:
    """Raises DataError where the list that is there names recordings that this data set lacks: it is another one's, or
    they have changed, and nobody would find them any more. A data set may grow.
    """
    listed = _list(out, corpus)
    if not is_there(listed):
        return
    own = {_name(corpus, recording) for recording in corpus.recordings}
    lines = [line for line in read_text(local(listed), errors="replace").splitlines() if line.strip()]
    others = sum(_named(line) not in own for line in lines)
    if others:
        raise DataError(
            f"{listed} would be replaced, and this data set lacks {others} of the {len(lines)} recordings that it "
            "names: it is another data set, or recordings, words or the tokenizer have changed. Name another folder, "
            "or delete this list (what it names in `codes` is not made again)"
        )


def _named(line: str) -> str | None:
    """The name of the file in a line of a list."""
    try:
        return PurePosixPath(json.loads(line)["path"]).name
    except (ValueError, KeyError, TypeError):
        return None


def _part(corpus: Corpus) -> str:
    """Of the names of what a shard writes; empty for the whole."""
    rank, shards = corpus.shard
    return "" if shards == 1 else f"-{rank + 1:05}-of-{shards:05}"


def _list(out: Path, corpus: Corpus) -> Path:
    return out / f"{LIST}{_part(corpus)}.jsonl"


def _name(corpus: Corpus, recording: Recording) -> str:
    """Equal for equal codes with equally many given frames."""
    prefix = f"-{recording.prefix_frames}" if recording.prefix_frames else ""
    return f"{corpus.content_of(recording)[:32]}{prefix}{SUFFIX}"


def _line(folder: str, name: str, recording: Recording) -> dict[str, object]:
    line: dict[str, object] = {"path": f"{folder}/{name}", "duration": frames_to_seconds(recording.frames)}
    if recording.prefix_frames:
        line["prefix_sec"] = frames_to_seconds(recording.prefix_frames)
    return line


def _members(corpus: Corpus, recordings: dict[str, Recording], folder: str) -> Iterator[tuple[str, bytes]]:
    for name, recording in recordings.items():
        yield name, encoded_bytes(corpus.whole(recording))
        yield name.removesuffix(SUFFIX) + ".json", json.dumps(_line(folder, name, recording)).encode()


def _is_there(path: Path, frames: int) -> bool:
    try:
        return path.is_file() and read_encoded_info(path).frames == frames
    except DataError:
        return False  # it is made again
