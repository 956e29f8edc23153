"""Scored sequences on disk: the model runs once, and every later reduction is arithmetic.

One safetensors file per batch, `<folder>/<identity>/<digest of its keys>.safetensors`, written under another name and
renamed into place. A tensor's name is the sequence's key, a digest of its tokens; its value is the NLL [1 + dep_q, T]
in float32 with NaN where there is no token. `identity` names the model: its state id and everything else that can
change a score. The tensor `digest` covers the identity and everything in the file; a file that it does not fit is left
aside with a warning, and its sequences are scored again.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import blake3
import numpy as np
from safetensors.numpy import load, save

from ttt_moshi.evaluation.errors import EvaluationError, writing
from ttt_moshi.evaluation.scoring.cache_files import CorruptFileError, load_whole
from ttt_moshi.files import write_atomically

_log = logging.getLogger(__name__)

_ABANDONED = 3600.0
"""seconds after which a file that is still being written has lost its writer"""


def sequence_key(codes: np.ndarray, prefix_frames: int = 0) -> str:
    """Digest of tokens [K, T], equal for equal tokens whatever their integer type, and of how many frames are given."""
    content = np.ascontiguousarray(codes, dtype=np.int32)
    given = f" prefix {prefix_frames}" if prefix_frames else ""
    return blake3.blake3(f"{content.shape}{given}".encode() + content.tobytes()).hexdigest()[:40]


class NLLCache:
    """The scored sequences of one model.

    Args:
        folder: where they are kept; None keeps them in memory.
        writes: whether new ones go to the folder, or, as on all ranks but one, to memory.
    """

    def __init__(self, folder: Path | None, identity: str, writes: bool = True):
        self._root, self._writes = folder, writes
        self._identity = identity
        self._folder = None if folder is None else folder / blake3.blake3(identity.encode()).hexdigest()[:32]
        self._memory: dict[str, np.ndarray] = {}
        self._files: dict[str, Path] = {}
        if self._folder is not None and self._folder.is_dir():
            for partial in self._folder.glob(".*.partial"):
                # A fresh one may be another process's, which is writing it or has just renamed it.
                with suppress(FileNotFoundError):
                    if time.time() - partial.stat().st_mtime > _ABANDONED:
                        partial.unlink()
            for path in sorted(self._folder.glob("*.safetensors")):
                self._index(path)

    def of(self, identity: str) -> NLLCache:
        """The sequences of another model, beside these."""
        return NLLCache(self._root, identity, self._writes)

    def _index(self, path: Path) -> None:
        try:
            self._files |= dict.fromkeys(self._load(path), path)
        except CorruptFileError as problem:
            _log.warning("%s is %s: its sequences are scored again", path, problem)

    def _load(self, path: Path) -> dict[str, np.ndarray]:
        tensors = load_whole(path, load)
        seal = tensors.pop("digest", None)
        if seal is None or seal.tobytes() != self._seal(tensors):
            raise CorruptFileError("not what was written: its digest does not fit its content")
        return tensors

    def _seal(self, values: Mapping[str, np.ndarray]) -> bytes:
        """32 bytes that stand for the identity and everything that a file holds."""
        digest = blake3.blake3(self._identity.encode())
        for key in sorted(values):
            digest.update(f" {key} {values[key].dtype} {values[key].shape} ".encode())
            digest.update(np.ascontiguousarray(values[key]).tobytes())
        return digest.digest()

    def __contains__(self, key: str) -> bool:
        return key in self._memory or key in self._files

    def add(self, values: Mapping[str, np.ndarray]) -> None:
        """Keeps the results of one batch, all or nothing."""
        if self._folder is None or not self._writes:
            self._memory |= values
            return
        name = blake3.blake3(" ".join(sorted(values)).encode()).hexdigest()[:32]
        path = self._folder / f"{name}.safetensors"
        content = {key: np.ascontiguousarray(value) for key, value in values.items()}
        content["digest"] = np.frombuffer(self._seal(content), np.uint8)
        with writing(path):
            self._folder.mkdir(parents=True, exist_ok=True)
            write_atomically(path, save(content))
        self._files |= dict.fromkeys(values, path)

    def read(self, keys: list[str]) -> dict[str, np.ndarray]:
        """NLL of every key; each file is opened once. Raises KeyError for a key that was never added."""
        found = {key: self._memory[key] for key in keys if key in self._memory}
        by_file: dict[Path, list[str]] = {}
        for key in keys:
            if key not in found:
                by_file.setdefault(self._files[key], []).append(key)
        for path, wanted in by_file.items():
            try:
                tensors = self._load(path)
            except CorruptFileError as problem:
                raise EvaluationError(f"{path} is {problem}; start again, and its sequences are scored again") from None
            found |= {key: tensors[key] for key in wanted}
        return found
