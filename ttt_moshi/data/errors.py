"""The error of this room."""

from ttt_moshi.errors import UserError


class DataError(UserError):
    """A recording, transcript or list of recordings that cannot be used. The message names the file."""
