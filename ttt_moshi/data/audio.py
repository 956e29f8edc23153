"""Sound files in, 24 kHz float blocks out: any rate, mono or stereo, never a whole recording in memory."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
import soxr

from ttt_moshi.data.errors import DataError
from ttt_moshi.frames import FRAME_SIZE, SAMPLE_RATE

AUDIO_SUFFIXES = (".wav", ".flac", ".mp3", ".ogg")

_BLOCK_SECONDS = 4
_UNKNOWN_SIZE = 0x7FFF0000


@dataclass(frozen=True)
class AudioInfo:
    """What a sound file's header says; `samples` per channel at the file's own `sample_rate`."""

    sample_rate: int
    channels: int
    samples: int

    @property
    def seconds(self) -> float:
        return self.samples / self.sample_rate

    @property
    def samples_24k(self) -> int:
        """Samples per channel after resampling to 24 kHz."""
        return -(-self.samples * SAMPLE_RATE // self.sample_rate)

    @property
    def frames(self) -> int:
        """Mimi frames; the last one may be part silence."""
        return -(-self.samples_24k // FRAME_SIZE)


def read_info(path: Path) -> AudioInfo:
    """The header of a sound file.

    Raises:
        DataError: missing or unreadable file, or other than one or two channels.
    """
    with _open(path) as file:
        return _info(path, file)


def read_blocks(path: Path) -> Iterator[np.ndarray]:
    """The whole recording as consecutive float32 blocks `[channels, n]` at 24 kHz, `samples_24k` samples in all.

    The same file gives the same blocks, bit for bit: the resampler (soxr, high quality) always sees the same input
    blocks. Full scale is 1.0.

    Raises:
        DataError: missing or unreadable file, other than one or two channels, a file that ends before its header
            says, or samples that are not finite.
    """
    with _open(path) as file:
        info = _info(path, file)
        resampler = None
        if info.sample_rate != SAMPLE_RATE:
            resampler = soxr.ResampleStream(info.sample_rate, SAMPLE_RATE, info.channels, dtype="float32")
        read = written = 0
        while read < info.samples:
            block = _read_block(path, file, info, min(_BLOCK_SECONDS * info.sample_rate, info.samples - read))
            read += len(block)
            if resampler is not None:
                block = resampler.resample_chunk(block, last=read == info.samples)
            # A resampler rounds the length its own way; the recording's length is a matter of arithmetic.
            block = block[: info.samples_24k - written]
            written += len(block)
            if len(block):
                yield np.ascontiguousarray(block.T)
        if written < info.samples_24k:
            yield np.zeros((info.channels, info.samples_24k - written), np.float32)


def read_audio(path: Path) -> np.ndarray:
    """`read_blocks` as one float32 array `[channels, samples_24k]`."""
    blocks = list(read_blocks(path))
    return np.concatenate(blocks, axis=1) if blocks else np.zeros((read_info(path).channels, 0), np.float32)


def _open(path: Path) -> soundfile.SoundFile:
    if not path.is_file():
        raise DataError(f"no sound file at {path}")
    try:
        _refuse_a_cut_wav(path)
        return soundfile.SoundFile(str(path))
    except soundfile.SoundFileError as error:
        raise DataError(f"{path} is not a sound file that can be read: {_reason(error)}") from error


def _refuse_a_cut_wav(path: Path) -> None:
    """libsndfile takes a wav that was cut short for a shorter recording, so its own length is looked at here."""
    with path.open("rb") as file:
        riff, _, wave = struct.unpack("<4sI4s", file.read(12).ljust(12))
        if (riff, wave) != (b"RIFF", b"WAVE"):
            return
        while len(header := file.read(8)) == 8:
            name, size = struct.unpack("<4sI", header)
            if name == b"data":
                there = path.stat().st_size - file.tell()
                # A program that writes into a pipe cannot know the size, and puts something enormous or nothing.
                if there < size < _UNKNOWN_SIZE:
                    raise DataError(f"{path} ends after {there} of the {size} bytes of its sound; copy it again")
                return
            file.seek(size + size % 2, os.SEEK_CUR)


def _info(path: Path, file: soundfile.SoundFile) -> AudioInfo:
    if file.channels not in (1, 2):
        raise DataError(f"{path} has {file.channels} channels; one (mono) or two (left Moshi, right user) are usable")
    return AudioInfo(file.samplerate, file.channels, file.frames)


def _read_block(path: Path, file: soundfile.SoundFile, info: AudioInfo, size: int) -> np.ndarray:
    try:
        block = file.read(size, dtype="float32", always_2d=True)
    except soundfile.SoundFileError as error:
        raise DataError(f"{path} cannot be read to its end: {_reason(error)}") from error
    if len(block) < size:
        raise DataError(f"{path} ends before the {info.seconds:.2f} s that its header promises; copy it again")
    if not np.isfinite(block).all():
        raise DataError(f"{path} holds samples that are not finite numbers")
    return block


def _reason(error: Exception) -> str:
    # libsndfile repeats the path: "Error opening '...': Format not recognised."
    return str(error).rsplit("': ", 1)[-1].strip()
