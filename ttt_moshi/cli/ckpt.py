"""List, show, compare, export, prune and repair checkpoints."""

from __future__ import annotations

import importlib.util
import json
import math
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from rich.console import Console
from rich.table import Table

import ttt_moshi
from ttt_moshi.checkpoint import (
    CheckpointError,
    ForeignCheckpoint,
    Retention,
    UnreadableCheckpoint,
    VerifyReport,
    committed_steps,
    diff,
    list_folder,
    make_room,
    put_back,
    read_manifest,
    repair,
    set_pinned,
    step_of,
    verify,
)
from ttt_moshi.cli.arguments import Parser, run_subcommand
from ttt_moshi.cli.checkpoint_facts import find, find_one, nothing_saved, progress_bar, size_text
from ttt_moshi.cli.ckpt_diff import show_diff
from ttt_moshi.cli.printing import aligned
from ttt_moshi.errors import UserError

WHERE = "a run, its checkpoints folder, or one checkpoint"
WHICH = "one checkpoint, or a run, of which the newest valid one is taken"
USAGE = """\
usage: ttt-moshi ckpt COMMAND [options]

  ls PATH              every checkpoint of a run, and what else lies beside them
  show PATH            one checkpoint explained: step, data position, TTT, gates, learning rates, sizes, uses
  verify PATH          every byte against the digests of the manifest
  diff FIRST SECOND    what differs, tensor by tensor and key by key
  export PATH FOLDER   the weights in a folder of their own, checked on the way
  prune PATH           delete what no rule keeps
  pin PATH             keep one checkpoint whatever the rules say
  repair PATH          sweep what a crash left, set corrupt checkpoints aside
  put-back PATH        give a checkpoint that was set aside its place again, verified first
  bench                measure saving and loading beside the bare disk

Every command takes --json and prints one JSON document then; `ttt-moshi ckpt COMMAND --help` explains one.

exit status: 0  done, nothing wrong        1  problems or differences were found (repair: and put in order)
             2  could not run: wrong arguments, nothing there, something that cannot be read now, or contents
                that are corrupt or not ours where verified ones are needed
"""


def main(argv: list[str]) -> int:
    """`ttt-moshi ckpt COMMAND ...`; the exit status is explained in `USAGE`."""
    commands: dict[str, Callable[[list[str], Console], int]] = {
        "ls": _ls,
        "show": _show,
        "verify": _verify,
        "diff": _diff,
        "export": _export,
        "prune": _prune,
        "pin": _pin,
        "repair": _repair,
        "put-back": _put_back,
        "bench": _bench,
    }
    return run_subcommand("ckpt", argv, USAGE, commands, Console(highlight=False))


def _parser(command: str, what: str) -> Parser:
    parser = Parser(prog=f"ttt-moshi ckpt {command}", description=what)
    parser.add_argument("--json", action="store_true", help="print one JSON document instead of text")
    return parser


def _print_json(value: Any) -> None:
    print(json.dumps(value, indent=1, allow_nan=False))


def _ls(argv: list[str], console: Console) -> int:
    what = "List everything in a checkpoints folder. Status 1 if something is corrupt, 2 if something cannot be read."
    parser = _parser("ls", what)
    parser.add_argument("path", type=Path, help=WHERE)
    options = parser.parse_args(argv)
    place = find(options.path)
    records = list_folder(place.root)
    if place.chosen is not None:
        records = [record for record in records if record["name"] == place.chosen.absolute().name]
    statuses = {record["status"] for record in records}
    status = 2 if "unreadable" in statuses else int("corrupt" in statuses)
    if options.json:
        _print_json(records)
        return status
    if not records:
        console.print(nothing_saved(options.path), soft_wrap=True, markup=False)
        return 0
    console.print(str(place.root), soft_wrap=True, markup=False)
    rows = [("name", "state id", "status", "kind", "size", "loss")]
    for record in records:
        loss = record.get("metrics", {}).get("loss")
        row = (
            record["name"],
            record.get("state_id", "")[:12],
            record["status"] + (", pinned" if record.get("pinned") else ""),
            record.get("kind", ""),
            size_text(record["bytes"]) if "bytes" in record else "",
            "" if loss is None else f"{loss:.4f}",
        )
        rows.append(row)
    console.print("\n".join(aligned(rows)), soft_wrap=True, markup=False)
    console.print(_totals(records))
    for record in records:
        if record["problem"]:
            console.print(f"{record['name']}: {record['problem']}", soft_wrap=True, markup=False)
    if statuses & {"leftover", "corrupt"}:
        console.print(f"`ttt-moshi ckpt repair {place.root}` puts this in order", soft_wrap=True)
    if "set aside" in statuses:
        console.print(f"`ttt-moshi ckpt put-back {place.root}/NAME` verifies one and gives it its place again")
    return status


def _totals(records: list[dict[str, Any]]) -> str:
    """How many folders of each status there are, and what they take on the disk."""
    words = []
    for status in sorted({record["status"] for record in records}):
        sizes = [record.get("bytes", 0) for record in records if record["status"] == status]
        words.append(f"{len(sizes)} {status} {size_text(sum(sizes))}")
    return f"{', '.join(words)}; in all {size_text(sum(record.get('bytes', 0) for record in records))}"


def _show(argv: list[str], console: Console) -> int:
    from ttt_moshi.cli.ckpt_show import explain, show

    parser = _parser("show", "Explain a checkpoint.")
    parser.add_argument("path", type=Path, help=WHICH)
    options = parser.parse_args(argv)
    seen = explain(find_one(options.path))
    if options.json:
        _print_json(seen)
    else:
        show(seen, console)
    return 0


def _verify(argv: list[str], console: Console) -> int:
    what = "Check checkpoints against their manifests. Status 1 if anything is wrong, 2 if one cannot be read."
    parser = _parser("verify", what)
    parser.add_argument("path", type=Path, help=WHERE)
    parser.add_argument(
        "--quick", action="store_true", help="manifest, sizes, headers and small files only; no tensor data"
    )
    options = parser.parse_args(argv)
    place = find(options.path)
    if place.chosen is not None:
        paths = [place.chosen]
    else:
        paths = [place.root / f"checkpoint_{step:06d}" for step in committed_steps(place.root)]
    if not paths:
        raise UserError(f"no checkpoint in {place.root}")
    records, statuses = [], {0}
    for path in paths:
        try:
            with progress_bar(f"verifying {path.name}") as advance:
                report = verify(path, deep=not options.quick, progress=advance)
        except (ForeignCheckpoint, UnreadableCheckpoint) as error:
            # One of a run that is not ours is no problem of the run; one that was named is not what was meant; and one
            # that has our files, but no manifest any more, was a checkpoint once.
            if isinstance(error, UnreadableCheckpoint) or place.chosen is not None:
                statuses.add(2)
            elif (path / "resume").is_dir() and not (path / "manifest.json").exists():
                statuses.add(1)
            word = "foreign" if isinstance(error, ForeignCheckpoint) else "unreadable"
            records.append({"path": str(path), "ok": False, "status": word, "problems": [{"what": str(error)}]})
            text = f"{path}: {word}: {error}"
        else:
            statuses.add(0 if report.ok else 1)
            records.append(_verified(report))
            text = report.text()
        if not options.json:
            console.print(text, soft_wrap=True, markup=False)
    if options.json:
        _print_json(records)
    return max(statuses)


def _verified(report: VerifyReport) -> dict[str, Any]:
    status = "verified" if report.ok else "corrupt" if report.corrupt else "irregular"
    return {
        "path": str(report.path),
        "ok": report.ok,
        "status": status,
        "step": report.step,
        "state_id": report.state_id,
        "bytes": report.bytes,
        "seconds": report.seconds,
        "problems": [vars(problem) for problem in report.problems],
    }


def _diff(argv: list[str], console: Console) -> int:
    parser = _parser("diff", "Compare two checkpoints. Status 1 if their training states differ.")
    parser.add_argument("first", type=Path, help=WHICH)
    parser.add_argument("second", type=Path, help=WHICH)
    options = parser.parse_args(argv)
    first, second = find_one(options.first), find_one(options.second)
    with progress_bar("comparing", unit="elements") as advance:
        seen = diff(first, second, advance)
    for change in seen["changed"].values():
        # JSON has neither: a change of zeros has no relative size, and NaN has no size at all.
        change |= {name: value if math.isfinite(value) else None for name, value in change.items()}
    if options.json:
        _print_json({"first": str(first), "second": str(second), **seen})
    else:
        show_diff(seen, first, second, console)
    return 0 if seen["same_state"] else 1


def _export(argv: list[str], console: Console) -> int:
    parser = _parser("export", "Copy the exported weights and their documents into a new folder, checking digests.")
    parser.add_argument("path", type=Path, help=WHICH)
    parser.add_argument("folder", type=Path, help="where to; must not exist or be empty")
    parser.add_argument(
        "--shard-gb", type=float, help="cut weight files into pieces of about so many GB, with an index"
    )
    options = parser.parse_args(argv)
    if options.shard_gb is not None and not 0 < options.shard_gb < math.inf:
        raise UserError(f"--shard-gb must be greater than 0, got {options.shard_gb}")
    from ttt_moshi.checkpoint import export_weights

    path = find_one(options.path)
    shard_bytes = None if options.shard_gb is None else max(1, int(options.shard_gb * 1e9))
    with progress_bar(f"exporting {path.name}") as advance:
        from ttt_moshi.checkpoint import export_weights

        written = export_weights(path, options.folder, shard_bytes, advance)
    sizes = {str(file): file.stat().st_size for file in written}
    if options.json:
        _print_json({"checkpoint": str(path), "files": sizes})
    else:
        for name, size in sizes.items():
            console.print(f"{name}  {size_text(size)}", soft_wrap=True)
    return 0


def _prune(argv: list[str], console: Console) -> int:
    parser = _parser("prune", "Delete the checkpoints that no rule keeps. Corrupt and foreign ones are not touched.")
    parser.add_argument("path", type=Path, help="a run or its checkpoints folder")
    parser.add_argument("--last", type=int, metavar="N", help="keep the newest N, and what other rules keep")
    parser.add_argument("--every", type=int, metavar="K", help="keep every step divisible by K")
    parser.add_argument("--best", type=int, default=0, metavar="N", help="keep the best N by --metric")
    parser.add_argument("--metric", help="a metric that `ls` shows, such as loss")
    parser.add_argument("--larger-is-better", action="store_true", help="for --metric; otherwise smaller is better")
    parser.add_argument(
        "--also",
        metavar="KINDS",
        default="",
        help="delete what lies beside the checkpoints, too: corrupt, left, unhealthy, leftover, foreign, with commas",
    )
    parser.add_argument("--dry-run", action="store_true", help="only say what would be deleted")
    options = parser.parse_args(argv)
    for name, least in (("last", 1), ("every", 1), ("best", 0)):
        value = getattr(options, name)
        if value is not None and value < least:
            what = "; that would leave none" if name == "last" else ""
            raise UserError(f"--{name} must be at least {least}, got {value}{what}")
    root = _folder(options.path)
    also = [kind for kind in options.also.split(",") if kind]
    if options.last is None:
        if options.every is not None or options.best or options.metric or not also:
            raise UserError("name what is to be kept with --last N, or what else is to go with --also KINDS")
        policy = None
    else:
        policy = Retention(options.last, options.every, options.best, options.metric, options.larger_is_better)
    decisions = make_room(root, policy, also, options.dry_run, lambda line: print(line, file=sys.stderr))
    if options.json:
        _print_json([vars(decision) for decision in decisions])
        return 0
    verb = "would be deleted" if options.dry_run else "deleted"
    for decision in decisions:
        word = "kept" if decision.keep else verb
        console.print(f"{decision.name}  {size_text(decision.bytes):>10}  {word}: {decision.reason}", soft_wrap=True)
    gone = [decision for decision in decisions if not decision.keep]
    console.print(f"{len(gone)} in all, {size_text(sum(decision.bytes for decision in gone))} {verb}")
    return 0


def _pin(argv: list[str], console: Console) -> int:
    parser = _parser("pin", "Keep a checkpoint for good: neither training nor prune deletes it.")
    parser.add_argument("path", type=Path, help="one checkpoint")
    parser.add_argument("--off", action="store_true", help="let the rules decide again")
    options = parser.parse_args(argv)
    place = find(options.path)
    if place.chosen is None:
        raise UserError(f"{options.path} is a whole folder: name one checkpoint in it")
    if step_of(place.chosen.absolute().name) is None:
        raise UserError(f"{options.path} is set aside, and pins are of steps: put it back first")
    step = read_manifest(place.chosen)["step"]
    set_pinned(place.root, step, not options.off)
    if options.json:
        _print_json({"step": step, "pinned": not options.off})
    else:
        console.print(f"step {step} is {'no longer pinned' if options.off else 'pinned'}")
    return 0


def _repair(argv: list[str], console: Console) -> int:
    parser = _parser("repair", "Put a folder in order that no run writes to. Status 1 if there was something to do.")
    parser.add_argument("path", type=Path, help="a run or its checkpoints folder")
    parser.add_argument("--quick", action="store_true", help="do not read tensor data to find corruption")
    options = parser.parse_args(argv)
    root = _folder(options.path)
    with progress_bar(f"verifying {root}") as advance:
        done = repair(root, not options.quick, advance)
    if options.json:
        _print_json(done)
    else:
        for line in done or ["everything is in order"]:
            console.print(line, soft_wrap=True, markup=False)
    return 1 if done else 0


def _put_back(argv: list[str], console: Console) -> int:
    parser = _parser("put-back", "Give a checkpoint that was set aside its place again, if every byte of it verifies.")
    parser.add_argument("path", type=Path, help="one checkpoint that `ls` shows as set aside")
    options = parser.parse_args(argv)
    if not options.path.is_dir():
        raise CheckpointError(f"no folder at {options.path}")
    place = put_back(options.path)
    if options.json:
        _print_json({"path": str(place)})
    else:
        console.print(f"{options.path.name} is verified and is {place} again", soft_wrap=True)
    return 0


def _bench(argv: list[str], console: Console) -> int:
    parser = _parser("bench", "Measure saving, loading and verifying beside the bare disk and other writers.")
    parser.add_argument(
        "folder", nargs="?", type=Path, default=Path("."), help="on the disk to measure (default: here)"
    )
    parser.add_argument("--gigabytes", type=float, default=2.0, help="size of the state (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="repetitions (default: %(default)s)")
    parser.add_argument("--many", type=int, default=100, help="saves of the memory test (default: %(default)s)")
    options = parser.parse_args(argv)
    if not options.folder.is_dir():
        raise UserError(f"no folder at {options.folder}")
    for name in ("gigabytes", "rounds", "many"):
        if not 0 < getattr(options, name) < math.inf:
            raise UserError(f"--{name} must be greater than 0, got {getattr(options, name)}")
    benchmark = _benchmark()
    result = benchmark.run(
        options.folder, options.gigabytes, options.rounds, options.many, lambda line: print(line, file=sys.stderr)
    )
    if options.json:
        _print_json(result)
        return 0
    table = Table(title=f"{result['gigabytes']:.2f} GB, {result['rounds']} rounds", title_justify="left")
    table.add_column("what")
    for column in ("median", "lowest", "highest", "goal", ""):
        table.add_column(column, justify="right")
    for figure in result["figures"]:
        numbers = [f"{figure[key]:.3g}" for key in ("median", "lowest", "highest")]
        verdict = {None: "", True: "met", False: "missed"}[figure["met"]]
        table.add_row(figure["what"], *numbers, figure["goal"] or "", verdict)
    console.print(table)
    for name, seconds in result["median_seconds"].items():
        console.print(f"{seconds:7.3f} s  {name.replace('_', ' ')}")
    return 0


def _benchmark() -> ModuleType:
    """The benchmark's module, which is in the repository beside the package and not in an installed package."""
    path = Path(ttt_moshi.__file__).parents[1] / "benchmarks" / "checkpoint" / "bench.py"
    spec = importlib.util.spec_from_file_location("checkpoint_bench", path)
    if not path.is_file() or spec is None or spec.loader is None:
        raise UserError(f"no benchmark at {path}: it is part of the repository, so run this from a clone of it")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def _folder(path: Path) -> Path:
    place = find(path)
    if place.chosen is not None:
        raise UserError(f"{path} is one checkpoint: name its folder, {place.root}")
    return place.root
