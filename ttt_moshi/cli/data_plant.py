"""`ttt-moshi data plant`: passages return in a data set."""

from __future__ import annotations

from pathlib import Path

from ttt_moshi.cli.arguments import Parser, named, seed
from ttt_moshi.cli.data_choices import (
    BASE_MODEL,
    BASE_MODEL_TOLD,
    disk_path,
    open_corpus,
    remote_cache_options,
    use_remote_cache,
)
from ttt_moshi.cli.data_shown import clock, counted, progress
from ttt_moshi.errors import UserError

MOST_PASSAGES = 10_000
"""that are looked for in a recording: beyond what a day of audio could hold"""


def run_plant(argv: list[str]) -> int:
    parser = Parser(
        prog="ttt-moshi data plant",
        description="Copy a data set as pre-tokenized recordings in which passages return, so that there is something "
        "to remember: repeats say a passage of the recording once more, facts come from another recording and are said "
        "twice. OUT/planted.json says what returns when.",
    )
    parser.add_argument("path", type=named, help="jsonl file or folder of them; several separated by commas")
    parser.add_argument("--out", type=disk_path, required=True, help="folder to make")
    parser.add_argument("--repeats", type=int, default=2, help="in each recording (default: %(default)s)")
    parser.add_argument("--facts", type=int, default=2, help="in each recording (default: %(default)s)")
    parser.add_argument("--passage", default="2:6", help="its seconds, from least to greatest (default: %(default)s)")
    parser.add_argument(
        "--distance", default="60:600",
        help="seconds from a passage to its return, beyond the window that is trained (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument("--seed", type=seed, default=0, help="seed of every random choice (default: %(default)s)")
    parser.add_argument("--hf_repo_id", default=BASE_MODEL, help=BASE_MODEL_TOLD)
    parser.add_argument("--cache_dir", type=Path, help="folder of the codes, as `data.code_cache_dir` in training")
    parser.add_argument("--device", default="auto", help="cpu, cuda, cuda:N or auto (default: %(default)s)")
    parser.add_argument(
        "--no_whitespace_before_word", action="store_true", help="as `data.no_whitespace_before_word` in training"
    )
    remote_cache_options(parser)
    args = parser.parse_args(argv)
    use_remote_cache(args)
    if min(args.repeats, args.facts) < 0 or args.repeats + args.facts == 0:
        raise UserError(f"nothing to plant: `--repeats {args.repeats}` and `--facts {args.facts}`")
    for name in ("repeats", "facts"):
        if getattr(args, name) > MOST_PASSAGES:
            raise UserError(f"`--{name}` counts passages in each recording, at most {MOST_PASSAGES:,}")
    passage, distance = _frames("--passage", args.passage), _frames("--distance", args.distance)
    from ttt_moshi.data.plant import Plan, plant
    from ttt_moshi.data.pretokenize import LIST
    from ttt_moshi.data.sources import require_apart
    from ttt_moshi.frames import frames_to_seconds

    require_apart(args.path, args.out, LIST)
    corpus = open_corpus(args.path, args.hf_repo_id, args.cache_dir, args.device, args.no_whitespace_before_word)
    with progress("planting") as on_recording:
        found = plant(corpus, args.out, Plan(args.repeats, args.facts, passage, distance), args.seed, on_recording)
    counts = {kind: sum(one.kind == kind for one in found.planted) for kind in ("repeat", "fact")}
    before, after = frames_to_seconds(found.frames_before), frames_to_seconds(found.frames)
    print(
        f"{args.out / 'data.jsonl'}: {counted(found.recordings, 'recording')}, {clock(after)} (before: "
        f"{clock(before)}), with {counted(counts['repeat'], 'repeat')} and {counted(counts['fact'], 'fact')}"
    )
    missing = found.recordings * (args.repeats + args.facts) - len(found.planted)
    if missing:
        print(f"{counted(missing, 'passage')} found no place: recordings too short, or without pauses where to cut")
    return 0


def _frames(flag: str, text: str) -> tuple[int, int]:
    """`2:6` seconds as frames."""
    from ttt_moshi.frames import seconds_to_frames

    try:
        low, high = (float(part) for part in text.split(":"))
    except ValueError:
        low = high = 0.0
    if not 0 < low <= high <= 86_400:
        raise UserError(f"`{flag}` is seconds from least to greatest, such as 2:6; got {text!r}")
    return seconds_to_frames(low), seconds_to_frames(high)
