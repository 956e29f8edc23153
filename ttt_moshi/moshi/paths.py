"""Where the files of a base model are: a Hugging Face repository, a local folder like one, or explicit paths."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import huggingface_hub
import torch
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
)
from moshi.models import MimiModel, loaders
from moshi.models.loaders import CheckpointInfo
from sentencepiece import SentencePieceProcessor

from ttt_moshi.config import ModelPaths
from ttt_moshi.files import read_text
from ttt_moshi.moshi.errors import MoshiError
from ttt_moshi.moshi.supported import REPOSITORY_KEYS, Purpose, check_supported, without_user_steps


def resolve_model(paths: ModelPaths, purpose: Purpose = "train") -> CheckpointInfo:
    """Finds every file of the base model and reads its configuration, through the official `CheckpointInfo`.

    `hf_repo_id` names a hub repository or a local folder with the same files (`config.json` and the files it names);
    each explicit path replaces one of them. Nothing is fetched from the network when all files are local, and nothing
    but the configuration of a model that cannot serve the purpose.

    Where a model predicts the user's audio too, the configuration returned is without that half (`without_user_steps`).

    Raises:
        MoshiError: a file is missing (the message names it and the place where it was expected), or the model is of a
            kind that cannot be used for `purpose`.
    """
    explicit = (paths.moshi_path, paths.mimi_path, paths.tokenizer_path, paths.config_path)
    if paths.hf_repo_id is None or all(path is not None and not path.startswith("hf://") for path in explicit):
        return _resolve_locally(paths, None, purpose)
    folder = _local_folder(paths.hf_repo_id)
    if folder is not None:
        return _resolve_locally(paths, folder, purpose)
    try:
        config_path = _explicit_config(paths) or _hub_config(paths.hf_repo_id)
        if config_path is not None:
            check_supported(read_json(config_path), purpose, f"{paths.hf_repo_id} (config.json)")
        return _as_used(
            paths.hf_repo_id,
            moshi_weights=_explicit(paths.moshi_path, "moshi_path"),
            mimi_weights=_explicit(paths.mimi_path, "mimi_path"),
            tokenizer=_explicit(paths.tokenizer_path, "tokenizer_path"),
            config_path=config_path,
        )
    except HFValidationError as error:
        raise MoshiError(
            f"`moshi_paths.hf_repo_id` is neither a folder here nor the name of a repository: {paths.hf_repo_id!r}"
        ) from error
    except LocalEntryNotFoundError as error:
        raise MoshiError(
            f"the Hugging Face hub cannot be reached and {paths.hf_repo_id!r} is not in the local cache: "
            "download it once with a connection, or set `moshi_paths.hf_repo_id` to a local folder"
        ) from error
    except EntryNotFoundError as error:
        raise MoshiError(f"{paths.hf_repo_id!r} on the Hugging Face hub lacks a file of the model: {error}") from error
    except RepositoryNotFoundError as error:
        raise MoshiError(
            f"no repository {paths.hf_repo_id!r} on the Hugging Face hub (or it needs a login), and no folder of that "
            "name here: check `moshi_paths.hf_repo_id`"
        ) from error


def _local_folder(hf_repo_id: str | None) -> Path | None:
    if hf_repo_id is None:
        return None
    folder = Path(hf_repo_id).expanduser()
    if folder.is_dir():
        return folder
    looks_like_a_path = hf_repo_id.startswith((".", "~", "/")) or hf_repo_id.count("/") > 1
    if looks_like_a_path:
        raise MoshiError(f"`moshi_paths.hf_repo_id` looks like a folder, and there is none at {folder.absolute()}")
    return None


def _resolve_locally(paths: ModelPaths, folder: Path | None, purpose: Purpose) -> CheckpointInfo:
    config_path = _existing(paths.config_path, "config_path", folder, "config.json")
    config = read_json(config_path)
    check_supported(config, purpose, str(config_path))
    # A file named in config.json lies in the folder, or beside config.json when there is no folder.
    beside = folder if folder is not None else config_path.parent
    names = {
        "moshi_path": config.get("moshi_name", loaders.MOSHI_NAME),
        "mimi_path": config.get("mimi_name", loaders.MIMI_NAME),
        "tokenizer_path": config.get("tokenizer_name", loaders.TEXT_TOKENIZER_NAME),
    }
    found = {key: _existing(getattr(paths, key), key, folder, name) for key, name in names.items()}
    extras = {key: beside / config[key] for key in ("mimi_config_name", "lora_name") if config.get(key)}
    for key, path in extras.items():
        if not path.is_file():
            raise MoshiError(f"{config_path} names {key} {config[key]!r}, and there is no file {path}")
    return _as_used(
        str(beside),
        moshi_weights=found["moshi_path"],
        mimi_weights=found["mimi_path"],
        tokenizer=found["tokenizer_path"],
        config_path=config_path,
        mimi_config_path=extras.get("mimi_config_name"),
        lora_weights=extras.get("lora_name"),
    )


def _as_used(*arguments: Any, **files: Any) -> CheckpointInfo:
    """The official `CheckpointInfo`, with the configuration that is used here."""
    info = CheckpointInfo.from_hf_repo(*arguments, **files)
    info.raw_config = without_user_steps(info.raw_config)
    if info.raw_config is not None:
        info.lm_config = {key: value for key, value in info.raw_config.items() if key not in REPOSITORY_KEYS}
    return info


def text_tokenizer(info: CheckpointInfo) -> SentencePieceProcessor:
    """The model's tokenizer.

    Raises:
        MoshiError: it cannot be read, or has other pieces than the model has text tokens: its words would mean others.
    """
    try:
        tokenizer = info.get_text_tokenizer()
    except (OSError, RuntimeError) as error:
        raise MoshiError(f"the tokenizer {info.tokenizer} cannot be read: {error}") from error
    pieces = tokenizer.vocab_size()
    card = (info.raw_config or {}).get("text_card", pieces)
    if pieces != card:
        raise MoshiError(
            f"the tokenizer {info.tokenizer} has {pieces} pieces and the model {card} text tokens: it is another "
            "model's; name the right one with `moshi_paths.tokenizer_path`"
        )
    return tokenizer


def audio_codec(info: CheckpointInfo, device: torch.device | str) -> MimiModel:
    """The model's codec, as the official class reads it.

    Raises:
        MoshiError: its codebooks have another size than the model's: its codes would mean other sounds, or none.
    """
    mimi = info.get_mimi(device)
    card = (info.raw_config or {}).get("card", mimi.cardinality)
    if mimi.cardinality != card:
        raise MoshiError(
            f"the codec {info.mimi_weights} has codebooks of {mimi.cardinality} entries and the model of {card}: it is "
            "another model's; name the right one with `moshi_paths.mimi_path`"
        )
    return mimi


def _existing(explicit: str | None, key: str, folder: Path | None, name: str) -> Path:
    """The explicit path, or else `name` in the folder; it must exist."""
    if explicit is not None:
        path = Path(explicit).expanduser()
        source = f"`moshi_paths.{key}`"
    elif folder is not None:
        path = folder / name
        source = f"the folder `moshi_paths.hf_repo_id` ({folder})"
    else:
        raise MoshiError(f"`moshi_paths.hf_repo_id` is null, so `moshi_paths.{key}` must be set")
    if not path.is_file():
        raise MoshiError(f"no file {path}, looked for because of {source}")
    return path.absolute()


def hub_file(repository: str, name: str) -> Path:
    """A file of a Hugging Face repository, fetched where it is not here. Raises as `hf_hub_download`."""
    huggingface_hub.logging.set_verbosity_error()  # every retry is a warning of the size of a traceback
    return Path(hf_hub_download(repository, name))


def _hub_config(repository: str) -> Path | None:
    """The repository's config.json; None for an old repository that has none, which the official loader knows.

    That loader takes an unreachable hub for such a repository; here it is an error.
    """
    try:
        return hub_file(repository, "config.json")
    except LocalEntryNotFoundError:
        raise
    except EntryNotFoundError:
        return None


def _explicit_config(paths: ModelPaths) -> Path | None:
    return None if paths.config_path is None else _existing(paths.config_path, "config_path", None, "")


def _explicit(path: str | None, key: str) -> Path | str | None:
    """An explicit path beside a hub repository; `hf://owner/name/file` is left to the official loader."""
    if path is None or path.startswith("hf://"):
        return path
    return _existing(path, key, None, "")


def read_json(path: Path) -> dict:
    """A JSON object from a file; raises `MoshiError` naming the file when it is not one."""
    try:
        value = json.loads(read_text(path))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise MoshiError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise MoshiError(f"{path} holds a JSON {type(value).__name__}, expected an object")
    return value
