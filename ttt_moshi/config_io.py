"""Reading configurations from YAML files, command lines and saved dictionaries; unknown names are refused."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import yaml
from jsonargparse import ArgumentError, ArgumentParser, set_parsing_settings

from ttt_moshi.config import ConfigError, TrainArgs, flatten_keys, key_types, known_keys, sections
from ttt_moshi.files import read_text

set_parsing_settings(docstring_parse_attribute_docstrings=True)

# Keys that moshi-finetune writes into the configurations it saves, and that decide nothing.
IGNORED_KEYS = ("world_size",)

DEEPEST = 50  # a configuration nests four deep; Python gives up at some hundreds
LONGEST = 100  # characters of a whole number; beyond some hundreds it is no float and Python does not write it down
_WHOLE = re.compile(r"[-+]?(\d[\d_]*|0[xob][\da-f_]*)", re.IGNORECASE)
_KEY_TAGS = ("tag:yaml.org,2002:str", "tag:yaml.org,2002:merge")

_log = logging.getLogger(__name__)


def train_parser(prog: str) -> ArgumentParser:
    """The parser behind `--help` and `--print_config` of training: every configuration key as a dotted flag."""
    parser = ArgumentParser(
        prog=prog,
        exit_on_error=False,
        description="Train a TTT-Moshi. With --estimate: print what the configuration needs, and train nothing.",
    )
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
    _refuse_endless_values(argv)
    parser = train_parser(prog)
    try:
        namespace = parser.parse_args(_with_files_read(argv))
        del namespace["config"]
        return TrainArgs(**parser.instantiate(namespace).as_dict())
    except ArgumentError as error:
        raise ConfigError(_told(error)) from error


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
        raise ConfigError(_told(error)) from error


def check_config_file(path: Path) -> dict[str, Any]:
    """The content of a YAML file whose keys are all known, without empty sections.

    Raises:
        ConfigError: missing file, malformed YAML or unknown key.
    """
    if not path.is_file():
        raise ConfigError(f"no configuration file at {path}")
    try:
        values = yaml.load(read_text(path), _Loader)
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not UTF-8 text ({error}): save it as UTF-8") from error
    except (yaml.YAMLError, ValueError) as error:  # the latter of a date that there is not
        raise ConfigError(f"{path} is not valid YAML: {_first_line(error)}") from error
    if not isinstance(values, dict):
        raise ConfigError(f"{path} holds no `key: value` lines")
    for key in IGNORED_KEYS:
        if values.pop(key, None) is not None:
            _log.warning("%s: `%s` decides nothing here and is ignored", path, key)
    _refuse_unknown_keys(values, str(path))
    return _without_empty_sections(values)


def _without_empty_sections(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """An empty section (`wandb:`, `lora: null`) says nothing, so its keys keep their defaults."""
    found = {}
    for key, value in values.items():
        if isinstance(value, dict):
            found[key] = _without_empty_sections(value, f"{prefix}{key}.")
        elif value is not None or prefix + key not in sections():
            found[key] = value
    return found


class _Loader(yaml.SafeLoader):
    """Plain values only, nested as deep as anybody could mean, and no key twice: YAML itself takes the last one without
    a word.

    Keys are looked at as they are written: what a merge key (`<<`) brings may be overridden beside it.
    """

    depth = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        if self.depth == DEEPEST:
            raise yaml.composer.ComposerError(
                None, None, f"nested more than {DEEPEST} deep", self.peek_event().start_mark
            )
        self.depth += 1
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.tag in _KEY_TAGS:
                if key.value in seen:
                    raise yaml.composer.ComposerError(None, None, f"`{key.value}` is there twice", key.start_mark)
                seen.add(key.value)
        return node

    def construct_yaml_int(self, node: yaml.ScalarNode) -> int:
        if len(node.value) > LONGEST:
            raise yaml.constructor.ConstructorError(
                None, None, f"a whole number of {len(node.value)} characters", node.start_mark
            )
        return super().construct_yaml_int(node)


_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_yaml_int)


def _refuse_unknown_keys(values: dict[str, Any], where: str) -> None:
    known = known_keys()
    for key in sections():
        parent, _, name = key.rpartition(".")
        around = values.get(parent) if parent else values
        value = around.get(name) if isinstance(around, dict) else None
        if not isinstance(value, (dict, type(None))):
            raise ConfigError(f"{where}: `{key}` is a section: its keys belong below it, got {value!r}")
    for key in flatten_keys(values):
        if key not in known:
            raise ConfigError(f"{where}: {describe_unknown('key', key, known)}")


def _refuse_unknown_flags(argv: Sequence[str]) -> None:
    known = ["--help", "--config", "--print_config", "--estimate", *(f"--{key}" for key in known_keys())]
    for word in argv:
        flag = word.split("=")[0]
        if not flag.startswith("--"):
            continue  # a value, such as a folder that is called like a section
        if flag not in known:
            raise ConfigError(describe_unknown("flag", flag, known))
        if flag.removeprefix("--") in sections():
            raise ConfigError(f"`{flag}` is a section: name one of its keys, such as `{_first_key(flag)}`")


def _refuse_endless_values(argv: Sequence[str]) -> None:
    """Refuses by name the values on which whoever reads them gives up: brackets or digits without end."""
    for before, word in zip(["", *argv], argv, strict=False):
        flag = word.split("=")[0] if word.startswith("--") else before
        if word.count("[") + word.count("{") > DEEPEST:
            raise ConfigError(f"`{flag}` is nested more than {DEEPEST} deep")
        for part in re.split(r"[\[\]{},:=\s]+", word):
            if len(part) > LONGEST and _WHOLE.fullmatch(part):
                raise ConfigError(f"`{flag}` has a whole number of {len(part)} characters, which nobody can mean")


def _first_key(section: str) -> str:
    return next(f"--{key}" for key in known_keys() if f"--{key}".startswith(f"{section}."))


def _with_files_read(argv: Sequence[str]) -> list[str]:
    """The command line with the content of each `--config` file in the place of its name."""
    words: list[str] = []
    for word in argv:
        if words and words[-1] == "--config":
            words.append(_content(word))
        elif word.startswith("--config="):
            words.append(f"--config={_content(word.removeprefix('--config='))}")
        else:
            words.append(word)
    return words


def _content(path: str) -> str:
    # YAML again, since JSON has no way to write the infinity that a key may be refused for.
    return yaml.safe_dump(check_config_file(Path(path)))


def describe_unknown(kind: str, name: str, known: Sequence[str]) -> str:
    """`unknown kind name`, with the nearest known name if there is one."""
    nearest = get_close_matches(name, known, n=1, cutoff=0.5)
    # A key named without its section ("lr") is nearest to the key that ends with it ("optim.lr").
    same_ending = [k for k in known if k.rsplit(".", 1)[-1] == name.rsplit(".", 1)[-1].lstrip("-")]
    hints = same_ending or nearest
    return f"unknown {kind} `{name}`" + (f"; did you mean `{hints[0]}`?" if hints else "")


_WRONG_TYPE = re.compile(r'Parser key "([^"]+)":.*?(?:Given value|Got value): (.*)', re.DOTALL)
_KINDS = {bool: "true or false", int: "a whole number", float: "a number", str: "text", type(None): "null"}


def _told(error: ArgumentError) -> str:
    """What the parser found wrong; of a value that its key does not take, in the words of this program."""
    found = _WRONG_TYPE.search(str(error))
    kind = key_types().get(found[1]) if found else None
    if found is None or kind is None:
        return _first_line(error)
    value = " ".join(found[2].rpartition("Given value: ")[2].split())
    return f"`{found[1]}` must be {_kind(kind)}, got {value or 'nothing'}"


def _kind(kind: Any) -> str:
    """The type of a key in words."""
    if get_origin(kind) is list:
        return f"[{_kind(get_args(kind)[0])}, ...]"
    if get_origin(kind) is Literal:
        return " or ".join(map(str, get_args(kind)))
    if get_args(kind):
        return " or ".join(map(_kind, get_args(kind)))
    return _KINDS.get(kind, str(kind))


def _first_line(error: Exception) -> str:
    return " ".join(str(error).split())
