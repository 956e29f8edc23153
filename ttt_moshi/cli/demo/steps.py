"""What the demo does, in order, and what came of it."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from ttt_moshi.checkpoint import CheckpointStore, read_manifest
from ttt_moshi.cli.demo import talk
from ttt_moshi.cli.demo.jobs import Command, DemoError, Jobs, announced_in, count_lines, lines_in

HERE = Path(__file__).parent
CONFIGS = ("demo.yaml", "recall.yaml")
WORK = "ttt_moshi.cli.demo.work"


@dataclass(frozen=True)
class DemoSize:
    """How much is done; the figures of the page are those of the default."""

    recall_steps: int = 300
    steps: int = 100
    kill_after: int = 43
    """a step between two checkpoints, so that the resumed run has steps to repeat"""
    material: str = "demo"
    bench: str = "mini"


@dataclass
class Demo:
    """One demo in its folder.

    Args:
        out: everything is written here.
        jobs: runs the commands.
        size: how much is done.
        facts: what came of it, section by section, as the page shows it.
    """

    out: Path
    jobs: Jobs
    size: DemoSize = field(default_factory=DemoSize)
    facts: dict[str, Any] = field(default_factory=dict)

    def run(self) -> None:
        """Everything; `facts` is complete afterwards.

        Raises:
            DemoError: a command failed, or something is not as it must be.
        """
        for name in CONFIGS:
            shutil.copy(HERE / name, self.out / name)
        self.jobs.side_by_side(self._remember, self._make_material)
        self.jobs.side_by_side(self._kill_and_resume, self._train_without_a_kill)
        self._compare_runs()
        self.jobs.side_by_side(self._verify_and_evaluate, self._evaluate_trained_and_talk)
        self.facts["learns"] = {
            "records": _records(self.out / "uninterrupted"),
            "results": {name: self._json(f"evaluation/{name}/results.json") for name in ("base", "trained", "off")},
        }

    # 1. It remembers.

    def _remember(self) -> None:
        recall, steps = self.out / "recall", self.size.recall_steps
        batch = yaml.safe_load((self.out / "recall.yaml").read_text())["batch_size"]
        self._work("1 it remembers · a task to learn", "lessons", recall, steps, batch)
        models = {}
        for name, label, ttt in (("window", "attention alone", "false"), ("ttt", "with TTT", "true")):
            run_dir = recall / name
            self._run(
                f"1 it remembers · learning, {label}",
                "ttt_moshi", "train", "--config", self.out / "recall.yaml", "--run_dir", run_dir,
                "--moshi_paths.hf_repo_id", recall / "base", "--data.train_data", recall / "train" / "data.jsonl",
                "--ttt.enable", ttt, "--max_steps", steps,
                done=lines_in(run_dir / "metrics.train.jsonl", steps),
            )  # fmt: skip
            models[name] = _last(run_dir)
        self._work("1 it remembers · measuring", "recall", models["window"], models["ttt"], recall / "recall.json")
        session = recall / "session.safetensors"
        self._work("1 it remembers · telling facts, saving", "tell", models["ttt"], session, recall / "told.json")
        self._work("1 it remembers · asking, resumed", "ask", models["ttt"], session, recall / "resumed.json")
        self._work("1 it remembers · asking, from nothing", "ask", models["ttt"], "none", recall / "fresh.json")
        self._work("1 it remembers · an hour", "hour", models["ttt"], recall / "hour.json")
        names = ("recall", "told", "resumed", "fresh", "hour")
        self.facts["remembers"] = {name: self._json(f"recall/{name}.json") for name in names}
        self.facts["remembers"]["session_bytes"] = session.stat().st_size
        # Here, where there is time left while the base model is still being made.
        self._work("made-up benchmarks", "bench", self.out / "bench", self.size.bench)

    # 2. It cannot be lost.

    def _make_material(self) -> None:
        self._work("made-up speech, a base model", "material", self.out / "material", self.size.material)

    def _kill_and_resume(self) -> None:
        run_dir, metrics = self.out / "killed", self.out / "killed" / "metrics.train.jsonl"
        self.jobs.run_and_kill(
            "2 it cannot be lost · training, to be killed",
            self._command("train-killed", "ttt_moshi", *self._train(run_dir)),
            lines_in(metrics, self.size.steps),
            lambda: count_lines(metrics) >= self.size.kill_after,
        )
        killed_at = count_lines(metrics)
        self._run(
            "2 it cannot be lost · resuming",
            "ttt_moshi", *self._train(run_dir), "--checkpoint.resume", "true",
            done=lines_in(metrics, self.size.steps),
        )  # fmt: skip
        launch = max((run_dir / "launches").glob("*.yaml"))
        self.facts["lost"] = {"killed_at": killed_at, "resumed_at": yaml.safe_load(launch.read_text())["start_step"]}

    def _train_without_a_kill(self) -> None:
        run_dir = self.out / "uninterrupted"
        done = lines_in(run_dir / "metrics.train.jsonl", self.size.steps)
        self._run("3 it learns · the same training, never killed", "ttt_moshi", *self._train(run_dir), done=done)

    def _train(self, run_dir: Path) -> tuple[object, ...]:
        material = self.out / "material"
        return (
            "train", "--config", self.out / "demo.yaml", "--run_dir", run_dir,
            "--moshi_paths.hf_repo_id", material / "base",
            "--data.train_data", material / "train" / "data.jsonl",
            "--data.eval_data", material / "eval" / "data.jsonl",
            "--max_steps", self.size.steps,
        )  # fmt: skip

    def _compare_runs(self) -> None:
        """Every logged number and every bit of the last state."""
        killed, whole = _records(self.out / "killed"), _records(self.out / "uninterrupted")
        equal = sum(_timeless(a) == _timeless(b) for a, b in zip(killed, whole, strict=False))
        ids = [read_manifest(_last(self.out / name))["state_id"] for name in ("killed", "uninterrupted")]
        if ids[0] != ids[1] or not equal == len(killed) == len(whole):
            raise DemoError("the killed and the uninterrupted run differ: this is a defect, please report it")
        self.facts["lost"] |= {"state_id": ids[0], "equal_steps": equal}

    def _verify_and_evaluate(self) -> None:
        last = _last(self.out / "killed")
        self._run("2 it cannot be lost · verifying", "ttt_moshi", "ckpt", "verify", last)
        self.facts["lost"] |= self._flip_a_bit(last)
        self._evaluate("base", "base", "--hf_repo_id", self.out / "material" / "base")
        self._evaluate("off", last, "--ttt", "off")

    def _flip_a_bit(self, checkpoint: Path) -> dict[str, Any]:
        """Flips one bit in a copy of the checkpoint and lets it be verified."""
        copy = self.out / "flipped" / checkpoint.name
        shutil.copytree(checkpoint, copy)
        name = max(read_manifest(copy)["files"], key=lambda name: (copy / name).stat().st_size)
        place = (copy / name).stat().st_size // 2
        with (copy / name).open("r+b") as file:
            file.seek(place)
            (byte,) = file.read(1)
            file.seek(place)
            file.write(bytes([byte ^ 1]))
        command = self._command("verify-flipped", "ttt_moshi", "ckpt", "verify", copy)
        self.jobs.run("2 it cannot be lost · one bit flipped", command, expected=1)
        found = [line.strip() for line in command.log.read_text().splitlines() if name in line]
        if not found:
            raise DemoError(
                f"a flipped bit in {name} was not named: this is a defect, please report it ({command.log})"
            )
        return {
            "flipped": {
                "file": name,
                "byte": place,
                "bytes": (copy / name).stat().st_size,
                "found": found[0].removeprefix(f"{copy}: "),
            },
            "checkpoint": {"name": checkpoint.name, "tensors": len(read_manifest(checkpoint)["tensors"])},
        }

    # 3. It learns.

    def _evaluate(self, name: str, checkpoint: Path | str, *more: object) -> None:
        folder = self.out / "evaluation"
        what = {"base": "the base model", "trained": "trained", "off": "trained, memory off"}[name]
        self._run(
            f"3 it learns · evaluating: {what}",
            "ttt_moshi", "eval", "--checkpoint_dir", checkpoint, "--config", self.out / "demo.yaml",
            "--eval_type", "both", "--data", self.out / "material" / "eval" / "data.jsonl",
            "--data_root", self.out / "bench", "--dtype", "float32", "--out", folder / name,
            "--cache_dir", folder / "cache", *more,
        )  # fmt: skip

    def _evaluate_trained_and_talk(self) -> None:
        last = _last(self.out / "killed")
        self._evaluate("trained", last)
        self._talk(last)

    # 4. It talks.

    def _talk(self, checkpoint: Path) -> None:
        recording = min((self.out / "material" / "eval").rglob("*.wav"))
        heard, rest, session = (self.out / "talk" / name for name in ("heard.wav", "rest.wav", "friday"))
        heard.parent.mkdir(exist_ok=True)
        talk.split(recording, heard, rest)
        for label, audio, more in (
            ("talking", heard, ("--save_session", session)),
            ("going on another day", rest, ("--resume_session", session)),
        ):
            self._run(
                f"4 it talks · {label}",
                "ttt_moshi", "generate", "--checkpoint_dir", checkpoint, "--input", audio,
                "--out", audio.with_name(f"talk-{audio.name}"), *more,
            )  # fmt: skip
        parts = [audio.with_name(f"talk-{audio.name}") for audio in (heard, rest)]
        self.facts["talks"] = {
            "talk": talk.join(parts, recording), "run_dir": str(self.out / "killed"),
            "evaluation": str(self.out / "evaluation"),
        }  # fmt: skip

    # What all of them share.

    def _work(self, label: str, what: str, *words: object) -> None:
        command = self._command(f"work-{what}", WORK, what, *words)
        self.jobs.run(label, command, announced_in(command.log))

    def _run(self, label: str, *words: object, done: Callable[[], tuple[int, int]] | None = None) -> None:
        self.jobs.run(label, self._command(label, *words), done)

    def _command(self, name: str, *words: object) -> Command:
        slug = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
        return Command(tuple(str(word) for word in words), self.out / "logs" / f"{slug}.log")

    def _json(self, name: str) -> Any:
        return json.loads((self.out / name).read_text(encoding="utf-8"))


def _last(run_dir: Path) -> Path:
    store = CheckpointStore(run_dir / "checkpoints")
    return store.path(store.steps()[-1])


def _records(run_dir: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run_dir / "metrics.train.jsonl").read_text().splitlines()]


def _timeless(record: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in record.items() if key != "timing"}
