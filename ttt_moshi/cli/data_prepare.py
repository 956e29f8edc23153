"""`ttt-moshi data prepare`: a folder of recordings becomes a data set."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from ttt_moshi.cli.arguments import Parser, named
from ttt_moshi.cli.data_choices import (
    add_ray,
    channels_chosen,
    cluster_chosen,
    remote_cache_options,
    use_remote_cache,
)
from ttt_moshi.cli.data_shown import clock, counted, progress, shown
from ttt_moshi.errors import UserError
from ttt_moshi.extras import need

if TYPE_CHECKING:
    from ttt_moshi.data.prepare import Outcome
    from ttt_moshi.data.rows import Rows


def run_prepare(argv: list[str]) -> int:
    parser = Parser(
        prog="ttt-moshi data prepare",
        description="Turn a folder of recordings (wav, flac, mp3, m4a, opus, webm, sph, ...; any rate) with "
        "transcripts beside them (json, TextGrid, eaf, ctm, rttm, vtt, srt, txt) into a data set. The folder itself is "
        "not changed. An interrupted call is continued by the same command.",
    )
    parser.add_argument("source", type=named, help="folder of recordings, or its URL, searched with its subfolders")
    parser.add_argument("--out", type=named, required=True, help="folder to make, or its URL")
    parser.add_argument(
        "--moshi_speaker", choices=("A", "B"), default="A", help="who becomes Moshi: A the left channel, B the right"
    )
    parser.add_argument("--moshi_label", help="Moshi's name in transcripts that have it, such as Agent")
    parser.add_argument(
        "--channels", help="which channels are Moshi's and the user's, from 1: `3,1`, or `2` for no user"
    )
    parser.add_argument("--pair", help="names of calls in two files, Moshi's first: 'call_*_{agent,customer}.wav'")
    parser.add_argument("--mono_mix", action="store_true", help="take mono recordings of two speakers too")
    parser.add_argument(
        "--separate", action="store_true", help="make two channels of mono calls, by a diarizer's NAME.rttm beside them"
    )
    parser.add_argument(
        "--max_repaired", type=float, default=0.1,
        help="share of a transcript's words that may lack a usable time, 0 to 1 (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--normalise", type=float, metavar="LUFS",
        help="bring each channel to this loudness (ITU-R BS.1770), such as -23; by default levels stay as they are",
    )  # fmt: skip
    parser.add_argument(
        "--align",
        choices=("pocketsphinx",),
        help="find English words without times by their sound, not by their letters",
    )
    parser.add_argument(
        "--eval_fraction", type=float, default=0.0, help="share of the recordings kept apart for evaluation, 0 to 1"
    )
    parser.add_argument(
        "--transcript_column",
        help="SOURCE is a Hugging Face data set (Parquet files, or saved): its column of texts or words, `-` for none",
    )
    parser.add_argument("--audio_column", help="its column of recordings (default: the only one that holds audio)")
    parser.add_argument("--hf_split", help="which part of it (default: the only one)")
    parser.add_argument("--jobs", type=int, default=1, help="recordings prepared at once (default: %(default)s)")
    add_ray(parser)
    parser.add_argument("--overwrite", action="store_true", help="replace a data set that this command made before")
    remote_cache_options(parser)
    args = parser.parse_args(argv)
    use_remote_cache(args)
    if not 0 <= args.eval_fraction < 1:
        raise UserError(f"`--eval_fraction` must be at least 0 and below 1, got {args.eval_fraction}")
    if not 0 <= args.max_repaired <= 1:
        raise UserError(f"`--max_repaired` must be from 0 to 1, got {args.max_repaired}")
    if args.normalise is not None and not -60 <= args.normalise <= -10:
        raise UserError(f"`--normalise` is a loudness from -60 to -10 LUFS, got {args.normalise}")
    if args.jobs < 1:
        raise UserError(f"`--jobs` must be at least 1, got {args.jobs}")
    channels = None if args.channels is None else channels_chosen(args.channels)
    if channels is not None and (args.moshi_speaker == "B" or args.pair is not None):
        raise UserError("`--channels` says who is Moshi: leave `--moshi_speaker` and `--pair` out")
    for option, value in {"--audio_column": args.audio_column, "--hf_split": args.hf_split}.items():
        if value is not None and args.transcript_column is None:
            raise UserError(f"`{option}` is of a Hugging Face data set: `--transcript_column` names its transcripts")
    if args.transcript_column is not None and (args.pair or args.separate):
        raise UserError("`--pair` and `--separate` go by files beside one another: leave `--transcript_column` out")
    from ttt_moshi.data.on_cluster import prepare_over
    from ttt_moshi.data.prepare import prepare
    from ttt_moshi.data.prepare_one import Choices
    from ttt_moshi.data.remote import located, located_out
    from ttt_moshi.data.rows import Rows
    from ttt_moshi.data.separate import require_model

    if args.separate and (args.moshi_label is None or args.mono_mix or args.pair or channels):
        raise UserError(
            "`--separate` needs `--moshi_label`, which of the diarizer's speakers is Moshi, and goes with none of "
            "`--mono_mix`, `--pair` and `--channels`"
        )
    if args.align is not None:
        need(args.align, f"`--align {args.align}`")
    if args.separate:
        require_model()
    choices = Choices(
        moshi_speaker=args.moshi_speaker,
        moshi_label=args.moshi_label,
        channels=channels,
        mono_mix=args.mono_mix,
        max_repaired=args.max_repaired,
        normalise=args.normalise,
        separate=args.separate,
        align=args.align,
    )
    source: Path | Rows = located(args.source)
    if args.transcript_column is not None:
        source = Rows(located(args.source), args.transcript_column, args.audio_column, args.hf_split)
    with cluster_chosen(args, "jobs") as cluster, progress("preparing") as on_file:
        result = prepare(
            source,
            located_out(args.out),
            choices,
            pair=args.pair,
            eval_fraction=args.eval_fraction,
            overwrite=args.overwrite,
            jobs=args.jobs,
            run=None if cluster is None else partial(prepare_over, cluster),
            on_file=on_file,
        )
    for outcome in result.outcomes:
        print(shown(_outcome_line(outcome)))
    if result.passed_over:
        kinds = ", ".join(f"{count} {suffix}" for suffix, count in result.passed_over.items())
        print(shown(f"passed over, neither audio nor the transcript of one: {kinds}"))
    used = [outcome for outcome in result.outcomes if outcome.path]
    seconds, words = sum(o.seconds for o in used), sum(o.words for o in used)
    print(f"\n{counted(len(used), 'recording')}, {clock(seconds)}, {counted(words, 'word')} of the agent")
    print(f"  {_rule(args.moshi_speaker, channels, args.pair)}")
    for name, count in result.lists.items():
        print(f"  {args.out.rstrip('/')}/{name}: {counted(count, 'recording')}")
    again = sum(outcome.passing for outcome in result.outcomes)
    if again:
        print(
            f"  {counted(again, 'recording')} left out for what may pass (memory, a disk or a store that did not "
            "answer): the same command with `--overwrite` tries all of them anew"
        )
    return 0 if len(used) == len(result.outcomes) else 1


def _rule(moshi_speaker: str, channels: tuple[int, ...] | None, pair: str | None) -> str:
    """Which channel is whom."""
    if pair is not None:
        return "of a pair the first file is Moshi, the second the user"
    if channels is not None:
        user = f"channel {channels[1]} the user" if len(channels) == 2 else "the user is silent"
        return f"channel {channels[0]} is Moshi, {user}"
    side = "right" if moshi_speaker == "B" else "left"
    return f"the {side} channel is Moshi, the other one the user; of mono recordings all is Moshi"


def _outcome_line(outcome: Outcome) -> str:
    if outcome.left_out:
        return f"left out  {outcome.source}: {outcome.left_out}"
    words = {
        "given": f"{counted(outcome.words, 'word')} of the agent",
        "approximate": f"{counted(outcome.words, 'word')} of the agent at approximate times",
        "none": "no words",
    }[outcome.word_times]
    return f"ok        {outcome.source}: {outcome.seconds:.2f} s, {words}; {'; '.join(outcome.done)}"
