"""Prove a checkpoint, or the checkpoint system itself."""

from __future__ import annotations

import tempfile
from pathlib import Path

from rich.console import Console
from rich.status import Status

from ttt_moshi.cli.arguments import Parser
from ttt_moshi.cli.checkpoint_facts import find_one, progress_bar, trained_counts


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
        return _prove_7b(console)
    return _prove_system(console)


def _verify_checkpoint(path: Path, console: Console) -> int:
    from ttt_moshi.checkpoint import read_manifest, verify

    path = find_one(path)
    with progress_bar(f"verifying {path.name}") as advance:
        report = verify(path, progress=advance)
    console.print(report.text(), soft_wrap=True, markup=False)
    if not report.ok:
        return 1
    for group, count in trained_counts(read_manifest(path)).items():
        console.print(f"trained {group:<5} {count['tensors']} tensors, {count['elements']:,} elements")
    return 0


def _prove_system(console: Console) -> int:
    from ttt_moshi.synthetic import make_tiny_material
    from ttt_moshi.verification import round_trip as proof

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


def _prove_7b(console: Console) -> int:
    from moshi.models.loaders import CheckpointInfo

    from ttt_moshi.verification.full_size import prove_full_size

    # Without a configuration of its own, the official loader builds Moshi 7B; no file is read.
    geometry = CheckpointInfo(Path(), Path(), Path())
    with tempfile.TemporaryDirectory(prefix="ttt_moshi_7b_") as name, console.status("starting") as status:
        found = prove_full_size(geometry, "1,2", Path(name), lambda what: _say(what, status, console))
    ttt, whole = found.counts.groups["ttt"], found.counts.total
    console.print(f"TTT:      {ttt.tensors} tensors, {ttt.elements:,} elements")
    console.print(f"all:      {whole.tensors} tensors, {whole.elements:,} elements")
    console.print(f"exported: {found.exported_tensors} tensors, {found.exported_elements:,} elements")
    console.print(f"checkpoint: {found.bytes:,} bytes")
    console.print(f"bare disk: {found.raw_write / 1e9:.2f} GB/s written, {found.raw_read / 1e9:.2f} GB/s read")
    for phase, seconds in found.seconds.items():
        beside = "" if phase == "build" else f", {found.ratio_to_disk(phase):.2f} of the bare disk's time"
        console.print(f"{phase:<7} {seconds:7.1f} s{beside}")
    console.print(f"peak memory: {found.peak_bytes / 2**30:.2f} GiB")
    for problem in found.problems:
        console.print(f"[bold red]FAILS[/]  {problem}", soft_wrap=True)
    if not found.problems:
        console.print("[green]holds[/]  every byte verified, every tensor loaded bit for bit")
    return 1 if found.problems else 0


def _say(what: str, status: Status, console: Console) -> None:
    """A spinner on a terminal, a line elsewhere."""
    status.update(what)
    if not console.is_terminal:
        console.print(what)


def _show(finding: object, console: Console) -> None:
    mark = "[green]holds[/]" if finding.holds else "[bold red]FAILS[/]"  # type: ignore[attr-defined]
    console.print(f"{mark}  {finding.name}: {finding.detail}", soft_wrap=True)  # type: ignore[attr-defined]
