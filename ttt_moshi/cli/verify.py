"""Prove a checkpoint, or the checkpoint system itself."""

from __future__ import annotations

import tempfile
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

from ttt_moshi.cli.arguments import Parser
from ttt_moshi.errors import UserError


def main(argv: list[str]) -> int:
    """`ttt-moshi verify [--checkpoint_dir D | --scale tiny|7b]`; status 0 if everything holds, 1 if not."""
    parser = Parser(
        prog="test_checkpoint_verification.py",
        description="Without --checkpoint_dir: proves the checkpoint system on a model made on the spot.",
    )
    parser.add_argument("--checkpoint_dir", type=Path, help="checkpoint folder to verify, every byte of it")
    parser.add_argument(
        "--scale",
        choices=("tiny", "7b"),
        default="tiny",
        help="size of the model made on the spot (default: %(default)s)",
    )
    options = parser.parse_args(argv)
    console = Console(highlight=False)
    if options.checkpoint_dir is not None:
        return _verify_checkpoint(options.checkpoint_dir, console)
    if options.scale == "7b":
        raise UserError("--scale 7b is not available yet")
    return _prove_system(console)


def _verify_checkpoint(path: Path, console: Console) -> int:
    from ttt_moshi.checkpoint import read_manifest, verify
    from ttt_moshi.moshi import tensor_group

    if not path.is_dir():
        raise UserError(f"no checkpoint folder at {path}")
    columns = (TextColumn("verifying"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("", total=None)
        report = verify(path, progress=lambda done, total: bar.update(task, completed=done, total=total))
    console.print(report.text(), soft_wrap=True)
    if not report.ok:
        return 1
    manifest = read_manifest(path)
    parameters = {
        name.removeprefix("param/"): tensor["shape"]
        for name, tensor in manifest["tensors"].items()
        if name.startswith("param/")
    }
    for group in ("base", "lora", "ttt"):
        shapes = [shape for name, shape in parameters.items() if tensor_group(name) == group]
        console.print(f"trained {group:<5} {_count(shapes)}")
    return 0


def _prove_system(console: Console) -> int:
    from ttt_moshi.data.speech import make_tiny_material
    from ttt_moshi.training import proof

    with tempfile.TemporaryDirectory(prefix="ttt_moshi_proof_") as name:
        folder = Path(name)
        with console.status("making speech and a tiny model"):
            material = make_tiny_material(folder / "material")
        with console.status("saving distinct values and loading them in a fresh process"):
            finding, counts = proof.round_trip(material, folder)
        _show(finding, console)
        findings = [finding]
        if finding.holds:
            with console.status("flipping one bit in every file"):
                findings.append(proof.damage(folder))
            _show(findings[-1], console)
        with console.status("training, killing, resuming"):
            findings.append(proof.kill_and_resume(material, folder))
        _show(findings[-1], console)
    ttt = counts.groups["ttt"]
    console.print(f"TTT: {ttt.tensors} tensors, {ttt.elements:,} elements")
    console.print(f"all: {counts.total.tensors} tensors, {counts.total.elements:,} elements")
    sound = all(finding.holds for finding in findings)
    console.print("the checkpoint system holds" if sound else "[bold red]the checkpoint system does NOT hold[/]")
    return 0 if sound else 1


def _show(finding: object, console: Console) -> None:
    mark = "[green]holds[/]" if finding.holds else "[bold red]FAILS[/]"  # type: ignore[attr-defined]
    console.print(f"{mark}  {finding.name}: {finding.detail}", soft_wrap=True)  # type: ignore[attr-defined]


def _count(shapes: list[list[int]]) -> str:
    import math

    return f"{len(shapes)} tensors, {sum(math.prod(shape) for shape in shapes):,} elements"
