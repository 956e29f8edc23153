"""A conversation in a file, for the same checkpoint only: written whole or not at all, read only if it is intact."""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from blake3 import blake3
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from ttt_moshi.inference.errors import InferenceError
from ttt_moshi.inference.slots import LayerMemory, Snapshot

FORMAT = "ttt_moshi.session.2"


@dataclass(frozen=True)
class SessionInfo:
    """What a session file says of itself.

    Args:
        state_id: identity of the checkpoint that the conversation was held with.
        frames: heard so far, 12.5 a second.
        seed: of its draws.
        memory: see `Snapshot.memory`.
    """

    state_id: str
    frames: int
    seed: int
    memory: Mapping[int, LayerMemory] = field(default_factory=dict)


def save_session(snapshot: Snapshot, state_id: str, path: Path) -> None:
    """Writes a conversation to `path`, whole or not at all, readable by its owner alone.

    Args:
        state_id: identity of the checkpoint (`Speaker.state_id`).

    Raises:
        OSError: the file cannot be written; an older one there is untouched.
    """
    about = {"format": FORMAT, "state_id": state_id, "frames": str(snapshot.frames), "seed": str(snapshot.seed)}
    if snapshot.memory:
        about["memory"] = json.dumps({layer: asdict(own) for layer, own in snapshot.memory.items()})
    data = save(snapshot.tensors, {**about, "blake3": _digest(snapshot.tensors, about)})
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        raise OSError(f"the conversation cannot be written to {path}: {error.strerror or error}") from error
    finally:
        temporary.unlink(missing_ok=True)


def load_session(path: Path, state_id: str) -> Snapshot:
    """Reads a conversation that was held with the checkpoint `state_id`.

    Raises:
        InferenceError: no session file, a corrupt one, or one of another checkpoint or version.
    """
    tensors, about = _open(path)
    claimed = about.pop("blake3", None)
    if claimed != _digest(tensors, about):
        raise InferenceError(f"{path} is corrupt: its content does not match its digest")
    if about["state_id"] != state_id:
        raise InferenceError(
            f"{path} was saved with the checkpoint of state {about['state_id'][:12]}..., and this one is "
            f"{state_id[:12]}...: a memory only means something to the weights that wrote it"
        )
    info = _info(path, about)
    return Snapshot(tensors, info.seed, info.frames, info.memory)


def session_info(path: Path) -> SessionInfo:
    """What a session file's header says, without reading (and without checking) the rest.

    Raises:
        InferenceError: it is no session file of this version.
    """
    with _reading(path) as file:
        return _info(path, _about(path, file.metadata()))


def check_session(path: Path) -> None:
    """Reads a session file to its end. Raises InferenceError: it is not intact, whatever its checkpoint."""
    load_session(path, session_info(path).state_id)


def _open(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    with _reading(path) as file:
        about = _about(path, file.metadata())
        return {name: file.get_tensor(name) for name in file.keys()}, about  # noqa: SIM118


def _reading(path: Path) -> safe_open:
    if not path.is_file():
        raise InferenceError(f"no saved conversation at {path}")
    try:
        return safe_open(path, framework="pt")
    except SafetensorError as error:
        raise InferenceError(f"{path} is corrupt or not a saved conversation: {error}") from error


def _about(path: Path, metadata: dict[str, str] | None) -> dict[str, str]:
    about = dict(metadata or {})
    if about.get("format") != FORMAT or not {"state_id", "frames", "seed", "blake3"} <= about.keys():
        raise InferenceError(f"{path} is not a saved conversation of this version ({FORMAT})")
    return about


def _info(path: Path, about: dict[str, str]) -> SessionInfo:
    try:
        measured = json.loads(about.get("memory", "{}")).items()
        memory = {int(layer): LayerMemory(**own) for layer, own in measured}
        return SessionInfo(about["state_id"], int(about["frames"]), int(about["seed"]), memory)
    except (ValueError, TypeError, AttributeError) as error:
        raise InferenceError(f"{path} is corrupt: its header makes no sense ({error})") from None


def _digest(tensors: dict[str, Tensor], about: dict[str, str]) -> str:
    hasher = blake3(json.dumps(about, sort_keys=True).encode())
    for name, tensor in sorted(tensors.items()):
        hasher.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        hasher.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes() if tensor.numel() else b"")
    return hasher.hexdigest()
