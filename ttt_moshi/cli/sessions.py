"""List, show, delete and copy conversations that were kept."""

from __future__ import annotations

import json
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from ttt_moshi.cli.arguments import Parser, run_subcommand
from ttt_moshi.cli.checkpoint_facts import size_text
from ttt_moshi.cli.printing import aligned
from ttt_moshi.errors import UserError
from ttt_moshi.frames import frames_to_seconds

if TYPE_CHECKING:
    from ttt_moshi.inference.sessions import Listed, Sessions

USAGE = """\
usage: ttt-moshi sessions COMMAND [options]

  ls                   every conversation that `ttt-moshi serve` has kept, the newest first
  show ID              one of them, checked against its digest
  rm ID [ID ...]       delete conversations: nobody can go on with them any more
  fork ID NEW_ID       copy one under another id; both go on by themselves from then on

Every command takes --sessions FOLDER (default: sessions) and --json.
"""


def main(argv: list[str]) -> int:
    """`ttt-moshi sessions ls|show|rm|fork`: 0 done, 1 something is corrupt, 2 could not run."""
    commands = {"ls": _ls, "show": _show, "rm": _rm, "fork": _fork}
    return run_subcommand("sessions", argv, USAGE, commands, Console(highlight=False, soft_wrap=True))


def _options(command: str, argv: list[str], what: str, *names: str, many: bool = False) -> tuple[Any, Sessions]:
    parser = Parser(prog=f"ttt-moshi sessions {command}", description=what)
    for name in names:
        parser.add_argument(name, nargs="+" if many else None)
    parser.add_argument("--sessions", type=Path, default=Path("sessions"), help="folder; default: %(default)s")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    options = parser.parse_args(argv)
    if not options.sessions.is_dir():
        raise UserError(f"no folder of conversations at {options.sessions}: name it with --sessions")
    # PyTorch is imported only now: a mistyped flag must not wait for it.
    from ttt_moshi.inference.sessions import Sessions

    return options, Sessions(options.sessions)


def _ls(argv: list[str], console: Console) -> int:
    options, sessions = _options("ls", argv, "Every conversation that was kept, the newest first.")
    listed = sessions.listed()
    if options.json:
        print(json.dumps([_facts(one) for one in listed], indent=2))
        return 0
    rows = [("id", "heard", "saved", "size", "checkpoint")]
    for one in listed:
        info = one.info
        heard = "not readable" if info is None else f"{frames_to_seconds(info.frames):.1f} s"
        state = "" if info is None else info.state_id[:12]
        when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(one.saved))
        rows.append((one.name, heard, when, size_text(one.bytes), state))
    console.print("\n".join(aligned(rows)) if listed else f"no conversations in {options.sessions}", markup=False)
    return 0


def _show(argv: list[str], console: Console) -> int:
    options, sessions = _options("show", argv, "One conversation, checked against its digest.", "id")
    sessions.existing(options.id)
    one = next(listed for listed in sessions.listed() if listed.name == options.id)
    problem = None
    try:
        if one.info is not None:
            sessions.load(options.id, one.info.state_id)
        else:
            sessions.load(options.id, "")
    except UserError as error:
        problem = str(error)
    facts = {**_facts(one), "intact": problem is None}
    if options.json:
        print(json.dumps(facts, indent=2))
    else:
        layers = facts.pop("memory")
        for name, value in facts.items():
            console.print(f"{name:<10} {value}", markup=False)
        for layer, own in layers.items():
            console.print(f"{'layer ' + layer:<10} {_in_words(own)}", markup=False)
        if problem is not None:
            console.print(problem, markup=False)
    return 0 if problem is None else 1


def _rm(argv: list[str], console: Console) -> int:
    options, sessions = _options("rm", argv, "Deletes conversations.", "id", many=True)
    for name in options.id:  # all must be there before one is deleted
        sessions.existing(name)
    for name in options.id:
        sessions.forget(name)
    _tell(options, console, f"deleted: {', '.join(options.id)}", deleted=options.id)
    return 0


def _fork(argv: list[str], console: Console) -> int:
    options, sessions = _options("fork", argv, "Copies a conversation under another id.", "id", "new_id")
    sessions.fork(options.id, options.new_id)
    _tell(options, console, f"{options.new_id} goes on where {options.id} is", id=options.id, new_id=options.new_id)
    return 0


def _tell(options: Any, console: Console, text: str, **facts: Any) -> None:
    if options.json:
        print(json.dumps(facts, indent=2))
    else:
        console.print(text, markup=False)


def _in_words(memory: dict[str, Any]) -> str:
    """What a layer had written when the conversation was saved, and how wrong it was about what it had heard last."""
    written = f"{memory['written']:.1%} written"
    if memory["loss"] is None:
        return written
    return f"{written}, inner loss {memory['loss']:.4g} ({memory['untaught']:.4g} where nothing is written)"


def _facts(one: Listed) -> dict[str, Any]:
    info = one.info
    return {
        "id": one.name,
        "bytes": one.bytes,
        "saved": one.saved,
        "seconds": None if info is None else frames_to_seconds(info.frames),
        "frames": None if info is None else info.frames,
        "state_id": None if info is None else info.state_id,
        "memory": {} if info is None else {str(layer): asdict(own) for layer, own in info.memory.items()},
    }
