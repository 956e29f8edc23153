"""The errors of this package."""

from ttt_moshi.data.addresses import readable
from ttt_moshi.errors import UserError


class DataError(UserError):
    """A recording, transcript or list of recordings that cannot be used. The message names the file, or its URL."""

    def __init__(self, message: str):
        super().__init__(readable(message))


class PassingError(DataError):
    """What another attempt may find otherwise: a disk or a store that did not give something, or too little memory."""


def kind_of(error: Exception) -> type[DataError]:
    """What becomes of a library's error: that of a disk or of memory is not the content's fault."""
    return PassingError if isinstance(error, (OSError, MemoryError)) else DataError
