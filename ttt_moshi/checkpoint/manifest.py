"""The commit record. What `manifest.json` does not vouch for does not exist; every byte it vouches for has a digest.

The file is JSON whose first line holds the digest of all that follows, so that one changed byte anywhere is noticed.
"""

from __future__ import annotations

import json
import platform
import re
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from blake3 import blake3

import ttt_moshi
from ttt_moshi.checkpoint.errors import CheckpointError, CorruptCheckpoint, ForeignCheckpoint
from ttt_moshi.checkpoint.files import Files
from ttt_moshi.checkpoint.layout import MANIFEST, STATE, checkpoint_name
from ttt_moshi.checkpoint.trouble import absent, confirmed, read_start, unreadable

Record = dict[str, Any]  # a JSON object inside the manifest
FORMAT_VERSION = 2
_INSIDE = re.compile(r"(?!\.)[^/\0]+(/(?!\.)[^/\0]+)*")  # a path that cannot lead out of the checkpoint
_FIRST_LINE = b'{"manifest_blake3": "%s",\n'


def canonical(value: object, what: str) -> bytes:
    """JSON with sorted keys and no spaces. Raises CheckpointError naming `what` for values that JSON cannot hold."""
    try:
        return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False, ensure_ascii=False).encode()
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{what} must be plain JSON with finite numbers: {error}") from error


def digest(data: bytes | memoryview) -> str:
    """BLAKE3 in hexadecimal, 64 characters."""
    return blake3(data).hexdigest()


def collapse(rank_states: list[Any]) -> list[Any]:
    """One state if all ranks have the same, so that the world size leaves no trace where it changed nothing."""
    return rank_states[:1] if all(state == rank_states[0] for state in rank_states) else rank_states


def state_id(step: int, tensors: Mapping[str, Record], state: object, rank_states: list[Any]) -> str:
    """Identity of a training state: digests of whole tensors, the JSON state and the ranks' states.

    `tensors` maps a name to its manifest entry (`dtype`, `shape`, `blake3` of the whole tensor's bytes). Shards, files,
    times, hosts and metrics have no part in it.
    """
    content = {
        "step": step,
        "tensors": {name: [entry["dtype"], list(entry["shape"]), entry["blake3"]] for name, entry in tensors.items()},
        "state": state,
        "rank_state": collapse(rank_states),
    }
    return digest(canonical(content, "state"))


def tensor_record(dtype: str, shape: Sequence[int], parts: list[Record]) -> Record:
    """What the manifest says of one tensor, from the parts that the ranks wrote."""
    return {"dtype": dtype, "shape": list(shape), "parts": sorted(parts, key=lambda part: part["rows"])}


def versions() -> dict[str, str]:
    """Versions of everything that had a hand in the bytes."""
    import torch  # by whoever saves; reading a manifest needs none

    return {
        "blake3": version("blake3"),
        "cuda": str(torch.version.cuda),
        "python": platform.python_version(),
        "safetensors": version("safetensors"),
        "torch": torch.__version__,
        "ttt_moshi": ttt_moshi.__version__,
    }


def render(manifest: Record) -> bytes:
    """The manifest's file content: its digest in the first line, then a line for every item, sorted by key."""
    content = {"format_version": FORMAT_VERSION} | {k: v for k, v in manifest.items() if k != "manifest_blake3"}
    # Not indented: indenting is slow Python code, which would hold the interpreter's lock against the training thread.
    text = json.dumps(content, sort_keys=True, separators=(",\n", ": "), allow_nan=False, ensure_ascii=False)
    body = text.encode()[1:] + b"\n"
    return _FIRST_LINE % digest(body).encode() + body


def parse(data: bytes, where: str) -> Record:
    """A manifest from its file content.

    Raises CorruptCheckpoint if one byte is not as written, ForeignCheckpoint for what this version did not write.
    """
    body = data[len(_FIRST_LINE) - 2 + 64 :]
    intact = data == _FIRST_LINE % digest(body).encode() + body
    corrupt = CorruptCheckpoint(f"{where} is corrupt: its content does not agree with its own digest")
    try:
        content = json.loads(data)
        found = content.get("format_version") if isinstance(content, dict) else None
        # Another version may take its digest in another way, and another program's manifest has none.
        if isinstance(found, int) and found != FORMAT_VERSION:
            raise ForeignCheckpoint(
                f"{where} has format version {found}; this program reads {FORMAT_VERSION} and leaves it alone. If a "
                "newer version wrote it, update the program."
            )
        if not intact and (found is not None or "manifest_blake3" in content):
            raise corrupt
        if not intact:
            raise ForeignCheckpoint(f"{where} was not written by this program and is left alone: it has no digest")
        entries = [entry for table in (content["tensors"], *content["exports"].values()) for entry in table.values()]
        files = {STATE, *(part["file"] for entry in entries for part in entry["parts"])}
        strange = {file for file in content["files"] if not _INSIDE.fullmatch(file)} | files - set(content["files"])
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        if not intact and isinstance(error, (ValueError, RecursionError)):  # no JSON at all
            raise corrupt from error
        raise ForeignCheckpoint(f"{where} was not written by this program and is left alone: {error!r}") from error
    if strange:
        raise ForeignCheckpoint(f"{where} speaks of {min(strange)!r}, which is no file of this checkpoint: left alone")
    return content


def read_manifest(path: Path, files: Files | None = None) -> Record:
    """The manifest of a checkpoint folder, wherever it lies and whatever its name.

    Raises CorruptCheckpoint, UnreadableCheckpoint or ForeignCheckpoint; the last where there is none.
    """
    reader, place = files or Files(), path / MANIFEST

    def check(fresh: bool) -> Record:
        try:
            data = read_start(reader, place, fresh=fresh)
        except OSError as error:
            if not absent(reader, place):
                raise unreadable(place, error) from error
            raise ForeignCheckpoint(f"{path} is not a checkpoint of this program: it has no {MANIFEST}") from error
        return parse(data, str(place))

    return confirmed(check)


def read_committed(root: Path, step: int, files: Files | None = None) -> Record:
    """The manifest of the checkpoint that is committed as `step`; raises as `read_manifest`."""
    path = root / checkpoint_name(step)
    manifest = read_manifest(path, files)
    if manifest["step"] != step:
        raise ForeignCheckpoint(
            f"{path} holds the manifest of step {manifest['step']}: a copy under another name, which is left alone"
        )
    return manifest
