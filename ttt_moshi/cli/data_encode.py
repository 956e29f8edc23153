"""`ttt-moshi data encode`: the codes of a data set, made before training."""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from ttt_moshi.cli.arguments import Parser, named
from ttt_moshi.cli.data_choices import (
    BASE_MODEL,
    BASE_MODEL_TOLD,
    add_ray,
    cluster_chosen,
    open_corpus,
    remote_cache_options,
    shard_chosen,
    use_remote_cache,
)
from ttt_moshi.cli.data_shown import counted, encoding
from ttt_moshi.config import ModelPaths
from ttt_moshi.errors import UserError

if TYPE_CHECKING:
    from ttt_moshi.data import Codec
    from ttt_moshi.data.cluster import Cluster


def run_encode(argv: list[str]) -> int:
    parser = Parser(
        prog="ttt-moshi data encode",
        description="Make the Mimi codes of a data set before training, so that no training waits for them: on one "
        "machine, or one shard on each of several. What is there is not made again.",
    )
    parser.add_argument("path", type=named, help="jsonl file or folder of them; several separated by commas")
    parser.add_argument("--hf_repo_id", default=BASE_MODEL, help=BASE_MODEL_TOLD)
    parser.add_argument("--cache_dir", type=Path, help="folder of the codes, as `data.code_cache_dir` in training")
    parser.add_argument("--shard", default="1/1", help="which part, such as 2/8; parts are alike long")
    parser.add_argument("--device", default="auto", help="cpu, cuda, cuda:N or auto (default: %(default)s)")
    parser.add_argument(
        "--out", type=named, help="folder, or its URL, for a data set of codes alone, which needs no audio any more"
    )
    parser.add_argument(
        "--no_whitespace_before_word", action="store_true",
        help="as `data.no_whitespace_before_word` in training: how the text in OUT is written",
    )  # fmt: skip
    parser.add_argument(
        "--tar",
        action="store_true",
        help="in OUT one tar file for each shard, as webdataset reads, not a file a recording",
    )
    add_ray(parser)
    remote_cache_options(parser)
    args = parser.parse_args(argv)
    use_remote_cache(args)
    number, shards = shard_chosen(args.shard)
    if args.tar and args.out is None:
        raise UserError("`--tar` says how `--out` is written: name a folder")
    from ttt_moshi.data.addresses import readable
    from ttt_moshi.data.pretokenize import LIST, pretokenize, require_same_shards
    from ttt_moshi.data.remote import is_there, located_out
    from ttt_moshi.data.sources import require_apart

    out = None if args.out is None else located_out(args.out)
    if out is not None and is_there(out):
        raise UserError(f"`--out {args.out}` is a file; name a folder")
    if out is not None:  # before hours of work
        require_apart(args.path, out, LIST)
        require_same_shards(out, shards)

    with cluster_chosen(args, "shard") as cluster:
        told = None if cluster is None else _encode_over(cluster, args)
    corpus = open_corpus(
        args.path, args.hf_repo_id, args.cache_dir, args.device, args.no_whitespace_before_word, (number - 1, shards)
    )
    there = corpus.frames_in_cache()
    with encoding() as (on_recording, summary):
        if out is None:
            corpus.encode_all(on_recording=on_recording)
            written = None
        else:
            written = pretokenize(corpus, out, on_recording, tar=args.tar)
    print(f"shard {number} of {shards}: {told or summary(there)}")
    if written is not None:
        print(f"{readable(str(written))}: {counted(len(corpus.recordings), 'recording')}, codes alone")
    return 0


def _encode_over(cluster: Cluster, args: argparse.Namespace) -> str | None:
    """By every machine of a cluster, so that this one finds it done; what came of it, for people."""
    from ttt_moshi.data import names_audio
    from ttt_moshi.data.on_cluster import encode_over

    if not names_audio(args.path):
        return None
    device = cluster.device(args.device)
    opened = partial(_open_codec, args.hf_repo_id, device)
    with encoding() as (on_recording, summary):
        there = encode_over(cluster, args.path, opened, args.cache_dir, device=device, on_recording=on_recording)
        return summary(there)


def _open_codec(hf_repo_id: str, device: str) -> Codec:
    """That of a base model."""
    from ttt_moshi.data import Codec
    from ttt_moshi.moshi import resolve_model
    from ttt_moshi.moshi.paths import audio_codec

    info = resolve_model(ModelPaths(hf_repo_id=hf_repo_id))
    return Codec(audio_codec(info, device), info.mimi_config)
