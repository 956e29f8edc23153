"""The `ttt-moshi` command: finds the command's file, runs it, turns its errors into one line."""

from __future__ import annotations

import errno
import importlib
import os
import sys
from collections.abc import Callable
from difflib import get_close_matches

from ttt_moshi import __version__
from ttt_moshi.cli import printing
from ttt_moshi.errors import UserError

COMMANDS = {
    "train": "train, interrupt and resume a model",
    "eval": "evaluate a checkpoint",
    "generate": "let a checkpoint answer a recording",
    "serve": "let people talk to a checkpoint",
    "sessions": "list, show, delete and copy conversations that were kept",
    "status": "explain the environment, a run or a checkpoint",
    "verify": "prove a checkpoint, or the checkpoint system itself",
    "ckpt": "list, show, compare, export, prune and repair checkpoints",
    "data": "check and prepare data sets",
    "demo": "show, from nothing, what the package is for",
}

USAGE = "usage: ttt-moshi COMMAND [options]\n\ncommands:\n" + "\n".join(
    f"  {name:<8} {what}" for name, what in COMMANDS.items()
)

_FULL = ": free some space there, or name another folder"
# What to do about an error of the operating system, to follow it.
_REMEDIES = {errno.ENOSPC: _FULL, errno.EDQUOT: _FULL}


def main(argv: list[str] | None = None) -> int:
    """Runs one command and returns its exit status: 0 done, 1 a check found problems, 2 could not run."""
    words = sys.argv[1:] if argv is None else argv
    return _guarded(lambda: _run(words))


def run_command(name: str, argv: list[str]) -> int:
    """Runs `ttt_moshi.cli.<name>`; errors meant for a person become one line on stderr and status 2."""
    return _guarded(lambda: _run([name, *argv]))


def _run(words: list[str]) -> int:
    if not words or words[0] in ("-h", "--help"):
        print(f"{USAGE}\n\n`ttt-moshi COMMAND --help` explains one command.")
        return 0 if words else 2
    if words[0] == "--version":
        print(f"ttt-moshi {__version__}")
        return 0
    name, *argv = words
    if name not in COMMANDS:
        nearest = get_close_matches(name, COMMANDS, n=1)
        hint = f"; did you mean `{nearest[0]}`?" if nearest else ""
        print(f"error: unknown command `{name}`{hint}\n\n{USAGE}", file=sys.stderr)
        return 2
    return importlib.import_module(f"ttt_moshi.cli.{name}").main(argv)


def _guarded(run: Callable[[], int]) -> int:
    printing.take_every_character()
    try:
        os.getcwd()
    except FileNotFoundError:  # with which not even libraries load
        print("error: the working folder is gone: change to one that is there", file=sys.stderr)
        return 2
    try:
        try:
            return run()
        finally:
            if sys.stdout is not None:
                sys.stdout.flush()  # while a failure can be told
    except SystemExit as end:
        if isinstance(end.__context__, BrokenPipeError):  # rich's way to end; 1 would mean that a check found problems
            return printing.READER_GONE
        raise
    except OSError as error:
        failed = printing.has_failed_with(error)
        if failed and isinstance(error, BrokenPipeError):
            return printing.READER_GONE
        told = f"standard output: {error.strerror}" if failed else f"{error}{_REMEDIES.get(error.errno or 0, '')}"
        print(f"error: {told}", file=sys.stderr)
        return 2
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
