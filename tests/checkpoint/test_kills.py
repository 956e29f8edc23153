"""SIGKILL at every operation on the file system, and at random times: nothing acknowledged is ever lost."""

import os
import random
import shutil
import signal
import time
from functools import partial

import pytest

from ttt_moshi.checkpoint import CheckpointError, verify

WAYS = ["kill_before", "kill_inside", "kill_after"]


def kill_everywhere(faults, quick_disk, kind, ways, quick):
    """Kill a scenario at each operation in each way; the number of kills."""
    log = faults.operations(quick_disk, kind)
    kills = 0
    for number, way in enumerate(ways):
        for at in faults.every(len(log), quick, offset=number):
            if way == "kill_inside" and log[at] != "write":
                continue
            root = quick_disk / f"{way}{at}"
            files = faults.At(at, getattr(faults, way))
            status, acknowledged = faults.in_child(lambda tell: faults.scenario(root, files, tell, kind))  # noqa: B023
            assert os.WIFSIGNALED(status), f"{way} {at} ({log[at]}) did not end the process"
            faults.check_survivors(root, acknowledged, f"{kind}, {way} operation {at} ({log[at]})")
            shutil.rmtree(root, ignore_errors=True)
            kills += 1
    return kills


def test_some_operations(faults, quick_disk):
    assert kill_everywhere(faults, quick_disk, "adapters", WAYS, quick=30) > 40


def test_the_check_itself_notices_a_loss(faults, quick_disk):
    faults.scenario(quick_disk / "c", faults.Files(), lambda step, version: None)
    faults.check_survivors(quick_disk / "c", faults.SAVES, "sound")
    shutil.rmtree(quick_disk / "c" / "checkpoint_000004")
    with pytest.raises(AssertionError, match="acknowledged step 4 is lost"):
        faults.check_survivors(quick_disk / "c", faults.SAVES, "lost")


def test_a_killed_replacement_puts_the_old_checkpoint_back(faults, quick_disk):
    """Between the two renames of a repeated step the old folder stands aside; it must come back."""
    saves = [(1, 0), (2, 0), (2, 1)]
    files = faults.Counting()
    faults.scenario(quick_disk / "c", files, lambda step, version: None, saves=saves)
    renames = [index for index, name in enumerate(files.log) if name == "rename"]
    put_back = 0
    for at in renames:
        root = quick_disk / str(at)
        fault = faults.At(at, faults.kill_after)
        _, acknowledged = faults.in_child(lambda tell: faults.scenario(root, fault, tell, saves=saves))  # noqa: B023
        put_back += (
            any(name.startswith(".replaced") for name in os.listdir(root)) and not (root / "checkpoint_000002").exists()
        )
        faults.check_survivors(root, acknowledged, f"rename {at}")
    assert put_back == 1


def test_leaving_out_any_rename_is_noticed(faults, quick_disk, tally):
    """The other half of the mutation check: each rename that is skipped breaks a save or a promise."""
    log = faults.operations(quick_disk)
    unnoticed, noticed = set(), 0
    for at in [index for index, name in enumerate(log) if name == "rename"]:
        root, acknowledged, skipped, said = quick_disk / str(at), [], [], []

        def acknowledge(step, version):
            acknowledged.append((step, version))  # noqa: B023
            assert verify(root / f"checkpoint_{step:06d}").ok  # noqa: B023

        files = faults.At(at, lambda name, operation, args: skipped.append(args[1].name))  # noqa: B023
        try:
            faults.scenario(root, files, acknowledge, log=said.append)
            faults.check_survivors(root, acknowledged, f"rename {at}")
        except (AssertionError, CheckpointError, OSError):
            noticed += 1
            continue
        if not said:
            unnoticed.add(skipped[0])
    assert unnoticed == {"LATEST"}, "all but the advisory pointer, which the next save renews"
    tally("places that fsync or rename left out of the program: noticed", noticed)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["adapters", "full"])
def test_every_operation(faults, quick_disk, kind, tally):
    kills = kill_everywhere(faults, quick_disk, kind, WAYS, quick=0)
    tally("SIGKILL before, inside and after each operation", kills)
    assert kills > 500


def run_saves(faults, root, saves, tell):
    faults.scenario(root, faults.Files(), tell, saves=saves)


def random_kills(faults, folder, count, seed):
    """Kill whole scenarios after random times; each folder lives through several lives. How many saves finished."""
    rng = random.Random(seed)
    begin = time.perf_counter()
    faults.in_child(partial(run_saves, faults, folder / "undisturbed", faults.SAVES))
    longest = 1.2 * (time.perf_counter() - begin)
    acknowledged, saves_made = [], 0
    for kill in range(count):
        life = kill % 8
        root = folder / str(kill // 8)
        if life == 0:
            acknowledged = []
        first = 1 + 4 * life
        saves = [(first, 0), (first + 1, 0), (first + 1, 1), (first + 2, 0), (first + 3, 0)]
        after = rng.random() * longest
        work = partial(run_saves, faults, root, saves)
        _, told = faults.in_child(work, lambda child: (time.sleep(after), os.kill(child, signal.SIGKILL)))  # noqa: B023
        acknowledged += told
        saves_made += len(told)
        if root.exists():
            faults.check_survivors(root, acknowledged, f"random kill {kill} (seed {seed})")
        if life == 7:
            shutil.rmtree(root, ignore_errors=True)  # none of its lives may have come as far as making it
    return saves_made


def test_some_random_moments(faults, quick_disk):
    assert random_kills(faults, quick_disk, 60, seed=1) > 60


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2, 12))
def test_a_thousand_random_moments_ten_times(faults, quick_disk, seed, tally):
    saves = random_kills(faults, quick_disk, 1_000, seed)
    assert saves > 1_000, "the kills come too early to say anything"
    tally("SIGKILL at random moments", 1_000)
