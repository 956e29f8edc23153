"""`python -m benchmarks.memory.judged`: what `ttt-moshi eval --tasks hour` says of models with and without a memory.

The models of `benchmarks.memory.hour --language speech`, through the command and on audio: passages said and said
again, the worth of distant context, how far back a change of the input shows, and the model as it talks by itself with
a silent user, which is what it was trained on. Every recording has a voice and words of its own and lasts half of
`--minutes`, so a stream hears several. What is made is kept in `cache` beside the results, so nothing is made twice.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.memory import arms, spoken
from benchmarks.memory.cache import continued, made
from benchmarks.memory.curves import LANGUAGES, learning, train
from benchmarks.ttt.machine import facts, write
from ttt_moshi.evaluation.report.tables import interval
from ttt_moshi.evaluation.results import OK, read_results
from ttt_moshi.frames import frames_to_seconds, seconds_to_frames

MODELS = "window,ttt-delta-both,ttt-delta-both-long"
LANGUAGE = LANGUAGES["speech"]
SHARE = 2
"""recordings in the length that is asked for"""
HEARD_SEED = 4_000_000
"""of the recordings, which no model was trained or measured on before"""
CHUNK_FRAMES = "512"
"""that are read at once: with a window of 16 frames, larger chunks look at more that is then masked"""
TTT_MOSHI = Path(sys.executable).with_name("ttt-moshi")
TALKING = ("silence", "repeated_grams", "entropy")


def main(argv: list[str] | None = None) -> int:
    """Trains and evaluates what is missing in `judged-MINUTES.json`, and prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=arms.chosen, default=MODELS, help=f"of {', '.join(arms.ARMS)}")
    parser.add_argument("--seeds", default="0,1,2", help="of the training data and the initial weights")
    parser.add_argument("--minutes", type=float, default=10.0, help="how long is listened and talked")
    parser.add_argument("--recordings", type=int, default=8, help="as many streams are listened to; five at least")
    parser.add_argument("--reading_only", action="store_true", help="from codes alone, so that nothing talks")
    parser.add_argument("--out", type=Path, default=Path("runs/bench-memory"), help="folder of the results")
    options = parser.parse_args(argv)
    console = Console(width=150)
    kind = f"{'read' if options.reading_only else 'judged'}-{options.minutes:g}"
    path = options.out / f"{kind}.json"
    result = continued(path, 1, {"recordings": options.recordings, "share": SHARE, "minutes": options.minutes})
    cache = options.out / "cache" / "speech"
    for seed in map(int, options.seeds.split(",")):
        for name in options.models:
            if f"{name}/{seed}" in result["runs"]:
                continue
            console.print(f"{name}, seed {seed}")
            models = learning(LANGUAGE, cache, seed, LANGUAGE.steps)
            checkpoint = train(models, name, seed, LANGUAGE.steps)[1].checkpoint
            evaluation = options.out / kind / f"{name}-{seed}"
            data = heard(cache, options.minutes, options.recordings)
            if options.reading_only:
                data = encoded(data, models.base_model)
            result["runs"][f"{name}/{seed}"] = judge(checkpoint, data, options.minutes, evaluation)
            write(path, result)
    for table in tables(result["runs"]):
        console.print(table)
    console.print(path)
    return 0


def heard(cache: Path, minutes: float, recordings: int) -> Path:
    """The list of the wav files, made if missing."""
    frames = seconds_to_frames(60 * minutes / SHARE)

    def make(folder: Path) -> None:
        spoken.write_recordings(folder, [frames] * recordings, HEARD_SEED, stereo=True)

    return made(cache / f"heard-{recordings}x{frames}", make) / "data.jsonl"


def encoded(data: Path, base: Path) -> Path:
    """The same recordings as codes alone, made if missing; all seeds have one codec."""
    command = [TTT_MOSHI, "data", "encode", data, "--hf_repo_id", base, "--out"]
    folder = data.parent.with_name(f"{data.parent.name}-codes")
    return made(folder, lambda new: subprocess.run([*command, new], check=True)) / "data.jsonl"


def judge(checkpoint: Path, data: Path, minutes: float, out: Path) -> dict[str, Any]:
    """The command's entry of the task, and what it cost. A stopped evaluation goes on where it was; what it cost in
    all is not known then."""
    in_one_go = not out.exists()
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    command = [TTT_MOSHI, "eval", "--tasks", "hour", "--dtype", "float32"]
    options = ["--checkpoint_dir", checkpoint, "--data", data, "--minutes", f"{minutes:g}", "--out", out]
    options += ["--chunk_frames", CHUNK_FRAMES]
    subprocess.run([*command, *options], check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    entry = read_results(out / "results.json").tasks["hour"]
    seconds = after.ru_utime - before.ru_utime if in_one_go else None
    return {"hour": entry, "cpu_seconds": seconds, "machine": facts()}


def tables(runs: dict[str, Any]) -> Iterable[Table]:
    """What was heard, by distance and speaker; and a line for each model, with its intervals over streams."""
    odds = Table("heard", "said by", *runs, title="log-odds in nats of a passage heard so long ago")
    parts = [run["hour"]["facts"] for run in runs.values()]
    for points in zip(*parts, strict=True):
        cells = [_measured(point["baselines"].get("memory", point["baselines"]["window"])) for point in points]
        odds.add_row(f"{frames_to_seconds(points[0]['frames']):g} s ago", points[0]["channel"], *cells)
    yield odds
    lines = Table("", *runs, title="the end of a stream, changes of the input, and talking")
    entries = [run["hour"] for run in runs.values()]
    for name in ("memory", "reset", "swapped", "no_writes", "sink", "wide"):
        gains = [entry["context"]["baselines"].get(name) for entry in entries]
        lines.add_row(f"gain over its window: {name}", *("" if gain is None else _measured(gain) for gain in gains))
    lines.add_row("NLL of its window", *(f"{e['context']['baselines']['window']['nll']:.3f}" for e in entries))
    remembered = [entry["remembrance"]["baselines"] for entry in entries]
    farthest = (one.get("memory", one["window"])["farthest"] for one in remembered)
    lines.add_row("a change shows after", *(f"{frames_to_seconds(frames):g} s" for frames in farthest))
    controls = (max(entry["controls_largest"].values()) for entry in entries)
    lines.add_row("controls that must be 0", *(f"{value:g}" for value in controls))
    talks = [entry["free_running"] for entry in entries if entry["free_running"]["status"] == OK]
    lines.add_row("conversations that collapse", *(f"{one['collapsed']} of {one['conversations']}" for one in talks))
    for name in TALKING:
        ends = ((one["minutes"][0][name]["value"], one["minutes"][-1][name]["value"]) for one in talks)
        lines.add_row(f"{name}, first and last minute", *(f"{first:.2f} {last:.2f}" for first, last in ends))
    costs = [run["cpu_seconds"] for run in runs.values()]
    lines.add_row("CPU seconds", *("in several parts" if cost is None else f"{cost:.0f}" for cost in costs))
    yield lines


def _measured(entry: dict[str, Any]) -> str:
    """Value and interval, or that it was not measured."""
    return interval(entry, 2) if entry["status"] == OK else str(entry["status"])


if __name__ == "__main__":
    raise SystemExit(main())
