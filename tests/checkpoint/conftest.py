"""Fixtures of the checkpoint tests."""

import importlib.util
import os
import pickle
import shutil
import sys
import tempfile
from pathlib import Path

import pytest
import torch


@pytest.fixture(scope="session")
def faults():
    """The fault module beside this file (test folders are not packages)."""
    spec = importlib.util.spec_from_file_location("checkpoint_faults", Path(__file__).with_name("faults.py"))
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(autouse=True)
def _no_pickle(monkeypatch):
    """Nothing in this room may unpickle: whoever tries fails the test."""

    def refuse(*args, **options):
        raise AssertionError("a pickle was read")

    monkeypatch.setattr(pickle, "load", refuse)
    monkeypatch.setattr(pickle, "loads", refuse)
    monkeypatch.setattr(torch, "load", refuse)


@pytest.fixture
def quick_disk():
    """A folder in memory where there is one: what a killed process leaves behind does not depend on the disk."""
    memory = Path("/dev/shm")
    usable = memory.is_dir() and os.access(memory, os.W_OK)
    folder = Path(tempfile.mkdtemp(prefix="checkpoint-tests-", dir=memory if usable else None))
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def tally(record_property):
    """`tally(what, tried)` counts faults that a test tried and none of which did harm, for the table at the end."""
    return lambda what, tried: record_property("tally", [what, tried])


def pytest_terminal_summary(terminalreporter):
    """One table of what the fault tests tried; a test that found harm has failed and is named."""
    stats = terminalreporter.stats
    counts, seconds = {}, {}
    for report in stats.get("passed", []):
        for what, tried in (value for key, value in report.user_properties if key == "tally"):
            counts[what] = counts.get(what, 0) + tried
            seconds[what] = seconds.get(what, 0.0) + report.duration
    if not counts:
        return
    terminalreporter.section("fault tally")
    for what, tried in sorted(counts.items()):
        terminalreporter.write_line(f"{tried:>7,}  {what}  ({seconds[what]:.0f} s)")
    failed = [report.nodeid for report in (*stats.get("failed", []), *stats.get("error", []))]
    total, spent = sum(counts.values()), sum(seconds.values())
    terminalreporter.write_line(f"{total:>7,}  in all  ({spent:.0f} s of the tests together)")
    what = "HARM DONE in " + ", ".join(failed) if failed else "0 lost, 0 believed that was corrupt, 0 left unnoticed"
    terminalreporter.write_line(f"{len(failed):>7,}  tests failed: {what}")
