"""Pre-tokenized recordings: files of codes and tokens instead of audio, made wherever a codec was at hand.

A safetensors file with one tensor `codes`, int16, int32 or int64 `[1 + 2K, T]`: the text stream, K codebooks of Moshi,
K of the user, at 12.5 frames a second and not delayed; -1 where a stream is absent. Streams of Moshi that are absent
are no targets, so such a file also says what is to be predicted and what is not.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save

from ttt_moshi.data.errors import DataError
from ttt_moshi.data.interleaver import ABSENT
from ttt_moshi.data.shards import read_stored, stored_size
from ttt_moshi.files import write_atomically
from ttt_moshi.frames import frames_to_seconds

SUFFIX = ".safetensors"

_TENSOR = "codes"
_DTYPES = {"I16": torch.int16, "I32": torch.int32, "I64": torch.int64}


@dataclass(frozen=True)
class Alphabet:
    """What a language model reads: how many streams, and how many different tokens in each."""

    streams: int
    """text, Moshi's codebooks, the user's codebooks"""
    text_card: int
    card: int
    """of every audio codebook"""
    sides: int = 2
    """of the conversation that are read: Moshi's and the user's; 1 where a voice is heard and written down"""

    @classmethod
    def of_model(cls, geometry: Mapping[str, Any]) -> Alphabet:
        """That of the model whose arguments these are."""
        sides = 1 if geometry["dep_q"] == 0 else 2
        return cls(1 + geometry["n_q"], geometry["text_card"], geometry["card"], sides)


@dataclass(frozen=True)
class EncodedInfo:
    """What the header of a file of codes says."""

    streams: int
    frames: int

    @property
    def seconds(self) -> float:
        return frames_to_seconds(self.frames)


def is_encoded(path: str | Path) -> bool:
    """Whether a recording is a file of codes, which its name alone decides."""
    return Path(path).suffix == SUFFIX


def read_encoded_info(path: Path) -> EncodedInfo:
    """The header of a file of codes.

    Raises:
        DataError: not a safetensors file, or other content than the one tensor described above.
    """
    try:
        found = _header(path)
        if sorted(found) != [_TENSOR]:
            raise DataError(f"{path} must hold one tensor `{_TENSOR}`, it holds {', '.join(sorted(found)) or 'none'}")
        dtype, shape = found[_TENSOR]["dtype"], [int(size) for size in found[_TENSOR]["shape"]]
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError, OSError) as error:
        raise DataError(f"{path} is not a whole safetensors file: {error}") from error
    if dtype not in _DTYPES:
        raise DataError(f"{path}: `{_TENSOR}` must be int16, int32 or int64, it is {dtype}")
    if len(shape) != 2 or shape[0] < 3 or shape[0] % 2 == 0:
        raise DataError(
            f"{path}: `{_TENSOR}` must be [1 + 2K, T] (text, K codebooks of Moshi, K of the user), it is {shape}"
        )
    return EncodedInfo(*shape)


def _header(path: Path) -> dict[str, Any]:
    """Types and shapes of the tensors, of a file that is whole.

    Raises:
        ValueError: one that is not; others, of other content.
    """
    size = stored_size(path)
    length = int.from_bytes(read_stored(path, 8), "little")
    if size < 8 or length > size - 8:
        raise ValueError("it ends within its header")
    header: dict[str, Any] = json.loads(read_stored(path, 8 + length)[8:])
    header.pop("__metadata__", None)
    if 8 + length + max((facts["data_offsets"][1] for facts in header.values()), default=0) != size:
        raise ValueError("its length is not that of its tensors")
    return header


def read_encoded(path: Path, alphabet: Alphabet | None = None) -> torch.Tensor:
    """The codes, int64 `[1 + 2K, T]`.

    Args:
        alphabet: what the model reads; None checks only that nothing is below -1.

    Raises:
        DataError: see `read_encoded_info`; or a code that the model does not have.
    """
    read_encoded_info(path)
    try:
        codes = load(read_stored(path))[_TENSOR].long()
    except (SafetensorError, OSError) as error:
        raise DataError(f"{path} is not a whole safetensors file: {error}") from error
    wrong = codes < ABSENT
    if alphabet is not None:
        limits = torch.full((len(codes), 1), alphabet.card)
        limits[0] = alphabet.text_card
        wrong |= codes >= limits
    if wrong.any():
        stream, frame = wrong.nonzero()[0].tolist()
        what = "not a code" if alphabet is None else f"not a code of this model, which has {limits[stream].item()}"
        raise DataError(
            f"{path}: stream {stream}, frame {frame} holds {codes[stream, frame].item()}, {what}; "
            f"{ABSENT} stands for an absent stream"
        )
    return codes


def write_encoded(path: Path, codes: torch.Tensor) -> None:
    """Writes codes `[1 + 2K, T]` in the smallest type that holds them, the whole file or none."""
    # Not forced to the disk: a file that a power failure cut short is noticed when it is read.
    write_atomically(path, encoded_bytes(codes), durable=False)


def encoded_bytes(codes: torch.Tensor) -> bytes:
    """Codes `[1 + 2K, T]` as the content of such a file."""
    fits = codes.numel() == 0 or int(codes.max()) <= torch.iinfo(torch.int16).max
    return save({_TENSOR: codes.to(torch.int16 if fits else torch.int32).contiguous()})
