"""The base of every error that is meant for a person rather than for a debugger."""


class UserError(Exception):
    """Something the user can mend. The message says what is wrong, where, and what to do.

    The command line prints it as one line and exits with status 2; any other exception keeps its traceback.
    """
