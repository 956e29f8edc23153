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


def pytest_terminal_summary(terminalreporter):
    """Add up what the fault tests did: one line for each that recorded a tally."""
    reports = [report for outcome in ("passed", "failed") for report in terminalreporter.stats.get(outcome, [])]
    lines = [(report.outcome, text) for report in reports for key, text in report.user_properties if key == "tally"]
    if lines:
        terminalreporter.section("fault tally")
        for outcome, text in lines:
            terminalreporter.write_line(f"{outcome}: {text}")
