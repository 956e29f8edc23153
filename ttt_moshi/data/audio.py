"""Audio files in, 24 kHz float blocks out: any container that libav reads, at any rate, never a whole file in memory.

A header is believed only where the samples have a fixed size (wav, aiff, au, sph and the like, and flac, which counts
its own samples). Elsewhere it is an estimate at best, so the file is decoded to its end to know its length.
"""

from __future__ import annotations

import io
import json
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path
from typing import IO

import av
import numpy as np
import soxr

from ttt_moshi.data import remote
from ttt_moshi.data.addresses import url_of
from ttt_moshi.data.digests import Digests
from ttt_moshi.data.errors import DataError, PassingError, kind_of
from ttt_moshi.data.remote import local
from ttt_moshi.frames import FRAME_SIZE, SAMPLE_RATE

AUDIO_SUFFIXES = (
    ".wav", ".w64", ".rf64", ".caf", ".flac", ".aif", ".aiff", ".aifc", ".au", ".snd", ".sph", ".mp2", ".mp3", ".m4a",
    ".m4b", ".mp4", ".mov", ".3gp", ".aac", ".ac3", ".ogg", ".oga", ".opus", ".webm", ".mka", ".mkv", ".wma", ".gsm",
    ".amr",
)  # fmt: skip
"""names under which recordings are looked for; what a file is, its content says"""

MAX_CHANNELS = 8

# Demuxers that read nothing but the file itself: no playlists, no addresses.
_CONTAINERS = (
    "wav", "w64", "caf", "flac", "aiff", "au", "nistsphere", "mp3", "mov,mp4,m4a,3gp,3g2,mj2", "aac", "ac3", "ogg",
    "matroska,webm", "asf", "gsm", "amr",
)  # fmt: skip
_NAMED_BY_SUFFIX = {".gsm": "gsm"}
"""streams without any header"""
_FIXED_SIZE = ("pcm_", "flac")
_EXACT_CONTAINERS = ("wav", "w64", "caf", "flac", "aiff", "au", "nistsphere")
"""codecs and containers that together know their length to the sample"""
_BLOCK_SECONDS = 4
_MISSING = 0.1
"""seconds between two pieces of a stream in which something was lost"""
_EARLY = 0.25
"""seconds by which a header that is not exact may promise too much"""
_OGG_PAGE = 65307
"""bytes of the largest page"""
_UNKNOWN_SIZE = 0x7FFF0000


@dataclass(frozen=True)
class AudioInfo:
    """What an audio file holds; `samples` per channel at the file's own `sample_rate`."""

    sample_rate: int
    channels: int
    samples: int
    tracks: int = 1
    """audio tracks in the file, of which the first is read"""
    ends_early: str | None = None
    """what says that this is only the beginning of a recording"""
    begins_late: float = 0.0
    """seconds by which the picture, or whatever else is in the file, begins before the sound"""

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


def files_below(folder: Path) -> list[Path]:
    """Every file below a folder, or below one at a URL, links to files and folders included, in the order of their
    names. Every folder is entered once: where it lies, if it lies there, or else by the first link that leads into it.

    Raises:
        DataError: a store without folders, or that cannot be asked.
    """
    if url_of(folder) is not None:
        return remote.files_below(folder)
    found: list[Path] = []
    seen: set[str] = set()
    starts = [str(folder)]
    for start in starts:  # links are added to them, to be followed when all that lies here is known
        for place, folders, names in os.walk(start):
            folders.sort()
            if (real := os.path.realpath(place)) in seen:
                folders.clear()
                continue
            seen.add(real)
            starts += filter(os.path.islink, [os.path.join(place, name) for name in folders])
            found += [Path(place, name) for name in names]
    return sorted(found)


_LOOKED_AT = "audio 2"
"""its number is raised whenever the same file would be found otherwise"""


def read_info(path: Path, known: Digests | None = None) -> AudioInfo:
    """Rate, channels and length of an audio file, decoded to its end where no header can be trusted.

    Args:
        known: remembers what was found, so that nothing is opened again.

    Raises:
        DataError: missing or unreadable file, or one without audio.
    """
    if known is None:
        return _look_at(path)
    return AudioInfo(**json.loads(known.remember(path, _LOOKED_AT, lambda path: json.dumps(asdict(_look_at(path))))))


def _look_at(path: Path) -> AudioInfo:
    with _open(path) as (container, stream):
        header = _trusted_header(container, stream)
        if header is not None:
            return header
        rate, channels, tracks = stream.rate, stream.channels, len(container.streams.audio)
        promised, ogg = _promised_seconds(path, container, stream), container.format.name == "ogg"
        late = _begins_late(container, stream)
        if promised is not None and container.format.name == "matroska,webm":
            promised -= late  # what it promises is the end of everything in it
    samples = _count(path)
    ends_early = None
    if promised is not None and promised > samples / rate + _EARLY:
        ends_early = f"ends {promised - samples / rate:.2f} s earlier than its header says: used as far as it goes"
    elif ogg and not _has_end_mark(path):
        ends_early = "its ogg stream has no end mark, as if the rest were missing: used as far as it goes"
    return AudioInfo(rate, channels, samples, tracks, ends_early, late)


def read_blocks(path: Path) -> Iterator[np.ndarray]:
    """The whole recording as consecutive float32 blocks `[channels, n]` at 24 kHz, `samples_24k` samples in all.

    The same file gives the same blocks, bit for bit: the resampler (soxr, high quality) always sees the same input
    blocks. Full scale is 1.0.

    Raises:
        DataError: missing or unreadable file, a file that ends before its header says or cannot be decoded to its end,
            or samples that are not finite.
    """
    with _open(path) as (container, stream):
        header = _trusted_header(container, stream)
        rate, channels = stream.rate, stream.channels
        resampler = soxr.ResampleStream(rate, SAMPLE_RATE, channels, dtype="float32") if rate != SAMPLE_RATE else None
        read = written = 0
        blocks = _even_blocks(_decode(path, container, stream), channels, _BLOCK_SECONDS * rate)
        waiting: np.ndarray | None = None
        # One block behind, so that the resampler is told which one is the last.
        for block in chain(blocks, [None]):
            if waiting is not None:
                if block is None and header is not None and read != header.samples:
                    raise DataError(_wrong_length(path, header, read))
                out = waiting.T if resampler is None else resampler.resample_chunk(waiting.T, last=block is None)
                # A resampler rounds the length its own way; the recording's length is a matter of arithmetic.
                out = out[: AudioInfo(rate, channels, read).samples_24k - written]
                written += len(out)
                if len(out):
                    yield np.ascontiguousarray(out.T)
            waiting = block
            read += 0 if block is None else block.shape[1]
        if read == 0 and header is not None and header.samples:
            raise DataError(_wrong_length(path, header, 0))
        missing = AudioInfo(rate, channels, read).samples_24k - written
        if missing:
            yield np.zeros((channels, missing), np.float32)


def read_audio(path: Path) -> np.ndarray:
    """`read_blocks` as one float32 array `[channels, samples_24k]`."""
    blocks = list(read_blocks(path))
    return np.concatenate(blocks, axis=1) if blocks else np.zeros((read_info(path).channels, 0), np.float32)


@contextmanager
def _open(path: Path) -> Iterator[tuple[av.container.InputContainer, av.AudioStream]]:
    """The container and its first audio stream. Errors of reading, wherever they arise, become `DataError`."""
    try:
        file = local(path).open("rb")
    except FileNotFoundError:
        raise DataError(f"no audio file at {path}") from None
    except OSError as error:
        raise PassingError(f"cannot read {path}: {error.strerror or error}") from error
    with file:
        if not os.fstat(file.fileno()).st_size:
            raise DataError(f"{path} is an empty file")
        _refuse_a_cut_wav(path, file)
        try:
            with av.open(
                file,
                format=_NAMED_BY_SUFFIX.get(path.suffix.lower()),
                options={"format_whitelist": ",".join(_CONTAINERS)},
                metadata_errors="ignore",
            ) as container:
                if not container.streams.audio:
                    raise DataError(f"{path} holds no audio")
                stream = container.streams.audio[0]
                if not (stream.rate and 1 <= stream.channels <= MAX_CHANNELS):
                    raise DataError(f"{path} has {stream.channels} channels; 1 to {MAX_CHANNELS} can be read")
                yield container, stream  # type: ignore[misc]  # a container that is read is an InputContainer
        except (av.FFmpegError, OSError) as error:
            raise kind_of(error)(f"{path} is not an audio file that can be read: {_reason(error)}") from error


def _refuse_a_cut_wav(path: Path, file: IO[bytes]) -> None:
    """A wav that was cut short passes for a shorter recording, so its own length is looked at here."""
    riff, _, wave = struct.unpack("<4sI4s", file.read(12).ljust(12))
    if (riff, wave) == (b"RIFF", b"WAVE"):
        while len(header := file.read(8)) == 8:
            name, size = struct.unpack("<4sI", header)
            if name == b"data":
                begin = file.tell()
                there = file.seek(0, io.SEEK_END) - begin
                if _another_wav_follows(file, begin, size):
                    raise DataError(f"{path} holds several wav files one after the other; split them")
                # A program that writes into a pipe cannot know the size, and puts something enormous or nothing.
                if there < size < _UNKNOWN_SIZE:
                    raise DataError(f"{path} ends after {there} of the {size} bytes of its audio; copy it again")
                break
            file.seek(size + size % 2, io.SEEK_CUR)
    file.seek(0)


def _another_wav_follows(file: IO[bytes], at: int, size: int) -> bool:
    """Whether one begins among the chunks behind that whose content lies at a byte and has so many."""
    while True:
        at += size
        file.seek(at)
        # Not everybody fills up chunks of odd sizes, and no name begins with a zero.
        at += size % 2 if file.read(1) == b"\0" else 0
        file.seek(at)
        header = file.read(8)
        if len(header) < 8 or min(header[:4]) < ord(" "):
            return False
        name, size = struct.unpack("<4sI", header)
        if name in (b"RIFF", b"RF64"):
            return True
        at += 8


def _trusted_header(container: av.container.InputContainer, stream: av.AudioStream) -> AudioInfo | None:
    duration, codec = stream.duration, stream.codec_context.name
    if not codec.startswith(_FIXED_SIZE) or not duration or stream.time_base is None:
        return None
    if container.format.name not in _EXACT_CONTAINERS:
        return None  # what is inside may be exact, but the container rounds or guesses its length
    samples = duration * stream.time_base * stream.rate
    return AudioInfo(stream.rate, stream.channels, round(samples), len(container.streams.audio))


def _promised_seconds(path: Path, container: av.container.InputContainer, stream: av.AudioStream) -> float | None:
    """What a header says that was written by somebody who knew; None where there is nothing but an estimate."""
    kind = container.format.name
    if kind == "matroska,webm":
        return None if container.duration is None else container.duration / av.time_base
    if stream.duration is None or stream.time_base is None or not (kind.startswith("mov") or kind in ("asf", "mp3")):
        return None
    if kind == "mp3" and not _counts_its_frames(path):
        return None
    return float(stream.duration * stream.time_base)


def _begins_late(container: av.container.InputContainer, stream: av.AudioStream) -> float:
    """Seconds from the beginning of a film to that of its sound; 0 where there is less than a quarter between them."""
    others = [other for other in container.streams if other is not stream and other.type == "video"]
    if not others or stream.start_time is None or stream.time_base is None:
        return 0.0
    begins = [
        float(other.start_time * other.time_base)
        for other in others
        if other.start_time is not None and other.time_base
    ]
    late = float(stream.start_time * stream.time_base) - min(begins, default=0.0)
    return late if late > _EARLY else 0.0


def _counts_its_frames(path: Path) -> bool:
    """Whether the first frame of an mp3 file says how many there are."""
    with local(path).open("rb") as file:
        head = file.read(10)
        if head[:3] == b"ID3":
            # Seven bits a byte.
            file.seek(10 + sum(byte << shift for byte, shift in zip(head[6:10], (21, 14, 7, 0), strict=True)))
        else:
            file.seek(0)
        frame = file.read(2000)
    return any(tag in frame for tag in (b"Xing", b"Info", b"VBRI"))


def _has_end_mark(path: Path) -> bool:
    """Whether the last page of an ogg file says that it is the last one."""
    with local(path).open("rb") as file:
        file.seek(max(0, file.seek(0, io.SEEK_END) - _OGG_PAGE))
        tail = file.read()
    page = tail.rfind(b"OggS")
    return 0 <= page < len(tail) - 5 and bool(tail[page + 5] & 4)


def _count(path: Path) -> int:
    with _open(path) as (container, stream):
        return sum(block.shape[1] for block in _decode(path, container, stream))


def _decode(path: Path, container: av.container.InputContainer, stream: av.AudioStream) -> Iterator[np.ndarray]:
    """Float32 `[channels, any length]` to the end of the file."""
    rate, channels, samples = stream.rate, stream.channels, 0
    expected: float | None = None  # seconds at which the next piece should begin
    try:
        for frame in container.decode(stream):
            if (frame.sample_rate, frame.layout.nb_channels) != (rate, channels):
                raise DataError(
                    f"{path} changes at {samples / rate:.2f} s from {rate} Hz, {channels} channels to "
                    f"{frame.sample_rate} Hz, {frame.layout.nb_channels} channels; split it there"
                )
            lost = 0.0
            if frame.pts is not None and frame.time_base is not None:
                begins = float(frame.pts * frame.time_base)
                lost = begins - (begins if expected is None else expected)
                expected = begins + frame.samples / rate
            if lost > _MISSING:
                raise DataError(
                    f"{path}: {lost:.2f} s are missing after {samples / rate:.2f} s, and later words would come too "
                    "early; get the whole file, or fill the gap with silence (`ffmpeg -i IN -af aresample=async=1 OUT`)"
                )
            block = _to_float(frame)
            if not np.isfinite(block).all():
                raise DataError(f"{path} holds samples that are not finite numbers")
            samples += block.shape[1]
            yield block
    except av.FFmpegError as error:
        raise kind_of(error)(f"{path} cannot be decoded after {samples / rate:.2f} s: {_reason(error)}") from error


def _to_float(frame: av.AudioFrame) -> np.ndarray:
    """Samples `[channels, n]`, full scale 1.0."""
    samples = frame.to_ndarray()
    if not frame.format.is_planar:
        samples = samples.reshape(-1, frame.layout.nb_channels).T
    if samples.dtype == np.uint8:
        return (samples.astype(np.float32) - 128) / 128
    if samples.dtype.kind == "i":
        # Halves of the whole range are exact in float64, whatever the width.
        return (samples / 2.0 ** (8 * samples.dtype.itemsize - 1)).astype(np.float32)
    return samples.astype(np.float32)


def _even_blocks(pieces: Iterator[np.ndarray], channels: int, size: int) -> Iterator[np.ndarray]:
    """The same samples in blocks of `size`, the last one shorter."""
    waiting: list[np.ndarray] = []
    length = 0
    for piece in pieces:
        waiting.append(piece)
        length += piece.shape[1]
        if length >= size:
            joined = np.concatenate(waiting, axis=1)
            for start in range(0, length - size + 1, size):
                yield joined[:, start : start + size]
            length %= size
            waiting = [joined[:, joined.shape[1] - length :]]
    if length:
        yield np.concatenate(waiting, axis=1)


def _wrong_length(path: Path, header: AudioInfo, read: int) -> str:
    seconds = read / header.sample_rate
    if read < header.samples:
        return f"{path} ends after {seconds:.2f} of the {header.seconds:.2f} s that its header promises; copy it again"
    return f"{path} goes on to {seconds:.2f} s after the {header.seconds:.2f} s of its header; write it anew"


def _reason(error: Exception) -> str:
    if isinstance(error, av.InvalidDataError):
        return "its content is not that of a whole audio file"
    return getattr(error, "strerror", None) or str(error)
