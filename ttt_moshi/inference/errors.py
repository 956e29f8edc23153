"""Errors of this package."""

from ttt_moshi.errors import UserError


class InferenceError(UserError):
    """A conversation that cannot be begun, continued or saved."""
