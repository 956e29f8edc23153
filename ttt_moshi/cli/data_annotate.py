"""`ttt-moshi data annotate`"""

from __future__ import annotations

import time
from functools import partial
from typing import TYPE_CHECKING

from ttt_moshi.cli.arguments import Parser
from ttt_moshi.cli.data_choices import add_ray, channels_chosen, cluster_chosen, disk_path, shard_chosen
from ttt_moshi.cli.data_shown import clock, counted, progress, shown

if TYPE_CHECKING:
    from ttt_moshi.data.annotate import Annotated


def run_annotate(argv: list[str]) -> int:
    parser = Parser(
        prog="ttt-moshi data annotate",
        description="Write a transcript with word times beside every recording that has none, hearing one channel "
        "at a time. An interrupted call is continued by the same command.",
    )
    parser.add_argument("source", type=disk_path, help="folder of recordings, searched with its subfolders")
    parser.add_argument(
        "--engine", choices=("faster-whisper", "pocketsphinx"), default="faster-whisper",
        help="faster-whisper knows some hundred languages; pocketsphinx English alone, badly, but needs no download",
    )  # fmt: skip
    parser.add_argument(
        "--model", help="Whisper model of CTranslate2: a size, a repository or a folder (default: large-v3)"
    )
    parser.add_argument(
        "--language", help="code of the language spoken, such as en; by default each channel's is found"
    )
    parser.add_argument("--channels", help="which channels are heard, from 1: `1,3`, of which A comes first; or one")
    parser.add_argument("--device", default="auto", help="cpu, cuda, cuda:N or auto (default: %(default)s)")
    parser.add_argument("--shard", default="1/1", help="which part, such as 2/8, for several processes or GPUs")
    parser.add_argument("--overwrite", action="store_true", help="make transcripts again that are there")
    add_ray(parser)
    args = parser.parse_args(argv)
    shard = shard_chosen(args.shard)
    channels = None if args.channels is None else channels_chosen(args.channels)
    from ttt_moshi.data.annotate import annotate, recordings_below
    from ttt_moshi.data.on_cluster import annotate_over
    from ttt_moshi.data.recognisers import open_recogniser

    recordings_below(args.source)  # first: the model may be a download
    outcomes: list[Annotated] = []
    with cluster_chosen(args, "shard") as cluster, progress("hearing") as on_file:
        if cluster is None:
            recogniser = open_recogniser(args.engine, args.model, args.device, args.language)
            hear = partial(annotate, args.source, recogniser, shard=shard)
        else:
            device = cluster.device(args.device)
            opened = partial(open_recogniser, args.engine, args.model, device, args.language)
            hear = partial(annotate_over, cluster, args.source, opened, device=device)
        began = time.monotonic()
        for outcome in hear(language=args.language, channels=channels, overwrite=args.overwrite, on_file=on_file):
            outcomes.append(outcome)
            print(shown(_line(outcome)), flush=True)
    made = [outcome for outcome in outcomes if outcome.left_out is None and outcome.there is None]
    seconds, words = sum(o.seconds for o in made), sum(sum(o.words.values()) for o in made)
    took = max(time.monotonic() - began, 1e-3)
    print(
        f"\n{counted(len(made), 'transcript')} written, {clock(seconds)}, {counted(words, 'word')}, "
        f"{seconds / took:.1f}x real time"
    )
    return 1 if any(outcome.left_out for outcome in outcomes) else 0


def _line(outcome: Annotated) -> str:
    if outcome.left_out:
        return f"left out  {outcome.source}: {outcome.left_out}"
    if outcome.there:
        return f"there     {outcome.source}: has {outcome.there}"
    heard = [
        (f"{who}: " if len(outcome.words) == 2 else "")
        + counted(count, "word")
        + (f" ({outcome.languages[who]})" if who in outcome.languages else "")
        for who, count in outcome.words.items()
    ]
    return f"ok        {outcome.source}: {outcome.seconds:.2f} s, {', '.join(heard)}"
