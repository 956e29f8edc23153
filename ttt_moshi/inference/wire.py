"""What goes over the web socket: moshi's messages, and the two forms that audio has in them.

A message is a byte that says what it is, and its content. Kinds 0 to 2 are those of moshi's clients; 4 is JSON, sent
only to those who ask for it (`?events=1`).
"""

from __future__ import annotations

import json
from typing import Any, Protocol

import numpy as np
import sphn

READY, AUDIO, TEXT, EVENT = b"\x00", b"\x01", b"\x02", b"\x04"
IGNORED = (b"\x00", b"\x03", b"\x05", b"\x06")
"""greetings, controls, errors and pings of moshi's own page, to which there is nothing to say"""

MAX_MESSAGE_BYTES = 64 * 1024
MAX_OPUS_BYTES = 8 * 1024
MAX_SILENT_BYTES = 256 * 1024
"""that may come one after another without a sample: titles and a page of Ogg, which holds 64 kB"""
OGG_BEGINS = b"OggS"
MAX_SECONDS_A_MESSAGE = 2.0


class WireError(Exception):
    """A message that cannot be understood; `str()` says why, in at most 100 letters."""


class Audio(Protocol):
    """Samples from and to the bytes of audio messages; each direction is a stream."""

    def decode(self, data: bytes) -> np.ndarray:
        """float32 samples; raises WireError."""
        ...

    def encode(self, samples: np.ndarray) -> bytes:
        """The bytes of float32 samples, "" as long as there is nothing to send."""
        ...


class Opus:
    """Opus in Ogg, as moshi's clients have it."""

    def __init__(self, sample_rate: int) -> None:
        self._sample_rate = sample_rate
        self._reader = sphn.OpusStreamReader(sample_rate)
        self._writer = sphn.OpusStreamWriter(sample_rate)
        self._begun = b""
        self._silent_bytes = 0

    def decode(self, data: bytes) -> np.ndarray:
        if len(data) > MAX_OPUS_BYTES:
            raise WireError(f"{len(data)} bytes of Opus in one message; at most {MAX_OPUS_BYTES} are read")
        # The reader says nothing before it has a page's whole header, so of a few wrong bytes it would await more.
        self._begun += data[: len(OGG_BEGINS) - len(self._begun)]
        if not OGG_BEGINS.startswith(self._begun):
            raise WireError("not Opus in Ogg: the stream does not begin with OggS")
        try:
            samples = self._reader.append_bytes(data)
        except ValueError as error:
            raise WireError(f"not Opus in Ogg: {error}"[:100]) from error
        # The reader keeps a packet until it ends, and one that never does would fill the memory.
        self._silent_bytes = 0 if len(samples) else self._silent_bytes + len(data)
        if self._silent_bytes > MAX_SILENT_BYTES:
            raise WireError(f"{self._silent_bytes} bytes of Opus hold no sound")
        return _limited(samples, self._sample_rate)

    def encode(self, samples: np.ndarray) -> bytes:
        return bytes(self._writer.append_pcm(samples))


class Pcm:
    """Samples as they are, 16 bits, little end first."""

    def __init__(self, sample_rate: int) -> None:
        self._sample_rate = sample_rate

    def decode(self, data: bytes) -> np.ndarray:
        if len(data) % 2:
            raise WireError("PCM of 16 bits has an even number of bytes")
        return _limited(np.frombuffer(data, "<i2").astype(np.float32) / 2**15, self._sample_rate)

    def encode(self, samples: np.ndarray) -> bytes:
        return (samples.clip(-1.0, 1.0) * (2**15 - 1)).round().astype("<i2").tobytes()


FORMATS: dict[str, type[Opus] | type[Pcm]] = {"opus": Opus, "pcm": Pcm}


def event(kind: str, **values: Any) -> bytes:
    """A JSON message."""
    return EVENT + json.dumps({"type": kind, **values}).encode()


def parse_event(data: bytes) -> dict[str, Any]:
    """The JSON object of a message's content; raises WireError."""
    try:
        value = json.loads(data.decode())
    except (ValueError, RecursionError) as error:
        raise WireError("not JSON") from error
    if not isinstance(value, dict) or not isinstance(value.get("type"), str):
        raise WireError("not a JSON object with a type")
    return value


def _limited(samples: np.ndarray, sample_rate: int) -> np.ndarray:
    if len(samples) > MAX_SECONDS_A_MESSAGE * sample_rate:
        seconds = len(samples) / sample_rate
        raise WireError(f"{seconds:.1f} s of audio in one message; at most {MAX_SECONDS_A_MESSAGE} s are heard")
    if not np.isfinite(samples).all():
        raise WireError("audio that is not finite")
    return samples
