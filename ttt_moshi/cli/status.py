"""Explain the environment, a run or a checkpoint."""

from __future__ import annotations

import math
import os
import platform
import shutil
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ttt_moshi.checkpoint import (
    CheckpointError,
    checkpoint_name,
    committed_steps,
    newest_valid,
    read_manifest,
    verify,
)
from ttt_moshi.cli.arguments import Parser
from ttt_moshi.cli.checkpoint_facts import find, gate_openings, nothing_saved, progress_bar, size_text

EXAMPLES = """\
train              python train.py --config configs/demo.yaml
on 8 GPUs          torchrun --nproc_per_node 8 train.py --config configs/moshi_7b_ttt.yaml
resume             python train.py --config configs/demo.yaml --checkpoint.resume true
resume at a step   python train.py --config configs/demo.yaml --checkpoint.resume true --checkpoint.resume_step 90
second stage       python train.py --config configs/demo.yaml --run_dir runs/stage2 \\
                     --checkpoint.init_state_dir runs/demo/killed/checkpoints/checkpoint_000100
this overview      python checkpoint_summary.py runs/demo/killed
verify             python test_checkpoint_verification.py \\
                     --checkpoint_dir runs/demo/killed/checkpoints/checkpoint_000100
explain one        ttt-moshi ckpt show runs/demo/killed/checkpoints/checkpoint_000100
compare two        ttt-moshi ckpt diff runs/demo/killed runs/demo/uninterrupted
free disk          ttt-moshi ckpt prune runs/demo/killed --last 2 --dry-run
evaluate           python eval_from_checkpoint.py \\
                     --checkpoint_dir runs/demo/killed/checkpoints/checkpoint_000100
"""


def main(argv: list[str]) -> int:
    """`ttt-moshi status [--check-system] [--show-examples] [--full] [RUN_DIR]`.

    Status 0 if all that was looked at is usable, 1 if not.
    """
    parser = Parser(prog="checkpoint_summary.py", description=__doc__)
    parser.add_argument("run_dir", nargs="?", type=Path, help="a run, its checkpoints folder, or one checkpoint")
    parser.add_argument("--check-system", action="store_true", help="check the environment, count 7B's tensors")
    parser.add_argument("--show-examples", action="store_true", help="print the commands for the usual tasks")
    parser.add_argument("--full", action="store_true", help="read and verify every byte of every checkpoint")
    options = parser.parse_args(argv)
    if options.run_dir is None and not options.show_examples:
        options.check_system = True
    console = Console(highlight=False)
    sound = True
    if options.show_examples:
        console.print(EXAMPLES, markup=False, soft_wrap=True)
    if options.check_system:
        sound &= _check_system(console)
    if options.run_dir is not None:
        sound &= _explain_run(options.run_dir, options.full, console)
    return 0 if sound else 1


def _check_system(console: Console) -> bool:
    import torch

    table = Table(title="environment", show_header=False, title_justify="left")
    problems = []
    table.add_row("python", platform.python_version())
    for package in ("torch", "moshi", "safetensors", "blake3", "sentencepiece"):
        try:
            table.add_row(package, version(package))
        except PackageNotFoundError:
            table.add_row(package, "[red]missing[/]")
            problems.append(f"{package} is not installed")
    gpus = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
    table.add_row(
        "GPUs", ", ".join(f"{gpu.name} {gpu.total_memory / 2**30:.0f} GiB" for gpu in gpus) or "none: CPU only"
    )
    table.add_row("CPU cores", str(os.cpu_count()))
    table.add_row("free disk here", f"{shutil.disk_usage('.').free / 2**30:.1f} GiB")
    console.print(table)
    for problem in problems:
        console.print(f"[red]problem[/] {problem}")
    if problems:
        return False
    ttt, whole = count_7b("1,2")
    console.print('Moshi 7B with ttt.layers "1,2", built without memory and counted:')
    console.print(f"  TTT: {ttt.tensors} tensors, {ttt.elements:,} elements")
    console.print(f"  all: {whole.tensors} tensors, {whole.elements:,} elements")
    return True


def count_7b(layers: str) -> tuple[Any, Any]:
    """Tensors and elements of the TTT layers and of the whole model, at the official 7B geometry on the meta device."""
    from pathlib import Path as AnyPath

    from moshi.models.loaders import CheckpointInfo

    from ttt_moshi.config import LoraArgs, TTTArgs
    from ttt_moshi.moshi import build_model, count_tensors

    # Without a configuration of its own, the official loader builds Moshi 7B; no file is read.
    info = CheckpointInfo(AnyPath(), AnyPath(), AnyPath())
    model = build_model(info, TTTArgs(enable=True, layers=layers), LoraArgs(), device="meta", load_weights=False)
    counts = count_tensors(model)
    return counts.groups["ttt"], counts.total


def _explain_run(path: Path, full: bool, console: Console) -> bool:
    place = find(path)
    steps = committed_steps(place.root)
    folders = [place.chosen] if place.chosen is not None else [place.root / checkpoint_name(step) for step in steps]
    if not folders:
        console.print(nothing_saved(path), soft_wrap=True, markup=False)
        return False
    console.print(str(place.root), soft_wrap=True, markup=False)
    table = Table()
    for column in ("step", "kind", "size", "loss", "trained tensors / elements", "dtype", "gate |tanh α|", "state"):
        table.add_column(column, overflow="fold")
    rows = [_row(folder, full) for folder in folders]
    for cells, _ in rows:
        table.add_row(*cells)
    console.print(table)
    console.print("the prefix gate matters, and learns, only where recordings begin with given frames (prefix_sec)")
    newest = newest_valid(place.root)
    if newest is not None:
        console.print(f"can be resumed: {checkpoint_name(newest)} is the newest valid one")
    return all(sound for _, sound in rows) and newest is not None


def _row(folder: Path, full: bool) -> tuple[list[str], bool]:
    try:
        with progress_bar(f"verifying {folder.name}") as advance:
            report = verify(folder, deep=full, progress=advance)
        manifest = read_manifest(folder)
        gates = gate_openings(folder, manifest)
    except CheckpointError as error:
        return [folder.name, "", "", "", "", "", "", f"[red]{escape(str(error))}[/]"], False
    parameters = [entry for name, entry in manifest["tensors"].items() if name.startswith("param/")]
    elements = sum(math.prod(entry["shape"]) for entry in parameters)
    loss = manifest["metrics"].get("loss")
    state = (
        ("every byte verified" if full else "complete") if report.ok else f"[red]{escape(report.problems[0].what)}[/]"
    )
    cells = [
        str(manifest["step"]),
        manifest["kind"],
        size_text(sum(file["size"] for file in manifest["files"].values())),
        "" if loss is None else f"{loss:.4f}",
        f"{len(parameters)} / {elements:,}",
        ", ".join(sorted({entry["dtype"] for entry in parameters})),
        _gate_text(gates),
        state,
    ]
    return cells, report.ok


def _gate_text(gates: dict[str, dict[str, float]]) -> str:
    """Mean forward gate over the TTT layers, with the backward one, which only a prefix moves."""
    if not gates:
        return "no TTT"
    mean = {side: sum(layer[side] for layer in gates.values()) / len(gates) for side in ("forward", "backward")}
    return f"{mean['forward']:.4f} (prefix {mean['backward']:.4f})"
