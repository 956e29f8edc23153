"""`ttt-moshi eval` as a process: killed while it writes, held while it writes, and two of them with one `--out`."""

import json
import os
import shutil
import signal
import time
from pathlib import Path

import pytest

from tests.application.harness import Fault, Place
from tests.evaluation import written
from tests.evaluation.written import results

KILLS = {
    "between samples and report": Fault("mkdir", "out/.unfinished/plots", signal="SIGKILL"),
    "before it is decided": Fault("rename", "out/.whole", signal="SIGKILL"),
    "before the old ones are deleted": Fault("unlink", "out/results.json", signal="SIGKILL"),
    "in the middle of the deletion": Fault("unlink", "out/report.md", signal="SIGKILL"),
    "with some in their places": Fault("replace", "out/samples/sblimp.jsonl", signal="SIGKILL"),
    "before the results are in their place": Fault("replace", "out/results.json", signal="SIGKILL"),
    "with all in their places": Fault("rmdir", "out/.whole", signal="SIGKILL"),
}
DECIDED = list(KILLS).index("before the old ones are deleted")


@pytest.fixture
def place(tmp_path, tiny_material, warm):
    (tmp_path / "case").mkdir()
    return Place(tmp_path / "case", tiny_material.folder, warm)


@pytest.fixture
def words(place, bench, tiny_material):
    """Of an evaluation into `out` of the case, with scores that all of them share."""

    def of(*more: object) -> list[str]:
        base = ["--checkpoint_dir", "base", "--hf_repo_id", tiny_material.base_model, "--dtype", "float32"]
        where = ["--data_root", bench, "--out", place.folder / "out", "--cache_dir", place.folder / "cache"]
        return ["eval", *map(str, [*base, *where, *more])]

    return of


def content(folder: Path) -> dict[str, bytes]:
    return written.content(folder, without=lambda part: part.startswith("."))


def test_a_kill_loses_no_results(place, words):
    out, old = place.folder / "out", words("--tasks", "swuggy,sblimp")
    new = words("--tasks", "sblimp", "--limit", "2", "--overwrite")
    assert place.do(*old).status == 0
    before = content(out)
    shutil.copytree(out, place.folder / "kept")
    assert place.do(*new).status == 0
    after = content(out)
    assert set(before) - set(after) and set(before) & set(after)
    for number, (when, fault) in enumerate(KILLS.items()):
        shutil.rmtree(out)
        shutil.copytree(place.folder / "kept", out)
        ended = place.do(*new, faults=(fault,))
        assert ended.status == -signal.SIGKILL, (when, ended)
        # The old results, the new ones, or none; never those of one with what belongs to the other.
        shown = place.do("eval", "ls", out)
        assert shown.out.count("  step ") == (out / "results.json").exists(), (when, shown)
        assert content(out) in (before, after) or not (out / "results.json").exists(), when
        if number < DECIDED:
            assert content(out) == before, when
        # Decided is decided: then nobody needs to say again that they are to be replaced.
        ended = place.do(*new[: None if number < DECIDED else -1])
        assert ended.status == 0 and content(out) == after and not list(out.glob(".*")), (when, ended)


def test_a_disk_that_fails_while_all_is_replaced_leaves_what_was_there(place, words):
    out = place.folder / "out"
    assert place.do(*words("--tasks", "swuggy,sblimp")).status == 0
    before = content(out)
    ended = place.do(
        *words("--tasks", "sblimp", "--limit", "2", "--overwrite"),
        faults=(Fault("mkdir", "out/.unfinished/plots", errno="EIO", times=None),),
    )
    assert ended.status == 2 and ended.lines[-1].startswith("error: cannot write ") and "Traceback" not in ended.err
    assert content(out) == before and not (out / ".unfinished").exists()


def test_of_two_at_once_neither_loses_a_number(place, words):
    out = place.folder / "out"
    held = place.start(
        *words("--tasks", "swuggy"), faults=(Fault("mkdir", "out/.unfinished", signal="SIGSTOP", times=1),)
    )
    while held.poll() is None and not (out / ".lock").exists():
        time.sleep(0.005)
    other = place.start(*words("--tasks", "sblimp"))
    said = other.process.out  # headlines come before what is written
    while other.poll() is None and not (said.exists() and "sblimp" in said.read_text()):
        time.sleep(0.005)
    time.sleep(0.5)
    assert other.poll() is None and not (out / "results.json").exists()
    os.kill(held.pid, signal.SIGCONT)
    ended = held.wait(), other.wait()
    assert [one.status for one in ended] == [0, 0], ended
    assert list(results(out)["tasks"]) == ["swuggy", "sblimp"]
    assert sorted(path.name for path in (out / "samples").iterdir()) == ["sblimp.jsonl", "swuggy.jsonl"]
    page = (out / "report.html").read_text()
    assert "swuggy" in page and "sblimp" in page
    assert not list(out.glob(".*"))


def test_recordings_are_opened_once_for_all_tasks(place, tiny_material, words):
    """And once before the model is read; their list is read first, to know whether it is there."""
    data = shutil.copytree(tiny_material.eval_data.parent, place.folder / "eval") / tiny_material.eval_data.name
    trace = place.folder / "trace"
    options = ["--tasks", "perplexity,dialogue,turns", "--data", data, "--ttt", "on"]
    ended = place.do(*words(*options), trace=trace)
    assert ended.status == 0, ended
    done = [json.loads(line) for line in trace.read_text().splitlines()]
    assert sum(call == "open" and path == str(data) for call, path, *_ in done) == 3
