"""Do the main job from nothing: make speech, train, kill, resume, verify, evaluate, talk, plot."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
import webbrowser
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from ttt_moshi.checkpoint import CheckpointStore, iter_tensors, read_manifest
from ttt_moshi.cli.arguments import Parser
from ttt_moshi.cli.demo_page import DemoFacts, write_page
from ttt_moshi.errors import UserError
from ttt_moshi.synthetic import Material, make_demo_material
from ttt_moshi.synthetic.benchmarks import make_bench

ROOT = Path(__file__).parents[2]
CONFIG = "configs/demo.yaml"
# Between two checkpoints of configs/demo.yaml, so that the resumed run has steps to repeat.
KILL_AFTER_STEP = 33


class DemoError(UserError):
    """A part of the demo did not do what it must."""


def main(argv: list[str]) -> int:
    """`ttt-moshi demo [--out runs/demo]`; status 0 if both runs ended bit-identical and everything verified."""
    parser = Parser(prog="ttt-moshi demo", description=__doc__)
    parser.add_argument(
        "--out", type=Path, default=Path("runs/demo"), help="folder for everything (default: %(default)s)"
    )
    parser.add_argument("--open", action="store_true", help="show the page in a browser at the end")
    options = parser.parse_args(argv)
    console = Console()
    out = options.out.resolve()
    began = time.perf_counter()

    console.rule("1 · speech and a small base model")
    with _bar(console) as bar:
        task = bar.add_task("starting", total=None)

        def show(what: str, done: int, total: int) -> None:
            bar.update(task, description=what, completed=done, total=total)

        material = make_demo_material(out / "material", progress=show)
        make_bench(out / "bench", material.train_data, size="mini", progress=show)

    console.rule("2 · train, kill, resume")
    killed, whole = out / "killed", out / "uninterrupted"
    kill_step = _train_and_kill(console, material, killed)
    _run(console, _train(material, killed, "--checkpoint.resume", "true"))

    console.rule("3 · the same training, never killed")
    _run(console, _train(material, whole, "--overwrite_run_dir", str(whole.exists()).lower()))
    ids = (_last_state_id(killed), _last_state_id(whole))
    records = (_records(killed), _records(whole))
    equal_lines = sum(_timeless(a) == _timeless(b) for a, b in zip(*records, strict=True))
    console.print(f"state ids   {ids[0]}\n            {ids[1]}", highlight=False, soft_wrap=True)
    console.print(f"logged steps equal in every field but timing: {equal_lines} of {len(records[1])}")

    console.rule("4 · verify and evaluate")
    last = CheckpointStore(killed / "checkpoints").path(records[0][-1]["step"])
    _run(console, [sys.executable, "test_checkpoint_verification.py", "--checkpoint_dir", str(last)])
    evaluation = out / "evaluation"
    _run(
        console,
        [
            sys.executable, "eval_from_checkpoint.py", "--checkpoint_dir", str(last), "--eval_type", "both",
            "--data_root", str(out / "bench"), "--out", str(evaluation),
        ],
    )  # fmt: skip

    console.rule("5 · talk to it")
    recording = min(material.eval_data.parent.rglob("*.wav"))
    talk = out / "talk.wav"
    _run(
        console,
        [
            str(Path(sys.executable).with_name("ttt-moshi")), "generate", "--checkpoint_dir", str(last),
            "--input", str(recording), "--out", str(talk),
        ],
    )  # fmt: skip

    results = json.loads((evaluation / "results.json").read_text())
    launches = sorted((killed / "launches").glob("*.yaml"))
    page = out / "index.html"
    write_page(
        page,
        DemoFacts(
            killed=records[0],
            uninterrupted=records[1],
            kill_step=kill_step,
            resume_step=_start_step(launches[-1]),
            state_ids=ids,
            gates=_gates(killed),
            results=results,
            talk=talk,
            rows=_rows(records, equal_lines, last, results, time.perf_counter() - began),
        ),
    )
    console.rule("done")
    console.print(f"the page: {page}", soft_wrap=True)
    if options.open:
        webbrowser.open(page.as_uri())
    if ids[0] != ids[1] or equal_lines != len(records[1]):
        raise DemoError("the killed and the uninterrupted run differ: this is a defect, please report it")
    return 0


def _train(material: Material, run_dir: Path, *more: str) -> list[str]:
    return [
        sys.executable, "train.py", "--config", CONFIG, "--run_dir", str(run_dir),
        "--moshi_paths.hf_repo_id", str(material.base_model),
        "--data.train_data", str(material.train_data),
        "--data.eval_data", str(material.eval_data), *more,
    ]  # fmt: skip


def _run(console: Console, command: list[str]) -> None:
    console.print(f"$ {_shown(command)}", style="bold", highlight=False, soft_wrap=True)
    status = subprocess.run(command, cwd=ROOT, check=False).returncode
    if status != 0:
        raise DemoError(f"`{_shown(command)}` ended with status {status}")


def _train_and_kill(console: Console, material: Material, run_dir: Path) -> int:
    """Starts training, kills it when the step is logged, and returns the last step that it logged."""
    command = _train(material, run_dir, "--overwrite_run_dir", str(run_dir.exists()).lower())
    console.print(f"$ {_shown(command)}", style="bold", highlight=False, soft_wrap=True)
    metrics = run_dir / "metrics.train.jsonl"
    process = subprocess.Popen(command, cwd=ROOT)
    started = time.time()
    while process.poll() is None:
        fresh = metrics.exists() and metrics.stat().st_mtime > started
        if fresh and len(metrics.read_text().splitlines()) >= KILL_AFTER_STEP:
            process.send_signal(signal.SIGKILL)
            process.wait()
            break
        time.sleep(0.02)
    if process.returncode != -signal.SIGKILL:
        raise DemoError(f"training ended with status {process.returncode} before it could be killed")
    steps = len([line for line in metrics.read_text().splitlines() if line.endswith("}")])
    console.print(f"killed with SIGKILL after step {steps}", style="bold red")
    return steps


def _shown(command: list[str]) -> str:
    program = "python" if command[0] == sys.executable else Path(command[0]).name
    return " ".join([program, *(_relative(word) for word in command[1:])])


def _relative(word: str) -> str:
    return word.removeprefix(f"{ROOT}/")


def _records(run_dir: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run_dir / "metrics.train.jsonl").read_text().splitlines()]


def _timeless(record: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in record.items() if key != "timing"}


def _last_state_id(run_dir: Path) -> str:
    store = CheckpointStore(run_dir / "checkpoints")
    return read_manifest(store.path(store.steps()[-1]))["state_id"]


def _start_step(launch: Path) -> int:
    import yaml

    return yaml.safe_load(launch.read_text())["start_step"]


def _gates(run_dir: Path) -> dict[int, dict[str, float]]:
    """Mean |tanh(alpha)| of every forward gate at every checkpoint."""
    store = CheckpointStore(run_dir / "checkpoints")
    gates: dict[int, dict[str, float]] = {}
    for step in store.steps():
        tensors = iter_tensors(store.path(step), "consolidated/lora.safetensors")
        gates[step] = {
            f"layer {name.split('.')[2]}": float(tensor.float().tanh().abs().mean())
            for name, tensor in tensors
            if name.endswith("forward_gating.gating_alpha")
        }
    return gates


def _rows(
    records: tuple[list, list], equal_lines: int, last: Path, results: dict[str, Any], seconds: float
) -> list[tuple[str, str]]:
    manifest = read_manifest(last)
    size = sum(file["size"] for file in manifest["files"].values())
    return [
        ("Steps logged equal in every field but timing", f"{equal_lines} of {len(records[1])}"),
        ("Loss, first and last step", f"{records[1][0]['loss']:.3f} → {records[1][-1]['loss']:.3f}"),
        ("Last checkpoint", f"{last.name}: {len(manifest['tensors'])} tensors, {size / 2**20:.1f} MiB, verified"),
        *_benchmark_rows(results),
        ("Whole demo", f"{seconds:.0f} s"),
    ]


def _benchmark_rows(results: dict[str, Any]) -> list[tuple[str, str]]:
    """Accuracies with their intervals; 50 % is chance."""
    rows = []
    for name, task in results["tasks"].items():
        if name != "perplexity" and task["status"] == "ok" and task["ci95"] is not None:
            low, high = task["ci95"]
            value = f"{task['value']:.1%}, 95 % interval {low:.1%} to {high:.1%}, n = {task['n']} (generated speech)"
            rows.append((name, value))
    return rows


def _bar(console: Console) -> Progress:
    return Progress(
        BarColumn(),
        TextColumn("{task.percentage:>3.0f} %"),
        TimeElapsedColumn(),
        TextColumn("{task.description}"),
        console=console,
    )
