"""Codes on disk, so that every recording is encoded once.

One safetensors file per recording and codec, named by the BLAKE3 digests of the sound file's bytes and of the codec. A
file is written under another name and renamed into place, and its content is checked on every read.
"""

from __future__ import annotations

import logging
import os
import uuid
from collections.abc import Callable
from pathlib import Path

import blake3
import torch
from safetensors import SafetensorError
from safetensors.torch import load, save

from ttt_moshi.data.audio import AudioInfo, read_blocks, read_info
from ttt_moshi.data.codec import Codec
from ttt_moshi.data.errors import DataError

OnFrames = Callable[[int, int], None]
"""called while a recording is encoded, with the frames done and the frames in all"""

DEFAULT_FOLDER = ".mimi_codes"

_FORMAT = "mimi-codes-1"

_log = logging.getLogger(__name__)


class CodeCache:
    """Codes of recordings, kept in `folder`. Several processes and threads may share the folder."""

    def __init__(self, folder: Path, codec: Codec):
        self._folder = folder
        self._codec = codec
        self._digests: dict[tuple[str, int, int], str] = {}

    def codes(self, audio: Path, on_frames: OnFrames | None = None) -> torch.Tensor:
        """Codes `[channels, num_codebooks, T]` of a sound file, from the folder or freshly encoded into it.

        Raises:
            DataError: a sound file that cannot be used, or a folder that cannot be written.
        """
        key = self._audio_digest(audio)
        file = self._folder / f"{key[:32]}-{self._codec.fingerprint[:16]}.safetensors"
        if file.exists():
            try:
                return self._read(file, key)
            except _DamagedError as damage:
                _log.warning("rebuilding %s, the cached codes of %s: %s", file, audio, damage)
        info = read_info(audio)
        codes = self._codec.encode(read_blocks(audio), info.channels, _per_recording(on_frames, info))
        self._write(file, key, codes)
        return codes

    def has(self, audio: Path) -> bool:
        """Whether codes of this sound file are in the folder."""
        key = self._audio_digest(audio)
        return (self._folder / f"{key[:32]}-{self._codec.fingerprint[:16]}.safetensors").exists()

    def _audio_digest(self, audio: Path) -> str:
        try:
            stat = audio.stat()
            identity = (str(audio), stat.st_size, stat.st_mtime_ns)
            if identity not in self._digests:
                self._digests[identity] = blake3.blake3().update_mmap(audio).hexdigest()
        except OSError as error:
            raise DataError(f"cannot read {audio}: {error.strerror or error}") from error
        return self._digests[identity]

    def _read(self, file: Path, key: str) -> torch.Tensor:
        content = file.read_bytes()
        try:
            tensors = load(content)
        except SafetensorError as error:
            raise _DamagedError(f"not a whole safetensors file ({error})") from error
        if set(tensors) != {"codes", "digest"}:
            raise _DamagedError(f"it holds the tensors {sorted(tensors)}")
        codes = tensors["codes"]
        if not torch.equal(tensors["digest"], _seal(key, self._codec.fingerprint, codes)):
            raise _DamagedError("its digest does not fit its content")
        return codes

    def _write(self, file: Path, key: str, codes: torch.Tensor) -> None:
        content = save({"codes": codes, "digest": _seal(key, self._codec.fingerprint, codes)})
        temporary = file.with_name(f".{uuid.uuid4().hex}.tmp")
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            try:
                with temporary.open("xb") as stream:
                    stream.write(content)
                    stream.flush()
                    os.fsync(stream.fileno())
                temporary.replace(file)
            finally:
                temporary.unlink(missing_ok=True)
        except OSError as error:
            raise DataError(
                f"cannot write the code cache {self._folder}: {error.strerror or error}; "
                "`data.code_cache_dir` names another folder"
            ) from error


class _DamagedError(Exception):
    """A cache file that must be made again."""


def _seal(key: str, fingerprint: str, codes: torch.Tensor) -> torch.Tensor:
    """uint8 `[32]`: a digest of everything that a cache file stands for."""
    digest = blake3.blake3(f"{_FORMAT} {key} {fingerprint} {codes.dtype} {tuple(codes.shape)}".encode())
    digest.update(codes.contiguous().numpy().tobytes())
    return torch.frombuffer(bytearray(digest.digest()), dtype=torch.uint8)


def _per_recording(on_frames: OnFrames | None, info: AudioInfo) -> Callable[[int], None] | None:
    return None if on_frames is None else lambda done: on_frames(done, info.frames)
