"""The parser of plain commands."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from ttt_moshi.config_io import describe_unknown
from ttt_moshi.errors import UserError

T = TypeVar("T")


class Parser(argparse.ArgumentParser):
    """argparse for plain commands: no abbreviations, a hint for every unknown flag, and no path that is empty.

    Errors are raised as `UserError`, so that they reach the user as one line.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(allow_abbrev=False, **kwargs)
        self.register("type", Path, named_path)

    def parse_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> Any:  # type: ignore[override]
        parsed, unknown = self.parse_known_args(args, namespace)
        if unknown:
            known = [flag for action in self._actions for flag in action.option_strings]
            raise UserError(describe_unknown("argument", unknown[0].split("=")[0], known))
        return parsed

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message} (see `{self.prog} --help`)")


def named_path(text: str) -> Path:
    """A path, for argparse: what stands for `type=Path` in every command. An unset variable of a shell is no folder,
    and not the working folder."""
    return Path(named(text))


def named(text: str) -> str:
    """A path or the URL of something, for argparse: not empty."""
    if not text.strip():
        raise argparse.ArgumentTypeError("the path is empty: name one")
    return text


def seed(text: str) -> int:
    """A seed of random draws, for argparse: what every generator takes."""
    if not text.isdecimal() or int(text) >= 2**63:
        raise argparse.ArgumentTypeError(f"{text} is not a whole number from 0 to 2^63 - 1")
    return int(text)


def run_subcommand(
    name: str, argv: list[str], usage: str, commands: Mapping[str, Callable[[list[str], T], int]], console: T
) -> int:
    """Runs `ttt-moshi NAME COMMAND ...`: what `commands` has for it, or `usage`, or an error with the nearest one."""
    if not argv or argv[0] in ("-h", "--help"):
        print(usage)
        return 0 if argv else 2
    if argv[0] not in commands:
        nearest = get_close_matches(argv[0], commands, n=1)
        hint = f"; did you mean `{nearest[0]}`?" if nearest else ""
        raise UserError(f"unknown command `{name} {argv[0]}`{hint} (see `ttt-moshi {name} --help`)")
    return commands[argv[0]](argv[1:], console)
