"""The documents are true to the commands: what they tell people to type exists, option by option."""

from __future__ import annotations

import re
import shlex
from functools import cache
from pathlib import Path

import pytest

from ttt_moshi.cli.main import COMMANDS, main
from ttt_moshi.config import known_keys

ROOT = Path(__file__).parents[2]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
# The scripts at the root and the commands that they are.
DOORS = {
    "train.py": "train",
    "eval_from_checkpoint.py": "eval",
    "checkpoint_summary.py": "status",
    "test_checkpoint_verification.py": "verify",
}
GROUPS = ("ckpt", "data", "eval")  # commands with commands of their own


def commands(document: Path) -> list[list[str]]:
    """Words of every command line of ours in a document's blocks, from the command's name on."""
    found = []
    for block in re.findall(r"^```\w*[^\n]*\n(.*?)^```$", document.read_text(), re.MULTILINE | re.DOTALL):
        for line in block.replace("\\\n", " ").splitlines():
            # A placeholder such as `[options]` or a table's pipes is not a command to be typed.
            if re.search(r"[|│…]", line):
                continue
            try:
                words = shlex.split(line.removeprefix("$ "), comments=True)
            except ValueError:
                continue
            for number, word in enumerate(words):
                name = Path(word).name
                if name in DOORS:
                    found.append([DOORS[name], *words[number + 1 :]])
                elif name == "ttt-moshi" and words[number + 1 :]:
                    found.append(words[number + 1 :])
    return found


@cache
def flags(*command: str) -> frozenset[str]:
    """Every option of a command, as its parser knows them."""
    if command == ("train",):
        return frozenset({"--help", "--config", "--print_config", "--estimate", *(f"--{key}" for key in known_keys())})
    return frozenset(re.findall(r"(?<![\w-])--?[a-zA-Z][\w-]*", help_of(*command)))


_HELP: dict[tuple[str, ...], str] = {}


def help_of(*command: str) -> str:
    """What `--help` prints."""
    return _HELP[command]


@pytest.fixture(autouse=True)
def helps(capsys: pytest.CaptureFixture[str]) -> None:
    """Prints the help of every command once."""
    if _HELP:
        return
    from ttt_moshi.cli.main import USAGE

    for name in COMMANDS:
        for command in [[name], *([name, part] for part in _parts(name, capsys))]:
            capsys.readouterr()
            try:
                status = main([*command, "--help"])
            except SystemExit as asked:
                status = int(asked.code or 0)
            assert status == 0, command
            _HELP[tuple(command)] = capsys.readouterr().out
    assert all(name in USAGE for name in COMMANDS)


def _parts(name: str, capsys: pytest.CaptureFixture[str]) -> list[str]:
    if name not in GROUPS:
        return []
    if name == "eval":
        return ["ls", "compare", "report", "versa"]
    capsys.readouterr()
    assert main([name, "--help"]) == 0
    return re.findall(r"^  ([a-z-]+) .*  ", capsys.readouterr().out, re.MULTILINE)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_option_that_is_told_exists(document: Path) -> None:
    wrong = []
    for words in commands(document):
        command = tuple(words[:2]) if tuple(words[:2]) in _HELP else tuple(words[:1])
        if command not in _HELP and command[0] not in ("--help", "--version"):
            wrong.append(f"no command {' '.join(words[:2])}")
            continue
        told = {word.split("=")[0] for word in words if re.match(r"--?[a-zA-Z]", word)}
        if command[0] not in ("--help", "--version"):
            wrong += [f"{' '.join(command)} has no {flag}" for flag in sorted(told - flags(*command))]
    assert wrong == []


def test_documents_hold_commands() -> None:
    assert sum(len(commands(document)) for document in DOCUMENTS) >= 50


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_what_is_linked_is_there(document: Path) -> None:
    text = re.sub(r"```.*?```", "", document.read_text(), flags=re.DOTALL)
    links = [link for link in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", text) if "://" not in link]
    named = re.findall(r"`((?:docs|configs|tests|benchmarks|ttt_moshi)/[\w./-]+\.(?:md|yaml|py|svg))`", text)
    missing = [str(link) for link in links if not (document.parent / link).exists()]
    missing += [name for name in named if not (ROOT / name).exists()]
    assert missing == []


def test_targets_exist() -> None:
    targets = set(re.findall(r"^([a-z][\w-]*):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    told: set[str] = set()
    for document in DOCUMENTS:
        told |= set(re.findall(r"(?:^|`|\$ )make ([a-z][\w-]+)", document.read_text(), re.MULTILINE))
    assert told - targets == set()
