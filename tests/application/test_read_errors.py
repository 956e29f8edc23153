"""Trouble is not damage: a read error names the path and moves nothing, and the next launch goes on bit for bit."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile

from tests.application.harness import ERRNOS, Ended, Fault, Place, changes, copy, snapshot
from tests.application.tally import TALLY

READS = ("open", "read", "pread", "preadv", "stat", "listdir", "scandir")


def interrupted(place: Place, finished: Path) -> None:
    """The run as a kill after step 5 leaves it: checkpoints of steps 2 and 4, and more metrics than that."""
    copy(finished, place.run)
    shutil.rmtree(place.run / "checkpoints/checkpoint_000006")
    (place.run / "checkpoints/LATEST").unlink(missing_ok=True)


def checkpoint_files(place: Place) -> dict[str, tuple[object, ...]]:
    """Everything in committed checkpoints."""
    return {name: entry for name, entry in snapshot(place.run).items() if name.startswith("checkpoints/checkpoint_")}


def commands(place: Place) -> dict[str, list[str]]:
    """The commands that read checkpoints."""
    run = str(place.run)
    wav = place.folder / "question.wav"
    if not wav.exists():
        soundfile.write(wav, np.zeros(12000, dtype=np.float32), 24000)  # what it says is no matter here
    last = str(place.run / "checkpoints/checkpoint_000004")
    return {
        "train": place.train("--checkpoint.resume", "true"),
        "eval": ["eval", "--checkpoint_dir", last, "--out", str(place.folder / "evaluation")],
        "generate": [
            "generate",
            "--checkpoint_dir",
            run,
            "--input",
            str(wav),
            "--out",
            str(place.folder / "talk.wav"),
            "--extra_seconds",
            "0",
        ],
        "ckpt ls": ["ckpt", "ls", run, "--json"],
        "ckpt verify": ["ckpt", "verify", run],
        "ckpt prune": ["ckpt", "prune", run, "--last", "1"],
        "ckpt repair": ["ckpt", "repair", run],
        "ckpt show": ["ckpt", "show", run, "--json"],
        "status": ["status", run, "--full"],
    }


def numbers(ended: Ended, name: str, place: Place) -> object:
    """What a command has told or made that a person would go by; the next one begins without it."""
    found: object = None
    if name == "eval":
        path = place.folder / "evaluation" / "results.json"
        found = {k: v["value"] for k, v in json.loads(path.read_text())["tasks"].items()} if path.exists() else None
        shutil.rmtree(path.parent, ignore_errors=True)
    elif name == "generate":
        made = sorted(place.folder.glob("talk*"))
        found = {path.name: path.read_bytes() for path in made}
        for path in made:
            path.unlink()
    elif name in ("ckpt ls", "ckpt show"):
        found = ended.out.replace(str(place.folder), "")
    return found


def complaint(ended: Ended, name: str, failed: str, before: dict, place: Place) -> str | None:
    """What is wrong after a command that met a read error on the file `failed`."""
    if "Traceback" in ended.err + ended.out:
        return "a traceback"
    after = checkpoint_files(place)
    lost = [line for line in changes(before, after) if not line.startswith("new: ")]
    if name == "ckpt prune" and (ended.status == 0 or ".trash_checkpoint_000002" in failed):  # it is deleted already
        lost = [line for line in lost if "checkpoint_000002" not in line]
    if lost:
        TALLY.lost += 1
        return f"moved or changed {lost[:3]}"
    aside = [path.name for path in (place.run / "checkpoints").iterdir() if "corrupt" in path.name]
    if aside:
        return f"set aside {aside}"
    if ended.status not in (0, 1, 2):
        return f"status {ended.status}"
    if ended.status == 2:
        # Lists say beside each checkpoint what they could not read of it; the others end with it.
        lists = name in ("ckpt ls", "ckpt verify", "status")
        said = ended.out + ended.err if lists else (ended.lines or [""])[-1]
        if not any(part in said for part in Path(failed).parts[-2:]):
            return f"does not name {failed}"
        if not lists and not said.startswith("error: "):
            return "no line of error"
    return None


def events(place: Place, name: str, trace: Path) -> tuple[list[tuple[str, str, int]], object]:
    """What a command reads below the checkpoints (operation, path, and the how-manieth on this path it is), and its
    `numbers`."""
    ended = place.do(*commands(place)[name], trace=trace)
    assert ended.status in (0, 1), ended
    seen: dict[tuple[str, str], int] = {}
    found = []
    for line in trace.read_text().splitlines():
        call, path, *_ = json.loads(line)
        if call in READS and "/run/checkpoints" in path and "LOCK" not in path:
            seen[call, path] = seen.get((call, path), 0) + 1
            found.append((call, path, seen[call, path]))
    return found, numbers(ended, name, place)


# One of each kind of operation and of each errno; every place is `test_every_read`.
CHOSEN = {
    "train": [
        ("preadv", "checkpoint_000004/resume/shard", 1, "ETIMEDOUT"),
        ("preadv", "checkpoint_000004/manifest.json", 1, "EIO"),
        ("open", "checkpoint_000004/resume", 1, "EMFILE"),
        ("listdir", "checkpoints", 1, "ENOMEM"),
    ],
    "ckpt verify": [
        ("preadv", "checkpoint_000004", 1, "EIO"),
        ("preadv", "checkpoint_000002/manifest.json", 1, "ESTALE"),
    ],
    "ckpt ls": [("preadv", "checkpoint_000004/manifest.json", 1, "EIO"), ("listdir", "checkpoints", 1, "EACCES")],
    "ckpt repair": [
        ("preadv", "checkpoint_000004", 1, "ETIMEDOUT"),
        ("preadv", "checkpoint_000004/manifest.json", 1, "EIO"),
    ],
    "ckpt prune": [("preadv", "checkpoint_000004/manifest.json", 1, "EIO"), ("preadv", "checkpoint_000004", 1, "EIO")],
    "eval": [("preadv", "checkpoint_000004", 1, "EIO"), ("preadv", "manifest.json", 1, "ESTALE")],
    "generate": [("preadv", "checkpoint_000004", 1, "EIO"), ("preadv", "manifest.json", 1, "ENOMEM")],
    "status": [("preadv", "checkpoint_000004", 1, "EIO"), ("preadv", "checkpoint_000004/manifest.json", 1, "EACCES")],
}


def test_a_read_error_moves_nothing(new_place: Callable[[str], Place], finished: Path) -> None:
    place = new_place("case")
    interrupted(place, finished)
    before, wrong = checkpoint_files(place), []
    for name, faults in CHOSEN.items():
        for call, path, nth, errno in faults:
            ended = place.do(*commands(place)[name], faults=(Fault(call, path, nth, errno=errno),))
            problem = complaint(ended, name, path, before, place)
            if problem is None and name != "ckpt prune" and ended.status == 0:
                problem = "took no notice"
            if problem:
                wrong.append(f"{name}, {errno} at {call} {nth} of {path}: {problem}\n{ended}")
            if problem or name == "ckpt prune":
                shutil.rmtree(place.run)
                interrupted(place, finished)
                before = checkpoint_files(place)
    assert not wrong, f"{len(wrong)} of {sum(map(len, CHOSEN.values()))}:\n" + "\n".join(wrong)
    again = place.do(*place.train("--checkpoint.resume", "true"))
    assert again.status == 0, again
    assert place.state_id(6) == Place(finished.parent, place.material, place.warm).state_id(6)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["train", "eval", "generate", "ckpt ls", "ckpt verify", "ckpt prune", "ckpt repair", "ckpt show", "status"]
)
def test_every_read(name: str, new_place: Callable[[str], Place], finished: Path, tmp_path: Path) -> None:
    place = new_place("traced")
    interrupted(place, finished)
    places, right = events(place, name, tmp_path / "trace")
    wrong: list[str] = []
    number, place = 0, None  # type: ignore[assignment]
    before: dict = {}
    for index, (call, path, nth) in enumerate(places):
        for times in (1, None):
            errno = ERRNOS[(index + (times or 0)) % len(ERRNOS)]
            if place is None:
                number += 1
                place = new_place(f"case{number}")
                interrupted(place, finished)
                before = checkpoint_files(place)
            inside = path.split("/run/")[1]
            ended = place.do(*commands(place)[name], faults=(Fault(call, inside, nth, errno=errno, times=times),))
            TALLY.saw(name, f"{errno} while reading", ended)
            problem = complaint(ended, name, path, before, place)
            told = numbers(ended, name, place)
            if ended.status == 0 and told != right:
                TALLY.wrong_numbers += 1
                problem = problem or f"other numbers: {str(told)[:200]}"
            if problem:
                wrong.append(f"{errno} at {call} {nth} of {inside}, {times or 'ever'}: {problem}\n{ended}")
            if name == "train":
                again = ended if ended.status == 0 else place.do(*place.train("--checkpoint.resume", "true"))
                same = again.status == 0 and place.state_id(6) == _id_of(finished, place)
                if not same:
                    TALLY.lost += 1
                    wrong.append(
                        f"{errno} at {call} {nth} of {inside}: the next launch does not end as it must\n{again}"
                    )
            if name == "ckpt prune" and ended.status == 2:
                again = place.do(*commands(place)[name])
                if again.status or list((place.run / "checkpoints").glob(".trash_*")):
                    wrong.append(f"{errno} at {call} {nth} of {inside}: the next prune does not end it\n{again}")
            if problem or name in ("train", "ckpt prune", "ckpt repair"):
                place = None  # type: ignore[assignment]
    assert not wrong, f"{len(wrong)} of {2 * len(places)}:\n" + "\n".join(wrong)


def _id_of(finished: Path, place: Place) -> str:
    return Place(finished.parent, place.material, place.warm).state_id(6)
