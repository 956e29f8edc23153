"""Audio files that are written with soundfile, whose own errors say no more than "System error" of a full disk."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import soundfile

from ttt_moshi.files import naming


@contextmanager
def new_sound(
    path: Path, sample_rate: int, channels: int, *, kind: str | None = None, subtype: str | None = None
) -> Iterator[soundfile.SoundFile]:
    """An audio file to write blocks `[n, channels]` to; the same bytes as soundfile writes to a path.

    Args:
        kind: WAV, FLAC ...; None takes what the suffix says.
        subtype: such as PCM_16; None takes the usual one of the kind.

    Raises:
        OSError: the file cannot be written, with its path. What of it is there stays.
    """
    with naming(path):
        file = path.open("wb", buffering=0)
    with file:
        target = _Target(file)
        try:
            with soundfile.SoundFile(
                target, "w", sample_rate, channels, subtype=subtype, format=kind or path.suffix.lstrip(".").upper()
            ) as sound:
                yield sound
        except Exception:
            target.raise_trouble(path)  # whatever soundfile made of it
            raise
        target.raise_trouble(path)
        with naming(path):
            os.fsync(file.fileno())  # as soundfile does with a path; some disks say only now that they are full


def write_sound(
    path: Path, samples: np.ndarray, sample_rate: int, *, kind: str | None = None, subtype: str | None = None
) -> None:
    """Samples `[n]` or `[n, channels]` as an audio file. Arguments and errors as those of `new_sound`."""
    with new_sound(
        path, sample_rate, 1 if samples.ndim == 1 else samples.shape[1], kind=kind, subtype=subtype
    ) as sound:
        sound.write(samples)


class _Target:
    """What soundfile writes to. It prints exceptions of a file and loses them, so the first one is kept here."""

    def __init__(self, file: io.FileIO):
        self._file = file
        self._trouble: OSError | None = None

    def write(self, data: bytes) -> int:
        """How many bytes were written: fewer than there are only where there is trouble."""
        rest = memoryview(data)
        try:
            while rest and self._trouble is None:  # a disk that is nearly full takes a part, and fails the next time
                rest = rest[self._file.write(rest) :]
        except OSError as error:
            self._trouble = error
        return len(data) - len(rest)

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()

    def raise_trouble(self, path: Path) -> None:
        """Raises what a write has met, if any has, with the path in it."""
        if self._trouble is not None:
            with naming(path):
                raise self._trouble
