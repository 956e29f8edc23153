"""Options that several commands on data read alike, and what they open."""

from __future__ import annotations

import argparse
import math
import re
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from ttt_moshi.cli.arguments import Parser, named
from ttt_moshi.config import DataArgs, ModelPaths
from ttt_moshi.errors import UserError

if TYPE_CHECKING:
    from ttt_moshi.data import Corpus
    from ttt_moshi.data.cluster import Cluster

BASE_MODEL = ModelPaths().hf_repo_id
BASE_MODEL_TOLD = "the base model, or its folder (default: %(default)s)"


def remote_cache_options(parser: Parser) -> None:
    """For commands that read URLs."""
    parser.add_argument(
        "--remote_cache_dir", type=Path, help="folder for copies of what lies at URLs (default: ~/.cache/ttt-moshi)"
    )
    parser.add_argument(
        "--remote_cache_gb",
        type=float,
        default=DataArgs().remote_cache_gb,
        help="how much these copies may take (default: %(default)g)",
    )


def use_remote_cache(args: argparse.Namespace) -> None:
    """What `remote_cache_options` added, from here on in this process."""
    if not 0 < args.remote_cache_gb < math.inf:
        raise UserError(f"`--remote_cache_gb` must be greater than 0, got {args.remote_cache_gb}")
    from ttt_moshi.data.remote import use_cache

    use_cache(args.remote_cache_dir, args.remote_cache_gb)


def disk_path(text: str) -> Path:
    """A path of what cannot be at a URL, for argparse; `file://` leads to a disk."""
    if not _on_disk(text):
        raise argparse.ArgumentTypeError(f"{text} is a URL, and this must be on a disk")
    from ttt_moshi.data.addresses import path_of

    return path_of(named(text))


def _on_disk(text: str) -> bool:
    """Whether a path, or each of several separated by commas, is one of this machine."""
    from ttt_moshi.data.addresses import path_of, url_of  # PyTorch comes with it, and --help must not wait for it

    try:
        return all(url_of(path_of(part.strip())) is None for part in text.split(","))
    except ValueError:
        return False


def channels_chosen(text: str) -> tuple[int, ...]:
    """`3,1` as numbers."""
    numbers = [_whole(part) for part in text.split(",")]
    if len(numbers) > 2 or min(numbers) < 1 or len(set(numbers)) < len(numbers):
        raise UserError(f"`--channels` is one number or two different ones, from 1, such as `2,1`; got {text!r}")
    return tuple(numbers)


def shard_chosen(text: str) -> tuple[int, int]:
    """`2/8` as numbers."""
    number, _, shards = text.partition("/")
    if not 1 <= _whole(number) <= _whole(shards):
        raise UserError(f"`--shard` is a part of how many, from 1/1, such as 2/8; got {text!r}")
    return _whole(number), _whole(shards)


def _whole(text: str) -> int:
    """Digits as a number, and 0 for anything else; numbers of ten digits count nothing that there is."""
    return int(text) if re.fullmatch(r"\s*[0-9]{1,9}\s*", text) else 0


def add_ray(parser: argparse.ArgumentParser) -> None:
    """`--ray [ADDRESS]`, for `cluster_chosen`."""
    parser.add_argument(
        "--ray", nargs="?", const="", metavar="HOST:PORT",
        help="share the work out over a Ray cluster: that at HOST:PORT, or the one that this machine belongs to, or "
        "this machine alone; all machines need the same folders",
    )  # fmt: skip


def cluster_chosen(args: argparse.Namespace, *instead: str) -> AbstractContextManager[Cluster | None]:
    """The cluster that `--ray` names, connected while the context lasts; None without `--ray`.

    Args:
        instead: options that share work out in other ways, which do not go with it; all have a default.
    """
    if args.ray is None:
        return nullcontext()
    for option in instead:
        if getattr(args, option) not in ("1/1", 1):
            raise UserError(f"`--ray` shares the work out itself: leave `--{option}` out")
    for name, value in vars(args).items():
        if name != "ray" and isinstance(value, str) and not _on_disk(value):
            raise UserError(f"`--ray` works in folders that all machines see, not at URLs such as {value}")
    from ttt_moshi.data.cluster import connected

    return connected(args.ray or None)


def open_corpus(
    path: str,
    hf_repo_id: str,
    cache_dir: Path | None,
    device: str,
    unspaced: bool = False,
    shard: tuple[int, int] = (0, 1),
) -> Corpus:
    """A data set, or a shard of it, to be read as by a base model."""
    from ttt_moshi.data import Alphabet, Codec, Corpus, names_audio
    from ttt_moshi.data.interleaver import TextStyle
    from ttt_moshi.moshi import resolve_model, writing_delay
    from ttt_moshi.moshi.device import choose_device
    from ttt_moshi.moshi.loading import geometry
    from ttt_moshi.moshi.paths import audio_codec, text_tokenizer

    chosen = choose_device(device)
    audio = names_audio(path, shard)  # first: the model may be a download
    info = resolve_model(ModelPaths(hf_repo_id=hf_repo_id))
    shape = geometry(info.lm_config)
    alphabet = Alphabet.of_model(shape)
    codec = Codec(audio_codec(info, chosen), info.mimi_config) if audio else None
    tokenizer = text_tokenizer(info) if audio else None
    style = TextStyle.of_model(shape, unspaced, writing_delay(info.raw_config))
    return Corpus(path, codec, tokenizer, 1.0, cache_dir, alphabet=alphabet, style=style, shard=shard)
