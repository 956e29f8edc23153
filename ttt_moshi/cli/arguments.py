"""The parser of plain commands."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any, NoReturn

from ttt_moshi.config_io import describe_unknown
from ttt_moshi.errors import UserError


class Parser(argparse.ArgumentParser):
    """argparse for plain commands: no abbreviations, and a hint for every unknown flag.

    Errors are raised as `UserError`, so that they reach the user as one line.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(allow_abbrev=False, **kwargs)

    def parse_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> Any:  # type: ignore[override]
        parsed, unknown = self.parse_known_args(args, namespace)
        if unknown:
            known = [flag for action in self._actions for flag in action.option_strings]
            raise UserError(describe_unknown("argument", unknown[0].split("=")[0], known))
        return parsed

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message} (see `{self.prog} --help`)")


def seed(text: str) -> int:
    """A seed of random draws, for argparse: what every generator takes."""
    if not text.isdecimal() or int(text) >= 2**63:
        raise argparse.ArgumentTypeError(f"{text} is not a whole number from 0 to 2^63 - 1")
    return int(text)
