"""What evaluation can refuse to do."""

from ttt_moshi.errors import UserError


class EvaluationError(UserError):
    """A number that cannot be computed. The message says which one, why, and what to do."""
