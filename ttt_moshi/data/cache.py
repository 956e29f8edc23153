"""Codes on disk, so that every recording is encoded once.

One safetensors file per recording and codec, named by the BLAKE3 digests of the audio file's bytes and of the codec. A
file is written under another name and renamed into place, and its content is checked on every read.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path

import blake3
import torch
from safetensors import SafetensorError
from safetensors.torch import load, save

from ttt_moshi.data.audio import AudioInfo, read_audio, read_blocks, read_info
from ttt_moshi.data.codec import SHORT_FRAMES, Codec
from ttt_moshi.data.digests import Digests
from ttt_moshi.data.errors import DataError
from ttt_moshi.files import read_bytes, write_atomically

OnFrames = Callable[[int, int], None]
"""called while a recording is encoded, with the frames done and the frames in all"""

_FORMAT = "mimi-codes-1"

_GROUP = 64
"""short recordings read at once"""

_log = logging.getLogger(__name__)


class CodeCache:
    """Codes of recordings, kept in `folder`. Several processes and threads may share the folder."""

    def __init__(self, folder: Path, codec: Codec, digests: Digests | None = None):
        self._folder = folder
        self._codec = codec
        self._digests = digests or Digests(folder)

    def codes(self, audio: Path, on_frames: OnFrames | None = None) -> torch.Tensor:
        """Codes `[channels, num_codebooks, T]` of an audio file, from the folder or freshly encoded into it.

        Raises:
            DataError: an audio file that cannot be used, or a folder that cannot be written.
        """
        file, key = self._place(audio)
        if file.exists():
            try:
                return self._read(file, key)
            except _CorruptError as error:
                _log.warning("rebuilding %s, the cached codes of %s: %s", file, audio, error)
        info = read_info(audio, self._digests)
        if info.frames <= SHORT_FRAMES:
            codes = torch.stack(self._codec.encode_short(list(read_audio(audio))))
        else:
            codes = self._codec.encode(read_blocks(audio), info.channels, _per_recording(on_frames, info))
        self._write(file, key, codes)
        return codes

    def fill(self, recordings: Sequence[Path], on_recording: Callable[[int, int], None] | None = None) -> None:
        """Encodes those recordings that are not in the folder yet, short ones side by side: the same codes, sooner.

        Args:
            on_recording: called with the number of recordings that are done and of all that were given.

        Raises:
            DataError: an audio file that cannot be used, or a folder that cannot be written.
        """
        missing = [audio for audio in dict.fromkeys(recordings) if not self.has(audio)]
        infos = {audio: read_info(audio, self._digests) for audio in missing}
        # By length, so that few places are left over; a group's audio is in memory together.
        order = sorted(missing, key=lambda audio: infos[audio].frames)
        short = [audio for audio in order if infos[audio].frames <= SHORT_FRAMES]
        groups = [short[i : i + _GROUP] for i in range(0, len(short), _GROUP)] + [[a] for a in order[len(short) :]]
        done = len(recordings) - len(missing)
        for group in groups:
            if infos[group[0]].frames > SHORT_FRAMES:
                self.codes(group[0])
            else:
                sounds = [read_audio(audio) for audio in group]
                codes = iter(self._codec.encode_short([channel for sound in sounds for channel in sound]))
                for audio, sound in zip(group, sounds, strict=True):
                    file, key = self._place(audio)
                    self._write(file, key, torch.stack([next(codes) for _ in sound]))
            done += len(group)
            if on_recording:
                on_recording(done, len(recordings))

    def has(self, audio: Path) -> bool:
        """Whether codes of this audio file are in the folder."""
        return self._place(audio)[0].exists()

    def _place(self, audio: Path) -> tuple[Path, str]:
        """The file for a recording's codes, and the digest of the recording."""
        key = self._digests.of(audio)
        return self._folder / f"{key[:32]}-{self._codec.fingerprint[:16]}.safetensors", key

    def _read(self, file: Path, key: str) -> torch.Tensor:
        content = read_bytes(file)
        try:
            tensors = load(content)
        except SafetensorError as error:
            raise _CorruptError(f"not a whole safetensors file ({error})") from error
        if set(tensors) != {"codes", "digest"}:
            raise _CorruptError(f"it holds the tensors {sorted(tensors)}")
        codes = tensors["codes"]
        if not torch.equal(tensors["digest"], _seal(key, self._codec.fingerprint, codes)):
            raise _CorruptError("its digest does not fit its content")
        return codes

    def _write(self, file: Path, key: str, codes: torch.Tensor) -> None:
        content = save({"codes": codes, "digest": _seal(key, self._codec.fingerprint, codes)})
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            # Not forced to the disk: what a power failure leaves behind does not pass the check of its digest, and
            # waiting for the disk after every short recording would take longer than encoding it.
            write_atomically(file, content, durable=False)
        except OSError as error:
            raise DataError(
                f"cannot write the code cache {self._folder}: {error.strerror or error}; "
                "`data.code_cache_dir`, in evaluations `--cache_dir`, names another folder"
            ) from error


class _CorruptError(Exception):
    """A cache file that must be made again."""


def _seal(key: str, fingerprint: str, codes: torch.Tensor) -> torch.Tensor:
    """uint8 `[32]`: a digest of everything that a cache file stands for."""
    digest = blake3.blake3(f"{_FORMAT} {key} {fingerprint} {codes.dtype} {tuple(codes.shape)}".encode())
    digest.update(codes.contiguous().numpy().tobytes())
    return torch.frombuffer(bytearray(digest.digest()), dtype=torch.uint8)


def _per_recording(on_frames: OnFrames | None, info: AudioInfo) -> Callable[[int], None] | None:
    return None if on_frames is None else lambda done: on_frames(done, info.frames)
