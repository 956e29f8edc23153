"""Signals at every phase of a run: the exit status is as promised, and the next launch ends bit for bit as it must."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from tests.application.harness import Ended, Fault, Place
from tests.application.tally import TALLY

# Phases of a run, by the file operation that begins them: what is signalled is the process that does it.
PHASES: dict[str, Fault] = {
    "start, reading the list of recordings": Fault("open", "train/data.jsonl"),
    "start, claiming the folder": Fault("replace", "run/args.yaml"),
    "before the first step": Fault("open", "run/metrics.train.jsonl"),
    "after step 1": Fault("write", "run/metrics.train.jsonl"),
    "after step 3": Fault("write", "run/metrics.train.jsonl", 3),
    "a save begins": Fault("mkdir", "checkpoints/.saving_000004"),
    "in a save": Fault("pwrite", "checkpoints/.saving_000004", 2),
    "before the manifest": Fault("create", ".saving_000004/.manifest.json"),
    "at the commit": Fault("rename", "checkpoints/checkpoint_000004"),
    "after the commit": Fault("rename", "checkpoints/LATEST", 2),
    "evaluation": Fault("open", "eval/data_stereo", after=("write", "run/metrics.train.jsonl", 3)),
    "after the evaluation": Fault("write", "run/metrics.eval.jsonl"),
    "the last step": Fault("write", "run/metrics.train.jsonl", 6),
    "the last commit": Fault("rename", "checkpoints/checkpoint_000006"),
}
STATUS = {"SIGTERM": 143, "SIGINT": 130, "SIGKILL": 137, "SIGHUP": 129, "SIGUSR1": 0}
EVALUATED = ("--do_eval", "true", "--eval_freq", "3")


def shell_status(ended: Ended) -> int:
    """As a shell says it: 128 and the number of the signal that killed the process."""
    return 128 - ended.status if ended.status < 0 else ended.status


def complaint(place: Place, phase: str, name: str, twin: str) -> str | None:
    """Sends one signal in one phase, launches again, and says what is wrong, if anything is."""
    words = place.train("--checkpoint.resume", "auto", *EVALUATED)
    ended = place.do(*words, faults=(replace(PHASES[phase], signal=name, times=1),))
    TALLY.saw("train", name, ended)
    allowed = {STATUS[name]} | ({0} if name != "SIGKILL" and phase.startswith("the last") else set())
    if shell_status(ended) not in allowed:
        return f"status {shell_status(ended)}, not {sorted(allowed)}\n{ended}"
    if "Traceback" in ended.err:
        return f"a traceback\n{ended}"
    steps = place.store.steps() if (place.run / "checkpoints").exists() else []
    logged = [json.loads(line)["step"] for line in _lines(place.run / "metrics.train.jsonl")]
    if name in ("SIGTERM", "SIGINT", "SIGHUP") and logged and (not steps or steps[-1] != logged[-1]):
        return f"stopped after step {logged[-1]}, saved {steps}\n{ended}"
    again = place.do(*words)
    if again.status != 0 or place.state_id(6) != twin:
        TALLY.lost += 1
        return f"the next launch does not end as it must\n{ended}\n{again}"
    return None


def _lines(path: Path) -> list[str]:
    return [line for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")] if path.exists() else []


@pytest.fixture(scope="module")
def twin(finished: Path, material: Path, warm: object) -> str:
    """State id after six steps of a run that was left alone."""
    return Place(finished.parent, material, warm).state_id(6)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("phase", "name"),
    [
        ("start, reading the list of recordings", "SIGTERM"),
        ("after step 3", "SIGINT"),
        ("in a save", "SIGKILL"),
        ("at the commit", "SIGTERM"),
        ("evaluation", "SIGTERM"),
        pytest.param("start, claiming the folder", "SIGUSR1", marks=pytest.mark.slow),
        pytest.param("the last commit", "SIGKILL", marks=pytest.mark.slow),
    ],
)
def test_a_signal_loses_nothing(phase: str, name: str, new_place: Callable[[str], Place], twin: str) -> None:
    assert complaint(new_place("case"), phase, name, twin) is None


def test_phases_are_met(new_place: Callable[[str], Place], tmp_path: Path) -> None:
    """Every phase names an operation that a run does: a phase that never comes would prove nothing."""
    place = new_place("traced")
    ended = place.do(*place.train("--checkpoint.resume", "auto", *EVALUATED), trace=tmp_path / "trace")
    assert ended.status == 0, ended
    done = [json.loads(line) for line in (tmp_path / "trace").read_text().splitlines()]
    for phase, fault in PHASES.items():
        call, path, times = fault.after or ("", "", 0)
        begun = [number for number, words in enumerate(done) if words[0] == call and any(path in w for w in words[1:])]
        rest = done[begun[times - 1] :] if times else done
        met = sum(words[0] == fault.call and any(fault.path in where for where in words[1:]) for words in rest)
        assert met >= fault.nth, phase


@pytest.mark.slow
@pytest.mark.parametrize("name", STATUS)
def test_every_phase(name: str, new_place: Callable[[str], Place], twin: str) -> None:
    found = {phase: complaint(new_place(f"case{i}"), phase, name, twin) for i, phase in enumerate(PHASES)}
    assert not any(found.values()), "\n\n".join(f"{phase}: {what}" for phase, what in found.items() if what)
