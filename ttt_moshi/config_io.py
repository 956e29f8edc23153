"""Reading configurations from YAML files, command lines and saved dictionaries; unknown names are refused."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ArgumentError, ArgumentParser, set_parsing_settings

from ttt_moshi.config import ConfigError, TrainArgs, flatten_keys, known_keys

set_parsing_settings(docstring_parse_attribute_docstrings=True)


def train_parser(prog: str) -> ArgumentParser:
    """The parser behind `--help` and `--print_config` of training: every configuration key as a dotted flag."""
    parser = ArgumentParser(prog=prog, exit_on_error=False, description="Train a TTT-Moshi.")
    parser.add_argument("--config", action="config", help="YAML file with any of the keys below; flags override it")
    parser.add_class_arguments(TrainArgs)
    return parser


def parse_train_args(argv: Sequence[str], prog: str = "train.py") -> TrainArgs:
    """A validated configuration from `--config FILE` and dotted overrides, in the order given.

    Raises:
        ConfigError: an unknown key or flag (with the nearest known name), a missing or malformed file, a value of the
            wrong type, or values that contradict one another. Nothing has been read or written but the YAML files.
    """
    _refuse_unknown_flags(argv)
    for path in _config_files(argv):
        check_config_file(path)
    parser = train_parser(prog)
    try:
        namespace = parser.parse_args(list(argv))
        del namespace["config"]
        return TrainArgs(**parser.instantiate(namespace).as_dict())
    except ArgumentError as error:
        raise ConfigError(_first_line(error)) from error


def args_from_dict(values: dict[str, Any]) -> TrainArgs:
    """A validated configuration from the plain values that `config.to_dict` made.

    Raises:
        ConfigError: an unknown key, or a value of the wrong type.
    """
    _refuse_unknown_keys(values, "the saved configuration")
    parser = train_parser("saved configuration")
    try:
        namespace = parser.parse_object(values)
        del namespace["config"]
        return TrainArgs(**parser.instantiate(namespace).as_dict())
    except ArgumentError as error:
        raise ConfigError(_first_line(error)) from error


def check_config_file(path: Path) -> dict[str, Any]:
    """The content of a YAML file whose keys are all known.

    Raises:
        ConfigError: missing file, malformed YAML or unknown key.
    """
    if not path.is_file():
        raise ConfigError(f"no configuration file at {path}")
    try:
        values = yaml.safe_load(path.read_text())
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict):
        raise ConfigError(f"{path} holds no `key: value` lines")
    _refuse_unknown_keys(values, str(path))
    return values


def _refuse_unknown_keys(values: dict[str, Any], where: str) -> None:
    known = known_keys()
    for key in flatten_keys(values):
        if key not in known:
            raise ConfigError(f"{where}: {describe_unknown('key', key, known)}")


def _refuse_unknown_flags(argv: Sequence[str]) -> None:
    known = ["--help", "--config", "--print_config", *(f"--{key}" for key in known_keys())]
    for word in argv:
        flag = word.split("=")[0]
        if flag.startswith("--") and flag not in known:
            raise ConfigError(describe_unknown("flag", flag, known))


def _config_files(argv: Sequence[str]) -> Iterable[Path]:
    for i, word in enumerate(argv):
        if word.startswith("--config="):
            yield Path(word.removeprefix("--config="))
        elif word == "--config" and i + 1 < len(argv):
            yield Path(argv[i + 1])


def describe_unknown(kind: str, name: str, known: Sequence[str]) -> str:
    """`unknown kind name`, with the nearest known name if there is one."""
    nearest = get_close_matches(name, known, n=1, cutoff=0.5)
    # A key named without its section ("lr") is nearest to the key that ends with it ("optim.lr").
    same_ending = [k for k in known if k.rsplit(".", 1)[-1] == name.rsplit(".", 1)[-1].lstrip("-")]
    hints = same_ending or nearest
    return f"unknown {kind} `{name}`" + (f"; did you mean `{hints[0]}`?" if hints else "")


def _first_line(error: Exception) -> str:
    return " ".join(str(error).split())
