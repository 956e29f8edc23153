"""Errors of this room that a person can mend."""

from ttt_moshi.errors import UserError


class MoshiError(UserError):
    """A base model, a set of weights or a setting that does not fit. The message says what, where and what to do."""
