"""Keeping a conversation: everything that its next frame depends on, in one file, for the same checkpoint only."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from blake3 import blake3
from moshi.modules.streaming import StreamingModule
from moshi.utils.compile import CUDAGraphed
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from ttt_moshi.files import replacing
from ttt_moshi.inference.conversation import Conversation
from ttt_moshi.inference.errors import InferenceError

FORMAT = "ttt_moshi.session.1"
# Attributes of streaming states that are no state: made anew from the model, or of the process.
_RECREATED = (CUDAGraphed, ExitStack, nn.Module, torch.device, torch.dtype, type(None))


def save_session(conversation: Conversation, path: Path) -> None:
    """Writes a conversation to `path`, whole or not at all.

    Raises:
        InferenceError: a part of the streaming state is of a kind that cannot be saved.
        OSError: the file cannot be written; an older one there is untouched.
    """
    tensors, numbers = _read(conversation)
    for name, tensor in _random_state(conversation).items():
        tensors[f"random/{name}"] = tensor
    tensors = {name: _copy(tensor) for name, tensor in tensors.items()}
    about = {
        "format": FORMAT,
        "state_id": conversation.speaker.state_id,
        "frames": str(conversation.frames),
        "numbers": json.dumps(numbers, sort_keys=True),
    }
    try:
        with replacing(path) as temporary:
            save_file(tensors, temporary, {**about, "blake3": _digest(tensors, about)})
    except SafetensorError as error:
        raise OSError(f"the conversation cannot be written to {path}: {error}") from error


def load_session(conversation: Conversation, path: Path) -> None:
    """Puts `conversation`, which has been entered, where the saved one was; the next frame is the same, bit for bit.

    The random generators are put back too. Nothing is changed if anything is wrong.

    Raises:
        InferenceError: no session file, a damaged one, or one of another checkpoint, version or device.
    """
    tensors, about = _open(path)
    if about.get("format") != FORMAT:
        raise InferenceError(f"{path} is not a saved conversation of this version ({FORMAT})")
    claimed = about.pop("blake3", None)
    if claimed != _digest(tensors, about):
        raise InferenceError(f"{path} is damaged: its content does not match its digest")
    if about["state_id"] != conversation.speaker.state_id:
        raise InferenceError(
            f"{path} was saved with the checkpoint of state {about['state_id'][:12]}..., and this one is "
            f"{conversation.speaker.state_id[:12]}...: a memory only means something to the weights that wrote it"
        )
    random = {name: tensors.pop(name) for name in list(tensors) if name.startswith("random/")}
    wanted, counts = _read(conversation)
    numbers = json.loads(about["numbers"])
    if {n: (t.shape, t.dtype) for n, t in tensors.items()} != {n: (t.shape, t.dtype) for n, t in wanted.items()}:
        raise InferenceError(f"{path} has another form than this conversation: was it saved with another --dtype?")
    if set(numbers) != set(counts) or set(random) != {f"random/{n}" for n in _random_state(conversation)}:
        raise InferenceError(f"{path} was saved by another version of moshi, or on another kind of device")
    for name, tensor in wanted.items():
        tensor.copy_(tensors[name])  # in place: CUDA graphs replay on fixed addresses
    for holder, attribute, name in _numbers(conversation):
        setattr(holder, attribute, type(getattr(holder, attribute))(numbers[name]))
    conversation.frames = int(about["frames"])
    torch.set_rng_state(random["random/cpu"])
    if "random/cuda" in random:
        torch.cuda.set_rng_state(random["random/cuda"], conversation.speaker.model.device)


def _open(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    if not path.is_file():
        raise InferenceError(f"no saved conversation at {path}")
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, dict(file.metadata() or {})  # noqa: SIM118
    except SafetensorError as error:
        raise InferenceError(f"{path} is damaged or not a saved conversation: {error}") from error


def _copy(tensor: Tensor) -> Tensor:
    """In memory of its own, which the file format asks for."""
    return tensor.detach().clone(memory_format=torch.contiguous_format).cpu()


def _digest(tensors: dict[str, Tensor], about: dict[str, str]) -> str:
    hasher = blake3(json.dumps(about, sort_keys=True).encode())
    for name, tensor in sorted(tensors.items()):
        hasher.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        hasher.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes() if tensor.numel() else b"")
    return hasher.hexdigest()


def _random_state(conversation: Conversation) -> dict[str, Tensor]:
    device = conversation.speaker.model.device
    states = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device)
    return states


def _read(conversation: Conversation) -> tuple[dict[str, Tensor], dict[str, int]]:
    """The live tensors of the streaming state, and its plain numbers, by name."""
    tensors: dict[str, Tensor] = {}
    for holder, attribute, name in _leaves(conversation):
        value = getattr(holder, attribute)
        if isinstance(value, Tensor):
            tensors[name] = value
    return tensors, {name: int(getattr(holder, attribute)) for holder, attribute, name in _numbers(conversation)}


def _numbers(conversation: Conversation) -> list[tuple[Any, str, str]]:
    leaves = _leaves(conversation)
    return [leaf for leaf in leaves if isinstance(getattr(leaf[0], leaf[1]), int)]


def _leaves(conversation: Conversation) -> Iterator[tuple[Any, str, str]]:
    """(object, attribute, name) of every tensor and number in the streaming states of generator, model and codec."""
    parts: list[tuple[str, StreamingModule]] = [
        ("generator", conversation.generator),
        ("model", conversation.speaker.model),
        ("mimi", conversation.speaker.mimi),
    ]
    for part, module in parts:
        for place, state in module.get_streaming_state().items():
            yield from _inside(state, f"{part}/{place}")


def _inside(holder: Any, name: str) -> Iterator[tuple[Any, str, str]]:
    for attribute, value in vars(holder).items():
        inner = f"{name}/{attribute}"
        if isinstance(value, (Tensor, int)):
            yield holder, attribute, inner
        elif isinstance(value, _RECREATED) or callable(value):
            continue
        elif hasattr(value, "__dict__"):
            yield from _inside(value, inner)
        else:
            raise InferenceError(f"the streaming state holds {inner} of type {type(value).__name__}, unknown here")
