"""Files of a cache: whole, or made again."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from safetensors import SafetensorError

from ttt_moshi.evaluation.errors import EvaluationError
from ttt_moshi.files import read_bytes

T = TypeVar("T")


class CorruptFileError(Exception):
    """A file that must be made again. The message completes "the file is ..."."""


def load_whole(path: Path, load: Callable[[bytes], dict[str, T]]) -> dict[str, T]:
    """The tensors of a safetensors file, by the `load` of the library that is wanted.

    Raises:
        CorruptFileError: it is no whole safetensors file.
        EvaluationError: it cannot be read now.
    """
    try:
        return load(read_bytes(path))
    except SafetensorError as error:
        raise CorruptFileError(f"no whole safetensors file ({error})") from error
    except OSError as error:
        raise EvaluationError(f"cannot read {path}: {error.strerror or error}") from error
