"""The demo: its page, its folder, its end."""

from __future__ import annotations

import base64
import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import soundfile
from rich.console import Console

from ttt_moshi.cli.demo.command import NEEDED_MB, RECORD, claim
from ttt_moshi.cli.demo.jobs import Command, DemoError, Jobs
from ttt_moshi.cli.demo.page import write_page
from ttt_moshi.cli.demo.steps import Demo, DemoSize
from ttt_moshi.cli.demo.talk import join, split

ENV = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"}


def point(value: float, low: float, high: float) -> dict:
    return {"value": value, "ci95": [low, high]}


def facts(talk: dict) -> dict:
    curve = {str(d): point(0.99, 0.98, 1.0) for d in (32, 256, 1024)}
    guess = {str(d): point(0.06, 0.04, 0.08) for d in (32, 256, 1024)}
    answers = {"asked": [3, 4], "answers": [7, 8], "truth": [7, 8], "right": 32, "of": 32, "conversations": 16}
    results = {
        "tasks": {
            "perplexity": {
                "status": "ok",
                "components": {n: {"nll": 2.0, "ci95": [1.9, 2.1]} for n in ("text_words", "semantic", "acoustic")},
            },
            "ssc": {"status": "ok", **point(1.0, 1.0, 1.0)},
            "tsc": {"status": "ok", **point(0.75, 0.7, 0.8)},
            "swuggy": {"status": "skipped", "value": None, "ci95": None},
        }
    }
    return {
        "remembers": {
            "recall": {
                "questions": 512, "control_distance": 256, "curves": {"ttt": curve, "window": guess},
                "controls": {name: guess["32"] for name in ("off", "no_writes", "reset", "another")},
            },
            "told": {"facts": [[3, 7], [4, 8]]},
            "resumed": answers,
            "fresh": {**answers, "answers": [63, 0], "right": 2},
            "hour": {"looks": [{"minute": m, "milliseconds": 5.0, "state_bytes": 66_664} for m in (0.0, 30.0, 59.7)]},
            "session_bytes": 1_000_000,
        },
        "lost": {
            "killed_at": 43, "resumed_at": 40, "state_id": "ab" * 32, "equal_steps": 100,
            "flipped": {"file": "f", "byte": 1, "bytes": 1000, "found": "tensor 'w' does not match its digest"},
            "checkpoint": {"name": "checkpoint_000100", "tensors": 462},
        },
        "learns": {
            "records": [{"step": s, "loss": 3.0 - s / 100} for s in range(1, 101)],
            "results": dict.fromkeys(("base", "trained", "off"), results),
        },
        "talks": {"talk": talk, "run_dir": "runs/demo/killed", "evaluation": "runs/demo/evaluation"},
    }  # fmt: skip


class Page(HTMLParser):
    """Headings, addresses that a browser would fetch or follow, and text."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.sections: list[str] = []
        self.addresses: list[str] = []
        self.tags: list[str] = []
        self.words = ""
        self.feed(source)

    def handle_starttag(self, tag, attrs):
        values = dict(attrs)
        self.tags.append(tag)
        if tag == "h2":
            self.sections.append(values["id"])
        self.addresses += [values[name] for name in ("src", "href") if values.get(name)]

    def handle_data(self, data):
        self.words += data


@pytest.fixture
def talk(tmp_path) -> dict:
    """A conversation in two parts, made by hand."""
    words = [["Hello", [0.1, 0.4], "SPEAKER_OTHER"], ["<b>you</b>", [3.0, 3.4], "SPEAKER_OTHER"]]
    recording = tmp_path / "recording.wav"
    soundfile.write(recording, np.zeros((5 * 24_000, 2)), 24_000)
    recording.with_suffix(".json").write_text(json.dumps({"alignments": words}))
    parts = [tmp_path / "one.wav", tmp_path / "two.wav"]
    split(recording, *parts)
    for part in parts:
        part.with_suffix(".json").write_text(json.dumps({"alignments": [["Moshi", [0.5, 0.9], "SPEAKER_MAIN"]]}))
    return join(parts, recording)


def test_a_conversation_in_two_parts_becomes_one(talk):
    samples, rate = soundfile.read(io.BytesIO(talk["mp3"]))
    assert rate == 24_000 and samples.shape[1] == 2
    assert len(samples) / rate == pytest.approx(5.0, abs=0.15) and talk["seconds"] == pytest.approx(5.0)
    assert [(u["speaker"], u["text"], round(u["start"], 2)) for u in talk["utterances"]] == [
        ("user", "Hello", 0.1),
        ("Moshi", "Moshi", 0.5),
        ("user", "<b>you</b>", 3.0),
        ("Moshi", "Moshi", 3.5),
    ]


def test_the_page_has_its_four_sections_and_needs_nothing_else(tmp_path, talk):
    write_page(tmp_path / "index.html", facts(talk), ".venv/bin/ttt-moshi", 5.2)
    source = (tmp_path / "index.html").read_text()
    page = Page(source)
    assert page.sections == ["remembers", "lost", "learns", "talks"]
    outside = [a for a in page.addresses if not a.startswith(("#", "data:"))]
    assert outside == ["http://localhost:8998"]
    assert re.findall(r"url\([^#]", source) == [] and "@import" not in source
    assert page.tags.count("svg") == 3 and source.count('viewBox="') == 3
    (audio,) = [a for a in page.addresses if a.startswith("data:audio/mpeg;base64,")]
    assert base64.b64decode(audio.split(",")[1]) == talk["mp3"]
    assert "<b>you</b>" in page.words, "what was said is text and no markup"
    assert ".venv/bin/ttt-moshi serve --checkpoint_dir runs/demo/killed" in page.words


def test_the_page_shows_both_themes_one_ink_and_no_empty_interval(tmp_path, talk):
    write_page(tmp_path / "index.html", facts(talk), "ttt-moshi", 5.2)
    source = (tmp_path / "index.html").read_text()
    assert "prefers-color-scheme: dark" in source and 'name="viewport"' in source
    assert "currentColor" in source and "#010203" not in source and "#000000" not in source
    words = " ".join(Page(source).words.split())
    assert "100 % to 100 %" not in words and "all alike" in words
    assert "(swuggy)" not in words, "what was not measured has no row"
    assert "99 % of answers right 1,024 frames later; attention alone 6 %" in words
    assert "(something else)" in words, "a code that is no answer is called so"


def test_a_folder_with_something_else_in_it_is_refused_untouched(tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    done = run("--out", str(tmp_path))
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1
    assert "did not make" in done.stderr and str(tmp_path) in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]
    (tmp_path / RECORD).write_text('{"title": "my own demo"}')
    (tmp_path / "logs").mkdir()
    assert run("--out", str(tmp_path)).returncode == 2
    assert {path.name for path in tmp_path.iterdir()} == {"thesis.txt", RECORD, "logs"}


def test_two_demos_do_not_share_a_folder(tmp_path):
    out = tmp_path / "demo"
    with claim(out):
        (out / "logs").mkdir()
        with pytest.raises(DemoError, match="another demo works in"), claim(out):
            raise AssertionError("both went on")
        assert (out / "logs").is_dir()
    with claim(out):
        assert not (out / "logs").exists(), "what an earlier demo left is made again"


def test_a_full_disk_is_refused_before_anything_is_written(tmp_path, monkeypatch, capsys):
    from ttt_moshi.cli.main import run_command

    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 5e6})())
    assert run_command("demo", ["--out", str(tmp_path / "new")]) == 2
    assert f"needs {NEEDED_MB} MB" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_ctrl_c_ends_the_demo_in_one_line_and_leaves_nothing_running(tmp_path):
    out = tmp_path / "demo"
    process = subprocess.Popen(
        [sys.executable, "-m", "ttt_moshi", "demo", "--out", str(out)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ENV,
        # Where the tests themselves run in the background of a script, Ctrl-C is ignored by all that they start.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    while len(processes_about(out)) < 3:  # the demo and its two lanes
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130 and errors.strip().splitlines() == ["interrupted"]
    assert processes_about(out) == []
    assert (out / RECORD).is_file(), "the next demo may take the folder"


def test_a_command_that_fails_says_why_and_where_its_log_is(tmp_path):
    command = Command(("ttt_moshi", "ckpt", "ls", str(tmp_path / "nothing")), tmp_path / "logs" / "ls.log")
    with Jobs(Console(file=io.StringIO())) as jobs, pytest.raises(DemoError) as error:
        jobs.run("listing", command)
    message = str(error.value)
    assert "ended with status 2" in message and str(command.log) in message and "no folder at" in message


@pytest.mark.slow
def test_the_whole_demo_on_tiny_models(tmp_path):
    lines = io.StringIO()
    size = DemoSize(recall_steps=4, steps=24, kill_after=13, material="tiny", bench="tiny")
    with Jobs(Console(file=lines, width=200)) as jobs:
        demo = Demo(tmp_path, jobs, size)
        demo.run()
    assert demo.facts["lost"]["equal_steps"] == 24 and demo.facts["lost"]["resumed_at"] == 10
    assert "does not match its digest" in demo.facts["lost"]["flipped"]["found"]
    assert demo.facts["remembers"]["resumed"]["of"] == 128
    said = lines.getvalue().splitlines()
    assert len(said) == len(list((tmp_path / "logs").iterdir())) and all(line.startswith("done: ") for line in said)
    assert "[Gloo]" not in lines.getvalue()
    write_page(tmp_path / "index.html", demo.facts, "ttt-moshi", 1.0)
    assert (tmp_path / "index.html").stat().st_size < 3e6


def run(*options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "ttt_moshi", "demo", *options]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=ENV)


def processes_about(folder: Path) -> list[str]:
    """Command lines of running processes that name the folder."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if str(folder) in line:
            found.append(line)
    return found
